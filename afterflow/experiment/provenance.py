"""Where a run comes from: its record with versions, commit and hardware, and the names trackers know it by."""

import importlib.metadata
import json
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import torch

from .. import __version__
from ..system.atomic_files import write_text_atomically
from .run_folder import read_object, read_record
from .serialization import differences

NOTHING: Mapping[str, str] = MappingProxyType({})
LIBRARIES = ("afterflow", "torch", "diffusers", "transformers", "peft", "accelerate", "numpy")


def write_record(
    folder: Path,
    config: Mapping[str, Any],
    recipe: str,
    seed: int,
    first: int = 0,
    processes: int = 1,
    contents: Mapping[str, str] = NOTHING,
) -> list[str]:
    """Write run.json, and return a sentence for each thing that is not as it was when the run began.

    Args:
        folder: The folder of the run.
        config: The resolved configuration.
        recipe: The name of the recipe.
        seed: The seed of the run.
        first: The iteration to begin with; above 0 the run is resumed.
        processes: Number of processes.
        contents: Digests of what the run is made from, by name.
    """
    file = folder / "run.json"
    begun = read_record(file) if first and file.is_file() else None
    record = {
        "recipe": recipe,
        "config": config,
        "seed": seed,
        "versions": {name: installed_version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        "git_commit": git_commit(),
        "hardware": hardware(),
        "processes": processes,
        "contents": dict(contents),
    }
    if begun is None:
        write_text_atomically(file, json.dumps(record, indent=2) + "\n")
        return []
    about = ("versions", "git_commit", "hardware", "processes")
    length = extension(begun["config"], config)
    then, now = ({name: source[name] for name in about if name in begun} for source in (begun, record))
    spread = {"distribution": config["distribution"]} if "distribution" in config else {}
    begun.setdefault("resumed", []).append(
        {"iteration": first} | {name: record[name] for name in (*about, "contents")} | spread | length
    )
    write_text_atomically(file, json.dumps(begun, indent=2) + "\n")
    return differences(then, now)


def extension(begun: dict[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Put the iterations and the budget of a run that is trained further into its recorded configuration.

    Return what the run had before, empty where it has become no longer.
    """
    batches, longer = begun.get("batches", begun), now.get("batches", now)  # version 0.1 had no groups
    names = [name for name in ("iterations", "budget_seconds") if batches.get(name) != longer.get(name)]
    before = {name: batches.get(name) for name in names}
    batches.update({name: longer.get(name) for name in names})
    return {"extended_from": before} if before else {}


def tracker_options(folder: Path, name: str) -> dict[str, dict[str, str]]:
    """Return the options with which a tracker goes on with the curves of a resumed run."""
    file = folder / "tracker.json"
    if not file.is_file():
        write_text_atomically(file, json.dumps({"id": uuid4().hex}) + "\n")
    run_id = str(read_object(file).get("id", ""))
    return {
        "wandb": {"name": name, "id": run_id, "resume": "allow"},
        "trackio": {"name": f"{name}-{run_id[:8]}", "resume": "allow"},
    }


def installed_version(library: str) -> str:
    """Return the version of a library; of afterflow that of the code in use, which may not be installed."""
    return __version__ if library == "afterflow" else importlib.metadata.version(library)


def git_commit() -> str | None:
    """Return the commit of the code in use, with + where it was changed; None outside a checkout, or without git."""
    here = Path(__file__).parent
    if shutil.which("git") is None:
        return None
    git = lambda *words: subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True)
    commit = git("rev-parse", "HEAD")
    if commit.returncode != 0:
        return None
    changed = git("status", "--porcelain", "--untracked-files=no").stdout.strip()
    return commit.stdout.strip() + ("+" if changed else "")


def hardware() -> dict[str, Any]:
    """Return the machine, system, GPU and threads of this process."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "gpu": gpu,
        "threads": torch.get_num_threads(),
    }
