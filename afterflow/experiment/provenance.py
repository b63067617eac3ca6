"""Where a run comes from: its record with versions, commit and hardware, and the names trackers know it by."""

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from ..system.atomic_files import write_text_atomically
from .serialization import differences

LIBRARIES = ("afterflow", "torch", "diffusers", "transformers", "peft", "accelerate", "numpy")


def write_record(
    folder: Path, config: Mapping[str, Any], recipe: str, seed: int, first: int = 0, processes: int = 1
) -> list[str]:
    """run.json: the resolved configuration and what it ran on, and where it was resumed.

    What is not as it was when the run began.
    """
    file = folder / "run.json"
    begun = json.loads(file.read_text()) if first and file.is_file() else None
    record = {
        "recipe": recipe,
        "config": config,
        "seed": seed,
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES}
        | {"python": platform.python_version()},
        "git_commit": git_commit(),
        "hardware": hardware(),
        "processes": processes,
    }
    if begun is None:
        write_text_atomically(file, json.dumps(record, indent=2) + "\n")
        return []
    about = ("versions", "git_commit", "hardware", "processes")
    then, now = ({name: told[name] for name in about if name in begun} for told in (begun, record))
    begun.setdefault("resumed", []).append({"iteration": first} | {name: record[name] for name in about})
    write_text_atomically(file, json.dumps(begun, indent=2) + "\n")
    return differences(then, now)


def tracker_options(folder: Path, name: str) -> dict[str, dict[str, str]]:
    """What makes a tracker go on with the curves of a resumed run, instead of beginning others."""
    file = folder / "tracker.json"
    if not file.is_file():
        write_text_atomically(file, json.dumps({"id": uuid4().hex}) + "\n")
    known = json.loads(file.read_text())["id"]
    return {
        "wandb": {"name": name, "id": known, "resume": "allow"},
        "trackio": {"name": f"{name}-{known[:8]}", "resume": "allow"},
    }


def git_commit() -> str | None:
    """The commit of the code in use, with + where it was changed; None outside a checkout."""
    here = Path(__file__).parent
    ask = lambda *words: subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True)
    commit = ask("rev-parse", "HEAD")
    if commit.returncode != 0:
        return None
    changed = ask("status", "--porcelain", "--untracked-files=no").stdout.strip()
    return commit.stdout.strip() + ("+" if changed else "")


def hardware() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "gpu": gpu,
        "threads": torch.get_num_threads(),
    }
