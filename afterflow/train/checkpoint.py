"""Checkpoints: safetensors and JSON, complete or absent."""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..system.atomic_files import flush_to_disk, sha256
from .distributed import Processes
from .ema import Ema, copy_values
from .reward_history import RewardHistory
from .sharding import local_shard, shard_like

MANIFEST = "manifest.json"
"""Names and digests of a checkpoint's other files."""


def save_checkpoint(
    folder: Path,
    step: int,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
    scaler: torch.amp.GradScaler | None,
    memory: RewardHistory | None,
    keep: int,
    processes: Processes,
) -> Path:
    """Write the state after iteration `step` and delete all but the newest `keep`.

    It is written under another name, with a digest of every file, and renamed when the disk has it, so that a
    checkpoint which exists is whole.  OSError, where the disk is full, leaves those before as they were; one of that
    step which is there already is left as it is.  The first process writes, and of what is sharded each its own.
    """
    final, partial = folder / f"step_{step:06d}", folder / f"step_{step:06d}.partial"

    def begin() -> bool:
        if processes.main:
            remove_unfinished(folder)
            if not final.is_dir():
                partial.mkdir(parents=True)
        return final.is_dir()

    def write() -> dict[str, str]:
        if not (processes.main or processes.sharded):
            return {}
        return write_tensors(partial, processes.rank if processes.sharded else None, parameters, optimizer, ema)

    def end() -> None:
        if not processes.main:
            return
        state = {
            "step": step,
            "shards": processes.count if processes.sharded else None,
            "ema_updates": ema.updates if ema else 0,
            "scaler": scaler.state_dict() if scaler else None,
            "memory": memory.state() if memory else None,
        }
        (partial / "state.json").write_text(json.dumps(state))
        digests["state.json"] = sha256(partial / "state.json")
        (partial / MANIFEST).write_text(json.dumps(digests))
        for file in (partial / "state.json", partial / MANIFEST, partial):
            flush_to_disk(file)
        partial.rename(final)
        flush_to_disk(folder)
        for old in list_checkpoints(folder)[:-keep]:
            delete_checkpoint(old)

    if not processes.run_on_all(begin)[0]:
        digests = {name: digest for told in processes.run_on_all(write) for name, digest in told.items()}
        processes.run_on_all(end)
    return final


def write_tensors(
    folder: Path,
    rank: int | None,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
) -> dict[str, str]:
    """What this process has of weights, optimizer and averages, on the disk; the digest of each file."""
    tensors = {"weights": {name: local_shard(p.detach()).contiguous() for name, p in parameters.items()}}
    tensors["optimizer"] = optimizer_tensors(optimizer, parameters)
    if ema is not None:
        tensors["ema"] = {name: local_shard(value).contiguous() for name, value in ema.values.items()}
    digests = {}
    for name, values in tensors.items():
        file = folder / shard_file_name(name, rank)
        save_file(values, file)
        flush_to_disk(file)
        digests[file.name] = sha256(file)
    return digests


def shard_file_name(name: str, rank: int | None) -> str:
    """The file of a process's shards, or of what is not sharded."""
    return f"{name}.safetensors" if rank is None else f"{name}.{rank}.safetensors"


def delete_checkpoint(folder: Path) -> None:
    """Under another name first: killed in the middle, it leaves no checkpoint that lacks files."""
    gone = folder.with_suffix(".gone")
    folder.rename(gone)
    shutil.rmtree(gone)


def remove_unfinished(folder: Path) -> None:
    """Take away what processes that were killed have left."""
    for left in (*folder.glob("step_*.gone"), *folder.glob("step_*.partial")):
        shutil.rmtree(left)


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole ones, oldest first."""
    return sorted(path for path in folder.glob("step_*") if not path.suffix)


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files; None: they are as they were written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{MANIFEST} is missing or cannot be read"
    for name, digest in manifest.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256(folder / name) != digest:
            return f"{name} is not what was written"
    return None


def check_complete(folder: Path) -> None:
    """ValueError for a damaged checkpoint, with the one before it that is not."""
    wrong = find_damage(folder)
    if wrong is None:
        return
    before = [other for other in list_checkpoints(folder.parent) if other < folder and find_damage(other) is None]
    way = f"delete it to go on from {before[-1].name}" if before else "no other is whole, so start the run anew"
    raise ValueError(f"{folder} is damaged: {wrong}; {way}")


def load_checkpoint(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
    scaler: torch.amp.GradScaler | None,
    memory: RewardHistory | None,
) -> int:
    """Put a checkpoint back; the iteration to go on with.  ValueError when it is damaged or belongs to another run.

    It may have been written by another number of processes, and as shards or not.
    """
    check_complete(folder)
    state = json.loads((folder / "state.json").read_text())
    with ExitStack() as opened:
        stored = lambda name: [
            opened.enter_context(safe_open(folder / shard_file_name(name, rank), "pt")) for rank in shard_ranks(state)
        ]
        weights = stored("weights")
        if {name: list(p.shape) for name, p in parameters.items()} != stored_shapes(weights):
            raise ValueError(
                f"{folder}: its weights are not those this run trains; resume with the recipe that wrote it"
            )
        copy_values(parameters, {name: shard_like(p, assemble(weights, name)) for name, p in parameters.items()})
        moments = stored("optimizer")
        for key in moments[0].keys():  # noqa: SIM118
            name, quantity = key.rsplit("|", 1)
            p, value = parameters[name], assemble(moments, key)
            kept = shard_like(p, value) if value.shape == p.shape else value.to(p.device)
            optimizer.state[p][quantity] = value.item() if value.dtype == torch.int64 else kept
        if ema is not None:
            if not (folder / shard_file_name("ema", shard_ranks(state)[0])).is_file():
                raise ValueError(
                    f"{folder}: it holds no average of the weights; resume with ema = None, as it was written"
                )
            averages = stored("ema")
            ema.values = {name: shard_like(value, assemble(averages, name)) for name, value in ema.values.items()}
            ema.updates = state["ema_updates"]
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])
    if memory is not None and state["memory"] is not None:
        memory.load(state["memory"])
    return state["step"] + 1


def shard_ranks(state: Mapping[str, Any]) -> list[int] | list[None]:
    """Whose shards a checkpoint has; checkpoints of earlier versions have none."""
    return [None] if state.get("shards") is None else list(range(state["shards"]))


def stored_shapes(parts: Sequence[Any]) -> dict[str, list[int]]:
    """Of what open files hold together, by name."""
    each = [{name: part.get_slice(name).get_shape() for name in part.keys()} for part in parts]  # noqa: SIM118
    first = each[0]
    return {
        name: [sum(other[name][0] for other in each), *shape[1:]] if shape else shape for name, shape in first.items()
    }


def assemble(parts: Sequence[Any], name: str) -> Tensor:
    """A tensor of which each open file has a shard, or the only file all."""
    pieces = [part.get_tensor(name) for part in parts]
    return pieces[0] if len(pieces) == 1 or pieces[0].ndim == 0 else torch.cat(pieces)


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's tensors, keyed `parameter|quantity`; the counts that AdamW8bit keeps are integers."""
    found: dict[str, Tensor] = {}
    for name, p in parameters.items():
        for quantity, value in optimizer.state[p].items():
            # It also has one table of its 256 values for all parameters, and safetensors wants each tensor apart.
            found[f"{name}|{quantity}"] = (
                value.clone() if quantity.startswith("qmap") else local_shard(torch.as_tensor(value)).contiguous()
            )
    return found
