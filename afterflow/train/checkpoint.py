"""Checkpoints of a run, as safetensors and JSON files: complete or absent."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..system.atomic_files import apply_umask, flush_to_disk, make_folder, sha256, write_text_atomically, writing
from ..system.checks import LARGEST
from ..system.errors import CheckpointError
from ..system.own_folders import check_own, holds_object, remove_own
from .distributed import Processes
from .ema import Ema, copy_values
from .lagged import LaggedPolicy
from .reward_history import RewardHistory
from .sharding import local_shard, shard_like

STATE = "state.json"
"""The file with what is no tensor."""
MOST_SHARDS = 65536
"""Largest number of processes that a checkpoint may be of."""
MANIFEST = "manifest.json"
"""File with the names and digests of a checkpoint's other files."""


@dataclass(frozen=True)
class WeightState:
    """Everything that training changes, and so everything that a checkpoint holds."""

    parameters: Mapping[str, nn.Parameter]
    """Trained parameters by name."""
    optimizer: torch.optim.Optimizer
    """The optimizer of these parameters."""
    ema: Ema | None = None
    """Averages of the parameters."""
    scaler: torch.amp.GradScaler | None = None
    """Gradient scaler of fp16 training."""
    history: RewardHistory | None = None
    """Earlier rewards, for algorithms that compare with them."""
    lagged: Mapping[str, LaggedPolicy] = field(default_factory=dict)
    """Averages that an algorithm calls, by name."""
    processes: Processes = field(default_factory=Processes)
    """Processes that hold the parameters, each a shard of them or all."""


def save_checkpoint(
    folder: Path, step: int, weights: WeightState, keep: int, texts: Mapping[str, str] | None = None
) -> Path:
    """Write the state after iteration `step`, delete all checkpoints but the newest `keep`, and return the new one.

    The files are written to a folder of another name, with a digest of every file.  It is renamed when the disk has
    them, so a checkpoint that exists is complete.  One of the same step that exists is not written again.  Rank 0
    writes; of sharded weights every process writes its shards.

    Raises OSError where the disk is full; earlier checkpoints then stay as they were.

    Args:
        folder: The folder of the checkpoints.
        step: The iteration that has ended.
        weights: What training changes.
        keep: Number of checkpoints that stay.
        texts: Contents of more files of the checkpoint, by name.
    """
    processes = weights.processes
    final, partial = folder / f"step_{step:06d}", folder / f"step_{step:06d}.partial"

    def begin() -> bool:
        if processes.main:
            remove_unfinished(folder)
            if not final.is_dir():
                make_folder(partial)
                write_text_atomically(partial / MANIFEST, "{}")  # says whose it is, from the start
        return final.is_dir()

    def write() -> dict[str, str]:
        return write_tensors(partial, weights) if processes.main or processes.sharded else {}

    def end() -> None:
        if processes.main:
            write_state(partial, step, weights, digests | write_texts(partial, texts or {}))
            partial.rename(final)
            flush_to_disk(folder)
            for old in list_checkpoints(folder)[:-keep]:
                delete_checkpoint(old)

    if not processes.run_on_all(begin)[0]:
        digests = {name: digest for local in processes.run_on_all(write) for name, digest in local.items()}
        processes.run_on_all(end)
    return final


def write_tensors(folder: Path, weights: WeightState) -> dict[str, str]:
    """Write this process's part of weights, optimizer and averages to the disk, and return the digest of each file."""
    rank = weights.processes.rank if weights.processes.sharded else None
    tensors = {"weights": local_tensors(weights.parameters)}
    tensors["optimizer"] = optimizer_tensors(weights.optimizer, weights.parameters)
    if weights.ema is not None:
        tensors["ema"] = local_tensors(weights.ema.values)
    for kind, policy in weights.lagged.items():
        tensors[f"lagged_{kind}"] = local_tensors(policy.parameters)
    digests = {}
    for name, values in tensors.items():
        file = folder / shard_file_name(name, rank)
        with writing(file):
            save_file(values, file)
            apply_umask(file)
            flush_to_disk(file)
        digests[file.name] = sha256(file)
    return digests


def local_tensors(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return this process's part of each tensor, by name."""
    return {name: local_shard(value.detach()).contiguous() for name, value in values.items()}


def write_texts(folder: Path, texts: Mapping[str, str]) -> dict[str, str]:
    """Write files by name to the disk, and return the digest of each."""
    for name, text in texts.items():
        write_text_atomically(folder / name, text)
    return {name: sha256(folder / name) for name in texts}


def write_state(folder: Path, step: int, weights: WeightState, digests: Mapping[str, str]) -> None:
    """Write what is no tensor, and the manifest of all files, to the disk."""
    state = {
        "step": step,
        "shards": weights.processes.count if weights.processes.sharded else None,
        "ema_updates": weights.ema.updates if weights.ema else 0,
        "scaler": weights.scaler.state_dict() if weights.scaler else None,
        "memory": weights.history.state() if weights.history else None,
        "lagged": {name: policy.updates for name, policy in weights.lagged.items()},
    }
    write_text_atomically(folder / "state.json", json.dumps(state))
    write_text_atomically(folder / MANIFEST, json.dumps({**digests, "state.json": sha256(folder / "state.json")}))


def shard_file_name(name: str, rank: int | None) -> str:
    """Name the file of a process's shards, or of tensors that are not sharded where `rank` is None."""
    return f"{name}.safetensors" if rank is None else f"{name}.{rank}.safetensors"


def delete_checkpoint(folder: Path) -> None:
    """Rename the checkpoint, then delete it: a process killed in the middle leaves none that lacks files.

    OutputError for a folder that is none of ours, which stays.
    """
    check_own(folder, is_checkpoint, MANIFEST)
    gone = folder.with_suffix(".gone")
    folder.rename(gone)
    remove_own(gone, is_checkpoint, MANIFEST)


def remove_unfinished(folder: Path) -> None:
    """Delete the unfinished folders of processes that were killed while they wrote or deleted."""
    for unfinished in (*folder.glob("step_*.gone"), *folder.glob("step_*.partial")):
        remove_own(unfinished, is_checkpoint, MANIFEST)


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder carries the manifest of a checkpoint, whole or not."""
    return (folder / MANIFEST).is_file() and not (folder / MANIFEST).is_symlink()


def check_own_checkpoints(folder: Path) -> None:
    """Raise OutputError where a folder has the name of a checkpoint, which is deleted in its turn, and is none."""
    for path in folder.glob("step_*"):
        check_own(path, is_checkpoint, MANIFEST)


def list_checkpoints(folder: Path) -> list[Path]:
    """List the complete checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step_*") if not path.suffix)


def find_damage(folder: Path) -> str | None:
    """Describe what is wrong with a checkpoint's files; None means that they are as they were written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return f"{MANIFEST} is missing or cannot be read"
    if not isinstance(manifest, dict) or STATE not in manifest:
        return f"{MANIFEST} does not say what was written"
    for name, digest in manifest.items():
        if Path(name).name != name or (folder / name).is_symlink():
            return f"{name!r} is no file of the checkpoint"
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256(folder / name) != digest:
            return f"{name} is not what was written"
    return None


def check_complete(folder: Path) -> None:
    """Raise CheckpointError for a damaged checkpoint, with the name of the last one before it that is complete."""
    damage = find_damage(folder)
    if damage is None:
        return
    earlier = [path for path in list_checkpoints(folder.parent) if path < folder and find_damage(path) is None]
    remedy = f"delete it to go on from {earlier[-1].name}" if earlier else "no other is whole, so start the run anew"
    raise CheckpointError(f"{folder} is damaged: {damage}; {remedy}")


def load_checkpoint(folder: Path, weights: WeightState) -> int:
    """Restore the state of a checkpoint into `weights` and return the iteration to continue with.

    The checkpoint may have been written by another number of processes, sharded or not.

    Raises CheckpointError where it is damaged or belongs to another run.
    """
    check_complete(folder)
    state = read_state(folder / STATE)
    try:
        restore(folder, state, weights)
    except (SafetensorError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        # The digests fit, so whoever wrote the checkpoint put into it what is none of this run's.
        raise CheckpointError(f"{folder} is no checkpoint of this run ({type(error).__name__}: {error})") from error
    return state["step"] + 1


def read_state(file: Path) -> dict[str, Any]:
    """Read what a checkpoint says beside its tensors.  CheckpointError where that is not what afterflow writes."""
    state = json.loads(file.read_bytes()) if holds_object(file, "step") else {}
    whole = lambda name, most: type(state.get(name)) is int and 0 <= state[name] <= most
    sharded = state.get("shards") is None or whole("shards", MOST_SHARDS)
    objects = all(isinstance(state.get(name), dict | None) for name in ("scaler", "memory", "lagged"))
    counts = objects and all(type(n) is int and 0 <= n <= LARGEST for n in (state.get("lagged") or {}).values())
    if not (whole("step", LARGEST) and whole("ema_updates", LARGEST) and sharded and counts):
        raise CheckpointError(f"{file}: it is not what afterflow writes into a checkpoint; the file is damaged")
    return state


def restore(folder: Path, state: Mapping[str, Any], weights: WeightState) -> None:
    """Copy the tensors of a checkpoint, and what its state says, into `weights`."""
    with ExitStack() as stack:

        def open_files(name: str) -> list[Any]:
            return [stack.enter_context(safe_open(path, "pt")) for path in shard_files(folder, name, state)]

        restore_parameters(folder, open_files("weights"), weights.parameters)
        restore_optimizer(open_files("optimizer"), weights)
        for kind, policy in weights.lagged.items():
            if not shard_files(folder, f"lagged_{kind}", state)[0].is_file():
                raise CheckpointError(f"{folder}: it holds no {kind} policy; resume with the recipe that wrote it")
            restore_parameters(folder, open_files(f"lagged_{kind}"), policy.parameters)
            policy.updates = int(state["lagged"][kind])
        if weights.ema is not None:
            if not shard_files(folder, "ema", state)[0].is_file():
                raise CheckpointError(
                    f"{folder}: it holds no average of the weights; resume with ema_decay = None, as it was written"
                )
            files, averages = open_files("ema"), weights.ema.values
            weights.ema.values = {name: shard_like(value, join_shards(files, name)) for name, value in averages.items()}
            weights.ema.updates = state["ema_updates"]
    if weights.scaler is not None and state.get("scaler") is not None:
        weights.scaler.load_state_dict(state["scaler"])
    if weights.history is not None and state.get("memory") is not None:
        weights.history.load(state["memory"])


def shard_files(folder: Path, name: str, state: Mapping[str, Any]) -> list[Path]:
    """List the files of a kind of tensors by rank; checkpoints of earlier versions have one, as unsharded ones do."""
    ranks = [None] if state.get("shards") is None else range(state["shards"])
    return [folder / shard_file_name(name, rank) for rank in ranks]


def restore_parameters(folder: Path, files: Sequence[Any], parameters: Mapping[str, nn.Parameter]) -> None:
    """Copy the weights of open files into parameters; CheckpointError where names or shapes differ."""
    if {name: list(p.shape) for name, p in parameters.items()} != stored_shapes(files):
        raise CheckpointError(
            f"{folder}: its weights are not those this run trains; resume with the recipe that wrote it"
        )
    copy_values(parameters, {name: shard_like(p, join_shards(files, name)) for name, p in parameters.items()})


def restore_optimizer(files: Sequence[Any], weights: WeightState) -> None:
    """Copy the optimizer's tensors from open files, which `optimizer_tensors` names."""
    for key in files[0].keys():  # noqa: SIM118
        name, quantity = key.rsplit("|", 1)
        p, value = weights.parameters[name], join_shards(files, key)
        # Other shapes, as the count of steps, are put on the device by accelerate, which prepares the optimizer later.
        restored = shard_like(p, value) if value.shape == p.shape else value
        weights.optimizer.state[p][quantity] = value.item() if value.dtype == torch.int64 else restored


def stored_shapes(files: Sequence[Any]) -> dict[str, list[int]]:
    """Return the shape of every tensor that open files hold together, by name."""
    shapes = [{name: file.get_slice(name).get_shape() for name in file.keys()} for file in files]  # noqa: SIM118
    return {
        name: [sum(other[name][0] for other in shapes), *shape[1:]] if shape else shape
        for name, shape in shapes[0].items()
    }


def join_shards(files: Sequence[Any], name: str) -> Tensor:
    """Join a tensor from its shards, one in every open file, or read it from the only file."""
    shards = [file.get_tensor(name) for file in files]
    return shards[0] if len(shards) == 1 or shards[0].ndim == 0 else torch.cat(shards)


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the optimizer's tensors, keyed `parameter|quantity`; the counts that AdamW8bit keeps are integers."""
    tensors: dict[str, Tensor] = {}
    for name, p in parameters.items():
        for quantity, value in optimizer.state[p].items():
            # AdamW8bit shares one table of its 256 values among all parameters, and safetensors wants copies.
            tensors[f"{name}|{quantity}"] = (
                value.clone() if quantity.startswith("qmap") else local_shard(torch.as_tensor(value)).contiguous()
            )
    return tensors
