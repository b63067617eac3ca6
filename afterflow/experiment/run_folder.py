"""The folder of a run: its record, its metrics, its checkpoints and its result, read in one place.

Reading needs no torch, and a run may be writing meanwhile.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from ..system.atomic_files import write_text_atomically
from ..system.checks import LARGEST
from ..system.errors import InputError
from ..system.own_folders import check_links, check_own, check_own_file, holds_object
from ..system.text_files import read_json, read_text
from ..train.budget import Budget

if TYPE_CHECKING:
    from .config import Distribution, Run


RESULTS = ("lora", "model")
"""Folders that a run that has ended leaves: a LoRA, or a pipeline."""
L = TypeVar("L", bound=Mapping[str, Any])
WRITTEN = ("metrics.jsonl", "held_out.jsonl", "data.json", "best.json")
"""Files that a run writes after its record, so that without one they are somebody else's."""
REPEATED = "repeated_prompts"
"""Name in a line of held_out.jsonl of the rows that repeat a prompt."""
PICTURE_SETS = ("samples", "held_out", "groups")
"""Sets of stored pictures: of the prompts that the sampler shows, of held-out prompts, and of groups of training."""
BASE_STEP = -1
"""The step of pictures that are drawn before the first iteration."""
PICTURE_SUFFIXES = {
    ".png": (b"\x89PNG", "image/png"),
    ".jpg": (b"\xff\xd8\xff", "image/jpeg"),
    ".gif": (b"GIF8", "image/gif"),
}
"""Suffix of a stored picture → the bytes it begins with, and its type."""


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

    @property
    def picture_folder(self) -> Path:
        """The folder of the stored pictures, with a folder for each set."""
        return self.path / "pictures"

    def record(self) -> dict[str, Any]:
        """Return what run.json holds.  InputError where there is none that afterflow wrote."""
        return read_record(self.record_file)

    def run(self) -> "Run":
        """Return the run of the record, of this version or an earlier one.  InputError where it cannot be read."""
        return read_run(self.record_file)[0]

    def last_distribution(self, begun: "Distribution") -> "Distribution":
        """Return how the work was spread when the run went on for the last time; as it begun where it never did.

        InputError where the record says it in other words than afterflow.
        """
        from .config import Distribution
        from .serialization import from_json

        entries = [entry["distribution"] for entry in self.record().get("resumed", []) if "distribution" in entry]
        try:
            return from_json(Distribution, entries[-1]) if entries else begun
        except ValueError as error:
            raise InputError(f"{self.record_file}: resumed: {error}") from None

    def limits(self) -> tuple[int, float | None]:
        """Return the record's iterations and seconds of training, without reading the rest of it."""
        budget = self.number_of("batches", "budget_seconds")
        return int(self.number_of("batches", "iterations") or 1), budget

    def guidance_scale(self) -> float | None:
        """Return the record's guidance scale, without reading the rest of it; None where it has none."""
        return self.number_of("batches", "guidance_scale")

    def family(self) -> str | None:
        """Return the type of the record's model, without reading the rest of it; None where it has none."""
        model = self.record()["config"].get("model")
        kind = model.get("type") if isinstance(model, dict) else None
        if kind is not None and not isinstance(kind, str):
            raise InputError(f"{self.record_file}: model.type = {kind!r}: it must be a name")
        return kind

    def number_of(self, group: str, name: str) -> float | None:
        """Return a positive number of the record, or None where it is null or absent.  InputError for anything else."""
        config = self.record()["config"]
        options = config.get(group, config)  # version 0.1 had no groups
        value = options.get(name) if isinstance(options, dict) else options
        if value is None:
            return None
        if not (is_count(value) and value > 0):
            raise InputError(f"{self.record_file}: {group}.{name} = {value!r}: it must be a positive number")
        return value

    def metrics(self) -> list[dict[str, Any]]:
        """Return the whole lines of metrics.jsonl, oldest first."""
        return read_lines(self.metrics_file, ("step", "seconds_trained"))

    def held_out(self) -> list[dict[str, Any]]:
        """Return the measurements on held-out prompts, oldest first."""
        lines = read_lines(self.held_out_file, ("step",))
        for line in lines:
            for name, values in line.items():
                if name == REPEATED:
                    continue
                if name != "step" and not (isinstance(values, list) and values and all(map(is_json_number, values))):
                    raise InputError(f"{self.held_out_file}: {name!r} is no list of numbers; the file is damaged")
            rows = min(map(len, rewards_of(line).values()), default=0)
            if not are_repeated_rows(line.get(REPEATED, {}), rows):
                raise InputError(f"{self.held_out_file}: {REPEATED!r} names no rows of its line; the file is damaged")
        return lines

    def measurements_of_now(self) -> list[dict[str, Any]]:
        """Return the measurements on the held-out prompts that the run has now, oldest first."""
        return self.since_change(self.held_out())

    def since_change(self, lines: Sequence[L]) -> list[L]:
        """Return those lines of iterations in which the run's held-out prompts were those that it has now."""
        since = self.unchanged_since("held-out prompts")
        return [line for line in lines if line["step"] >= since]

    def unchanged_since(self, content: str) -> int:
        """Return the iteration since which a content of the run, such as its held-out prompts, is what it is now."""
        record = self.record()
        resumed = [(entry["iteration"], entry.get("contents", {})) for entry in record.get("resumed", ())]
        known = [(i, of[content]) for i, of in [(0, record.get("contents", {})), *resumed] if content in of]
        since = 0
        for (_, before), (i, now) in pairwise(known):
            since = i if now != before else since
        return since

    def best(self) -> dict[str, Any] | None:
        """Return step, reward and value of the weights in best/, if there are any."""
        return read_object(self.best_file) if self.best_file.is_file() else None

    def write_data(self, counts: dict[str, Any]) -> None:
        """Write what is learnt from, beside what data.json already says."""
        write_text_atomically(self.path / "data.json", json.dumps(self.data() | counts, indent=2) + "\n")

    def data(self) -> dict[str, Any]:
        """Return what the run learns from: counts of images, of those left out, and of prompts that are cut.

        Where prompts are about pictures, it says how many each has.
        """
        file = self.path / "data.json"
        return read_object(file) if file.is_file() else {}

    def checkpoints(self) -> list[Path]:
        """Return the folders of the whole checkpoints, oldest first."""
        return sorted(path for path in self.checkpoint_folder.glob("step_*") if not path.suffix)

    def next_iteration(self) -> int:
        """Return the iteration after the last checkpoint, which is the number of those that are saved."""
        return max((int(path.name.removeprefix("step_")) + 1 for path in self.checkpoints()), default=0)

    def without_checkpoints(self) -> str:
        """Return why a run that has no checkpoint cannot go on, and what can be done."""
        if (result := self.result()) is not None:
            return (
                f"{self.path}: its checkpoints are gone and {result.name}/ is there, so it cannot go on; give a new "
                f"run another --name, and where {result.name}/ is a LoRA begin it with --tune.start {self.path}"
            )
        return f"{self.path}: no checkpoint to resume from; start anew with --from {self.record_file}"

    def advice(self) -> str:
        """Return the last checkpoint that is there, and the command that goes on when the fault is mended."""
        checkpoints = self.checkpoints()
        if not checkpoints:
            return f"there is no checkpoint, so start anew with: afterflow train --from {self.record_file}"
        return f"{checkpoints[-1].name} is whole; mend that, then go on with: afterflow train --resume {self.path}"

    def sample_sheets(self) -> list[Path]:
        """Return the sample pictures, oldest first: of clips the GIF, of images the sheet."""
        files = sorted((self.path / "samples").glob("step_*.*"))
        return [file for file in files if file.suffix == ".gif" or file.with_suffix(".gif") not in files]

    def result(self) -> Path | None:
        """Return the folder of the LoRA or pipeline that the run left at its end; None while there is none."""
        return next((self.path / name for name in RESULTS if (self.path / name).is_dir()), None)

    def has_result_of(self, limits: tuple[int, float | None]) -> bool:
        """Return whether the run left the result of a run of this length, in iterations and seconds.

        A run that was extended and died before it left another result still has the one from before.
        """
        result = self.result()
        return result is not None and (not (result / RECORD_MARK).is_file() or RunFolder(result).limits() == limits)

    def check_safe(self) -> None:
        """Check that no link leads out of the folder, and that what the run will replace is of a run.

        InputError or OutputError says what is not.
        """
        check_links(self.path)
        if self.record_file.exists() and not is_of_run(self.path):
            raise InputError(f"{self.record_file} is not what afterflow writes and is not replaced; move it away")
        written = [*(self.path / name for name in WRITTEN), *(self.path / "samples").glob("step_*")]
        written += [path for path in self.picture_folder.rglob("*") if not path.is_dir()]
        for path in written if not self.record_file.exists() else ():
            check_own_file(path, lambda _: False)
        for name in RESULTS:
            for path in (self.path / name, self.path / f"{name}.partial"):
                check_own(path, is_of_run, RECORD_MARK)

    def has_ended(self, iterations: int, budget_seconds: float | None) -> bool:
        """Return whether the run left a result and did so many iterations, or used up so many seconds."""
        lines = self.metrics() if self.has_result_of((iterations, budget_seconds)) else []
        if not lines:
            return False
        return Budget(iterations, budget_seconds, lines[-1]["seconds_trained"]).ends(lines[-1]["step"])


def step_name(step: int) -> str:
    """Return the name of a step's stored pictures."""
    return "base" if step == BASE_STEP else f"step_{step:06d}"


def step_of_name(name: str) -> int | None:
    """Return the step whose stored pictures have that name; None where it is no such name."""
    if name == "base":
        return BASE_STEP
    number = name.removeprefix("step_")
    return int(number) if name != number and number.isascii() and number.isdigit() and 6 <= len(number) <= 12 else None


RECORD_MARK = "run.json"
"""The file that says of a folder that a run left it."""


def is_of_run(folder: Path) -> bool:
    """Return whether a folder carries the record of a run."""
    return holds_object(folder / RECORD_MARK, "config")


def read_record(file: Path) -> dict[str, Any]:
    """Return the JSON of a run.json.  InputError names the file and what is wrong with it."""
    if not file.is_file():
        raise InputError(f"{file}: no such file; a run is recorded in runs/NAME/run.json")
    record = read_json(file)
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise InputError(f'{file}: it has no "config", so afterflow did not write it')
    resumed = record.get("resumed", [])
    entries = resumed if isinstance(resumed, list) else [None]
    of_entry = lambda part: [part, part.get("contents", {}), part.get("distribution", {})]
    parts = [of_entry(part) if isinstance(part, dict) else [None] for part in (record, *entries)]
    if not all(isinstance(part, dict) for of_one in parts for part in of_one):
        raise InputError(f"{file}: its contents or resumed are not what afterflow writes; the file is damaged")
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


def folder_of_lora(lora: Path) -> RunFolder | None:
    """Return the folder with the record of a LoRA's file: the file's own, or the one above; None without a record."""
    folders = [RunFolder(folder) for folder in (lora.parent, lora.parent.parent)]
    return next((folder for folder in folders if folder.record_file.is_file()), None)


def read_object(file: Path) -> dict[str, Any]:
    """Return what a file of JSON holds.  InputError where that is no object."""
    value = read_json(file)
    if not isinstance(value, dict):
        raise InputError(f"{file}: it holds no JSON object, so afterflow did not write it")
    return value


def read_lines(file: Path, numbers: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the whole lines of a .jsonl file; the last may be half written, and no file has no lines.

    InputError names the first line that is no object of JSON, or in which one of `numbers` is none.
    """
    if not file.is_file():
        return []
    lines = []
    for n, text in enumerate(read_text(file).split("\n"), 1):
        if not text.endswith("}"):
            continue
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict) or not all(is_count(line.get(name)) for name in numbers):
            named = f" with numbers as {' and '.join(numbers)}" if numbers else ""
            raise InputError(f"{file}:{n}: no JSON object{named}; the file is damaged, or afterflow did not write it")
        lines.append(line)
    return lines


def rewards_of(line: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return name → rewards of the prompts, of a line of held_out.jsonl."""
    return {name: values for name, values in line.items() if isinstance(values, list)}


def are_repeated_rows(value: object, rows: int) -> TypeGuard[dict[str, int]]:
    """Return whether a value of JSON is what `repeated_rows` returns of so many rows."""
    if not isinstance(value, dict):
        return False
    known = {str(row): row for row in range(rows)}
    return all(row in known and type(first) is int and 0 <= first < known[row] for row, first in value.items())


def is_count(value: object) -> bool:
    """Return whether a value of JSON is a number from 0 to the largest count."""
    return is_json_number(value) and 0 <= value <= LARGEST  # type: ignore[operator]


def is_json_number(value: object) -> bool:
    """Return whether a value of JSON is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def duration(seconds: float) -> str:
    """Return seconds as a person says them: 45 s, 12 min, 3.4 h, 2.1 days."""
    for unit, size, limit in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds / size < limit:
            return f"{seconds / size:.2g} {unit}" if unit == "h" else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.2g} days"
