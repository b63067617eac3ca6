"""The folder of a run: its record, its metrics, its checkpoints and its result, read in one place.

Reading needs no torch, and a run may be writing meanwhile.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..system.atomic_files import write_text_atomically, writing
from ..system.errors import InputError
from ..system.text_files import read_json
from ..train.budget import Budget

if TYPE_CHECKING:
    from .config import Run

RESULTS = ("lora", "model")
"""Folders that a run that has ended leaves: a LoRA, or a pipeline."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, as every command reads it."""

    path: Path

    @property
    def record_file(self) -> Path:
        """The file with the resolved configuration, versions, commit and seed."""
        return self.path / "run.json"

    @property
    def metrics_file(self) -> Path:
        """The file with a line for each iteration."""
        return self.path / "metrics.jsonl"

    @property
    def held_out_file(self) -> Path:
        """The file with the rewards of each held-out prompt, a line for each measurement."""
        return self.path / "held_out.jsonl"

    @property
    def best_file(self) -> Path:
        """The file that says which iteration best/ holds, and its figure."""
        return self.path / "best.json"

    @property
    def checkpoint_folder(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def record(self) -> dict[str, Any]:
        """Return what run.json holds.  InputError where there is none that afterflow wrote."""
        return read_record(self.record_file)

    def run(self) -> "Run":
        """Return the run of the record, of this version or an earlier one.  InputError where it cannot be read."""
        return read_run(self.record_file)[0]

    def limits(self) -> tuple[int, float | None]:
        """Return the record's iterations and seconds of training, without reading the rest of it."""
        config = self.record()["config"]
        batches = config.get("batches", config)  # version 0.1 had no groups
        return batches["iterations"], batches.get("budget_seconds")

    def metrics(self) -> list[dict[str, Any]]:
        """Return the whole lines of metrics.jsonl, oldest first."""
        return read_lines(self.metrics_file)

    def held_out(self) -> list[dict[str, Any]]:
        """Return the measurements on held-out prompts, oldest first."""
        return read_lines(self.held_out_file)

    def best(self) -> dict[str, Any] | None:
        """Return step, reward and value of the weights in best/, if there are any."""
        return read_json(self.best_file) if self.best_file.is_file() else None

    def write_data(self, counts: dict[str, Any]) -> None:
        """Write what is learnt from, beside what data.json already says."""
        write_text_atomically(self.path / "data.json", json.dumps(self.data() | counts, indent=2) + "\n")

    def data(self) -> dict[str, Any]:
        """Return what the run learns from: counts of images, of those left out, and of prompts that are cut."""
        file = self.path / "data.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def checkpoints(self) -> list[Path]:
        """Return the folders of the whole checkpoints, oldest first."""
        return sorted(path for path in self.checkpoint_folder.glob("step_*") if not path.suffix)

    def next_iteration(self) -> int:
        """Return the iteration after the last checkpoint, which is the number of those that are saved."""
        return max((int(path.name.removeprefix("step_")) + 1 for path in self.checkpoints()), default=0)

    def sample_sheets(self) -> list[Path]:
        """Return the sample pictures, oldest first: of clips the GIF, of images the sheet."""
        files = sorted((self.path / "samples").glob("step_*.*"))
        return [file for file in files if file.suffix == ".gif" or file.with_suffix(".gif") not in files]

    def result(self) -> Path | None:
        """Return the folder of the LoRA or pipeline that the run left at its end; None while there is none."""
        return next((self.path / name for name in RESULTS if (self.path / name).is_dir()), None)

    def has_ended(self, iterations: int, budget_seconds: float | None) -> bool:
        """Return whether the run left a result and did so many iterations, or used up so many seconds."""
        lines = self.metrics() if self.result() is not None else []
        if not lines:
            return False
        return Budget(iterations, budget_seconds, lines[-1]["seconds_trained"]).ends(lines[-1]["step"])


def read_record(file: Path) -> dict[str, Any]:
    """Return the JSON of a run.json.  InputError names the file and what is wrong with it."""
    if not file.is_file():
        raise InputError(f"{file}: no such file; a run is recorded in runs/NAME/run.json")
    record = read_json(file)
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise InputError(f'{file}: it has no "config", so afterflow did not write it')
    return record


def read_run(path: Path) -> tuple["Run", str]:
    """Return the run in a run.json, or in the folder that holds one, and the name of its recipe.

    InputError where the file cannot be read as a run of this version or an earlier one.
    """
    file = path / "run.json" if path.is_dir() else path
    record = read_record(file)
    from .compatibility import upgrade
    from .config import Run
    from .serialization import from_json

    try:
        return from_json(Run, upgrade(record["config"])), str(record.get("recipe"))
    except ValueError as error:
        raise InputError(f"{file}: {error}") from None


def run_of_lora(lora: Path) -> "Run | None":
    """Return the run that made the LoRA in a file; None where none is recorded beside the file or above its folder."""
    for folder in (lora.parent, lora.parent.parent):
        if (folder / "run.json").is_file():
            return read_run(folder)[0]
    return None


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a .jsonl file; the last may be half written, and no file has no lines."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.endswith("}")]


class MetricsFile:
    """A file such as metrics.jsonl, open for writing: one line for each iteration, readable while it grows."""

    def __init__(self, file: Path, first: int) -> None:
        """Open the file for iterations from `first` on; lines of later ones, which are repeated, are removed."""
        lines = list(takewhile(lambda line: line["step"] < first, read_lines(file)))
        write_text_atomically(file, "".join(json.dumps(line) + "\n" for line in lines))
        self.before: dict[str, float] = lines[-1] if lines else {}
        """Numbers of the iteration before the first one."""
        self.earliest: dict[str, Any] = lines[0] if lines else {}
        """The first line, if there is one."""
        with writing(file):
            self.stream = file.open("a", buffering=1, encoding="utf-8", newline="\n")

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write the line of an iteration."""
        with writing(Path(self.stream.name)):
            self.stream.write(json.dumps({"step": step, **metrics}) + "\n")

    def close(self) -> None:
        """Close the file."""
        with writing(Path(self.stream.name)):
            self.stream.close()


def duration(seconds: float) -> str:
    """Return seconds as a person says them: 45 s, 12 min, 3.4 h, 2.1 days."""
    for unit, size, limit in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds / size < limit:
            return f"{seconds / size:.2g} {unit}" if unit == "h" else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.2g} days"
