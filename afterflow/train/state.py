"""Checkpoints: safetensors and JSON, complete or absent."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..files import flush, sha256
from .ema import Ema, copy
from .memory import Memory

MANIFEST = "manifest.json"
"""Names and digests of a checkpoint's other files."""


def save(
    folder: Path,
    step: int,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
    scaler: torch.amp.GradScaler | None,
    memory: Memory | None,
    keep: int,
) -> Path:
    """Write the state after iteration `step` and delete all but the newest `keep`.

    It is written under another name, with a digest of every file, and renamed when the disk has it, so that a
    checkpoint which exists is whole.  OSError, where the disk is full, leaves those before as they were; one of that
    step which is there already is left as it is.
    """
    final, partial = folder / f"step_{step:06d}", folder / f"step_{step:06d}.partial"
    sweep(folder)
    if final.is_dir():
        return final
    partial.mkdir(parents=True)
    save_file({name: p.detach().contiguous() for name, p in parameters.items()}, partial / "weights.safetensors")
    save_file(flatten(optimizer, parameters), partial / "optimizer.safetensors")
    if ema is not None:
        save_file(ema.values, partial / "ema.safetensors")
    state = {
        "step": step,
        "ema_updates": ema.updates if ema else 0,
        "scaler": scaler.state_dict() if scaler else None,
        "memory": memory.state() if memory else None,
    }
    (partial / "state.json").write_text(json.dumps(state))
    (partial / MANIFEST).write_text(json.dumps({file.name: sha256(file) for file in sorted(partial.iterdir())}))
    for file in (*partial.iterdir(), partial):
        flush(file)
    partial.rename(final)
    flush(folder)
    for old in checkpoints(folder)[:-keep]:
        delete(old)
    return final


def delete(folder: Path) -> None:
    """Under another name first: killed in the middle, it leaves no checkpoint that lacks files."""
    gone = folder.with_suffix(".gone")
    folder.rename(gone)
    shutil.rmtree(gone)


def sweep(folder: Path) -> None:
    """Take away what processes that were killed have left."""
    for left in (*folder.glob("step_*.gone"), *folder.glob("step_*.partial")):
        shutil.rmtree(left)


def checkpoints(folder: Path) -> list[Path]:
    """The whole ones, oldest first."""
    return sorted(path for path in folder.glob("step_*") if not path.suffix)


def damage(folder: Path) -> str | None:
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


def check_whole(folder: Path) -> None:
    """ValueError for a damaged checkpoint, with the one before it that is not."""
    wrong = damage(folder)
    if wrong is None:
        return
    before = [other for other in checkpoints(folder.parent) if other < folder and damage(other) is None]
    way = f"delete it to go on from {before[-1].name}" if before else "no other is whole, so start the run anew"
    raise ValueError(f"{folder} is damaged: {wrong}; {way}")


def load(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
    scaler: torch.amp.GradScaler | None,
    memory: Memory | None,
) -> int:
    """Put a checkpoint back; the iteration to go on with.  ValueError when it is damaged or belongs to another run."""
    check_whole(folder)
    weights = load_file(folder / "weights.safetensors")
    if {name: p.shape for name, p in parameters.items()} != {name: w.shape for name, w in weights.items()}:
        raise ValueError(f"{folder}: its weights are not those this run trains; resume with the recipe that wrote it")
    copy(parameters, weights)
    state = json.loads((folder / "state.json").read_text())
    for key, value in load_file(folder / "optimizer.safetensors").items():
        name, quantity = key.rsplit("|", 1)
        kept = value.item() if value.dtype == torch.int64 else value.to(parameters[name].device)
        optimizer.state[parameters[name]][quantity] = kept
    if ema is not None:
        if not (folder / "ema.safetensors").is_file():
            raise ValueError(f"{folder}: it holds no average of the weights; resume with ema = None, as it was written")
        ema.values = {name: value.to(ema.values[name]) for name, value in load_file(folder / "ema.safetensors").items()}
        ema.updates = state["ema_updates"]
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])
    if memory is not None and state["memory"] is not None:
        memory.load(state["memory"])
    return state["step"] + 1


def flatten(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's tensors, keyed `parameter|quantity`; the counts that AdamW8bit keeps are integers."""
    found: dict[str, Tensor] = {}
    for name, p in parameters.items():
        for quantity, value in optimizer.state[p].items():
            # It also has one table of its 256 values for all parameters, and safetensors wants each tensor apart.
            found[f"{name}|{quantity}"] = (
                value.clone() if quantity.startswith("qmap") else torch.as_tensor(value).contiguous()
            )
    return found
