"""Weights, gradients and optimizer state in shards, a part with each process (ZeRO, arXiv:1910.02054; FSDP2)."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

Sharding = Literal["none", "zero2", "full"]


def shard_network(
    network: nn.Module, blocks: Iterable[nn.Module], how: Sharding, device: torch.device, processes: int
) -> nn.Module:
    """Split every parameter along its first axis, block by block, then what is in none.

    zero2 gathers weights once for a forward and its backward pass, full (ZeRO-3) for each block whenever it is needed.
    """
    mesh = init_device_mesh(device.type, (processes,))
    for part in (*blocks, network):
        fully_shard(part, mesh=mesh, reshard_after_forward=how == "full")
    unsharded = [name for name, p in network.named_parameters() if not isinstance(p, DTensor)]
    if unsharded:
        raise ValueError(f"shard = {how}: {len(unsharded)} parameters are not sharded, {unsharded[0]} for one")
    return network


def reshard(network: nn.Module) -> None:
    """Forget the gathered weights, which do not know what is written into the shards."""
    for part in network.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def gather_network(network: nn.Module) -> nn.Module | None:
    """A copy that is not sharded, on the CPU of the first process; elsewhere None."""
    state = get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not state:
        return None
    _, kind = type(network).__bases__  # FSDPModule and what it was
    with torch.device("meta"):
        copy = kind.from_config(network.config)
    copy.load_state_dict(state, assign=True)
    return copy


def local_shard(value: Tensor) -> Tensor:
    """What this process has of a tensor: its shard, or all."""
    return value.to_local() if isinstance(value, DTensor) else value


def shard_like(value: Tensor, whole: Tensor) -> Tensor:
    """`whole` as `value` is kept: the shard that belongs here, or all."""
    if not isinstance(value, DTensor):
        return whole.to(value.device)
    mesh = value.device_mesh
    parts, rank = whole.chunk(mesh.size()), mesh.get_local_rank()
    part = parts[rank] if rank < len(parts) else whole[:0]
    return DTensor.from_local(
        part.contiguous().to(value.device), mesh, value.placements, shape=value.shape, stride=value.stride()
    )
