"""Weights, gradients and optimizer state sharded over the processes (ZeRO, arXiv:1910.02054; FSDP2).

torch's own sharding takes more than a second to import, so that each function imports what it needs.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, TypeGuard

import torch
from torch import Tensor, nn

from ..system.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Sharding = Literal["none", "zero2", "full"]


def shard_network(
    network: nn.Module, blocks: Iterable[nn.Module], mode: Sharding, device: torch.device, processes: int
) -> nn.Module:
    """Shard every parameter along its first axis: block by block, then the rest of the network.

    Args:
        network: The transformer, changed in place.
        blocks: Modules that it repeats; each gathers its weights on its own.
        mode: zero2 gathers weights once for a forward and its backward pass, full (ZeRO-3) whenever a block runs.
        device: Device of this process.
        processes: Number of processes.

    Raises ConfigError where a parameter cannot be sharded.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes,))
    for part in (*blocks, network):
        fully_shard(part, mesh=mesh, reshard_after_forward=mode == "full")
    unsharded = [name for name, p in network.named_parameters() if not is_sharded(p)]
    if unsharded:
        raise ConfigError(f"shard = {mode}: {len(unsharded)} parameters are not sharded, {unsharded[0]} for one")
    return network


def reshard(network: nn.Module) -> None:
    """Drop the gathered weights, which do not change when the shards are written to."""
    from torch.distributed.fsdp import FSDPModule

    for part in network.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def gather_network(network: nn.Module) -> nn.Module | None:
    """Return an unsharded copy of the network, on the CPU of rank 0; None on other ranks."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state = get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not state:
        return None
    _, kind = type(network).__bases__  # FSDPModule and the class that it was made from
    with torch.device("meta"):
        copy = kind.from_config(network.config)
    copy.load_state_dict(state, assign=True)
    return copy


def is_sharded(value: Tensor) -> "TypeGuard[DTensor]":
    """Return whether a tensor is one of torch's sharded ones."""
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def local_shard(value: Tensor) -> Tensor:
    """Return this process's shard of a tensor, or the tensor where it is not sharded."""
    return value.to_local() if is_sharded(value) else value


def shard_like(value: Tensor, whole: Tensor) -> Tensor:
    """Shard `whole` as `value` is sharded: return this process's shard, or `whole` where `value` is not sharded."""
    from torch.distributed.tensor import DTensor

    if not isinstance(value, DTensor):
        return whole.to(value.device)
    mesh = value.device_mesh
    shards, rank = whole.chunk(mesh.size()), mesh.get_local_rank()
    shard = shards[rank] if rank < len(shards) else whole[:0]
    return DTensor.from_local(
        shard.contiguous().to(value.device), mesh, value.placements, shape=value.shape, stride=value.stride()
    )
