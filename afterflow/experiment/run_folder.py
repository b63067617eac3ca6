"""The folder of a run, read."""

import json
from pathlib import Path

from .compatibility import upgrade
from .config import Run
from .serialization import from_json


def read_run(file: Path) -> tuple[Run, str]:
    """What run.json, or the folder that holds it, says: the run and the name of its recipe."""
    file = file / "run.json" if file.is_dir() else file
    if not file.is_file():
        raise ValueError(f"{file}: no such file; a run is recorded in runs/NAME/run.json")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not JSON ({error.msg} at line {error.lineno})") from None
    if not isinstance(data, dict) or not isinstance(data.get("config"), dict):
        raise ValueError(f'{file}: it has no "config", so afterflow did not write it')
    try:
        return from_json(Run, upgrade(data["config"])), str(data.get("recipe"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def trained_with(lora: Path) -> float | None:
    """The guidance scale of the run that made a LoRA; None where no run is recorded in its folder or above it."""
    for file in (lora / "run.json", lora.parent / "run.json"):
        if file.is_file():
            return read_run(file)[0].batches.guidance_scale
    return None
