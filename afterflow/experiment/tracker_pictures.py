"""Pictures and held-out tables for trackers: they get the files that the run has stored, and nothing is drawn again."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from PIL import Image

from ..system.escapes import markdown_text, one_line
from ..system.side_outputs import SideOutputs
from ..system.smaller_pictures import smaller_clip, smaller_picture
from .image_grid import spread_rows
from .setup import TrainingSetup

TABLE_ROWS = 256
"""Number of held-out prompts in a table, at most, besides those with a picture."""
LONGEST_PROMPT = 300
"""Characters of a prompt in a table."""

AS_STORED = 150_000
"""Bytes of a file that is given as it is stored; larger ones are made smaller."""
SHEET_SIDE, PICTURE_SIDE = 1600, 512
"""Longest side in pixels of a sheet, and of a picture, that is made smaller."""

Cell = str | int | float | Path | None
"""A text, a number, a stored picture, or nothing."""


@dataclass(frozen=True)
class HeldOutMeasurement:
    """What one measurement on held-out prompts gave."""

    step: int
    records: Sequence[Mapping[str, Any]]
    """P records of the prompts."""
    before: Mapping[str, Sequence[float]]
    """Each reward of the prompts at the first measurement, (P,)."""
    now: Mapping[str, Sequence[float]]
    """The same at this one."""
    pictures: Mapping[int, Path]
    """The stored pictures, by the row of their prompt."""

    def table(self) -> tuple[list[str], list[list[Cell]]]:
        """Return the names of the columns, and a row for each prompt, or for so many spread over all."""
        scores = [f"{name} {when}" for name in self.now for when in ("before", "now")]
        rows = sorted({*spread_rows(len(self.records), TABLE_ROWS).tolist(), *self.pictures})
        return ["row", "picture", "prompt", "tag", *scores], [self._cells(row) for row in rows]

    def _cells(self, row: int) -> list[Cell]:
        record = self.records[row]
        texts = [str(record["prompt"])[:LONGEST_PROMPT], str(record.get("tag") or "")]
        scores = [score_of(values.get(name), row) for name in self.now for values in (self.before, self.now)]
        return [row, self.pictures.get(row), *texts, *scores]


def score_of(values: Sequence[float] | None, row: int) -> float | None:
    """Return the score of a prompt; None where it has none."""
    return values[row] if values is not None and row < len(values) and math.isfinite(values[row]) else None


class TrackerOutlet(Protocol):
    """Gives pictures to one tracker, in its own terms."""

    def show(self, step: int, name: str, file: Path) -> None:
        """Give it a picture, or a clip as GIF, of iteration `step`."""

    def tabulate(self, name: str, measurement: HeldOutMeasurement) -> None:
        """Give it the scores of held-out prompts, with the pictures that are stored."""


class TensorBoardOutlet:
    """Writes files as they are into the events of tensorboard, which shows a GIF in motion, and tables as Markdown."""

    def __init__(self, tracker: Any) -> None:
        self.writer = tracker.tracker

    def show(self, step: int, name: str, file: Path) -> None:
        """Write a picture."""
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        content = file.read_bytes()
        with Image.open(io.BytesIO(content)) as image:  # reads the size alone
            width, height = image.size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
        self.writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def tabulate(self, name: str, measurement: HeldOutMeasurement) -> None:
        """Write a table, and each picture under the number of its row."""
        columns, rows = measurement.table()
        drawn = columns.index("picture")
        lines = [[cell for i, cell in enumerate(line) if i != drawn] for line in (columns, *rows)]
        self.writer.add_text(f"{name}/scores", markdown_table(lines), measurement.step)
        for row, file in measurement.pictures.items():
            self.show(measurement.step, f"{name}/{row:03d}", file)


def markdown_table(lines: Sequence[Sequence[Cell]]) -> str:
    """Return lines of cells, the names of the columns first, as a table in Markdown."""
    rows = [[markdown_text(cell_words(cell)) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def cell_words(cell: Cell) -> str:
    """Return a cell as text."""
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


@dataclass(frozen=True)
class LibraryOutlet:
    """Gives files to wandb or trackio, whose tables hold pictures."""

    tracker: Any
    library: Any
    """The module of the tracker."""
    picture: Callable[[Path], Any]
    """Makes what the library takes for a picture."""
    text: Callable[[str], str]
    """Escapes a text for a cell of its tables."""

    def show(self, step: int, name: str, file: Path) -> None:
        """Log a picture."""
        self.tracker.log({name: self.picture(file)}, step=step)

    def tabulate(self, name: str, measurement: HeldOutMeasurement) -> None:
        """Log a table."""
        columns, rows = measurement.table()
        data = [[self._value(cell) for cell in row] for row in rows]
        table = self.library.Table(columns=[one_line(column) for column in columns], data=data)
        self.tracker.log({f"{name}/scores": table}, step=measurement.step)

    def _value(self, cell: Cell) -> Any:
        if isinstance(cell, Path):
            return self.picture(cell)
        return self.text(cell) if isinstance(cell, str) else cell


def wandb_outlet(tracker: Any) -> LibraryOutlet:
    """Return the outlet for wandb, which plays GIFs as videos and shows texts of tables as they are."""
    wandb = import_module("wandb")
    video = lambda file: wandb.Video(str(file), format="gif")
    picture = lambda file: video(file) if file.suffix == ".gif" else wandb.Image(str(file))
    return LibraryOutlet(tracker, wandb, picture, one_line)


def trackio_outlet(tracker: Any) -> LibraryOutlet:
    """Return the outlet for trackio; its videos play no GIF, its images do, and texts of its tables are Markdown."""
    trackio = import_module("trackio")
    return LibraryOutlet(tracker, trackio, lambda file: trackio.Image(str(file)), markdown_text)


OUTLETS: dict[str, Callable[[Any], TrackerOutlet]] = {
    "tensorboard": TensorBoardOutlet,
    "wandb": wandb_outlet,
    "trackio": trackio_outlet,
}


class TrackerPictures:
    """Gives the tracker of a run what the run stores, from the first process; what fails ends nothing."""

    def __init__(self, setup: TrainingSetup, side: SideOutputs) -> None:
        self.side, self.name = side, setup.run.logging.tracker
        self.outlet: TrackerOutlet | None = None
        trackers = setup.processes.accelerator.trackers  # none where it could not be started
        if setup.processes.main and setup.run.logging.tracker_pictures and trackers:
            with self._giving():
                self.outlet = OUTLETS[self.name](trackers[0])

    def _giving(self, step: int | None = None) -> AbstractContextManager[None]:
        return self.side.making(f"pictures of {self.name}", step)

    def show_samples(self, step: int, files: Sequence[Path]) -> None:
        """Give it the sheet of sample pictures of iteration `step`, and the clips in motion."""
        if self.outlet is None:
            return
        with self._giving(step), TemporaryDirectory() as folder:
            for file in files:
                name = "samples/clips" if file.suffix == ".gif" else "samples/sheet"
                self.outlet.show(step, name, smaller_file(file, Path(folder), SHEET_SIDE))

    def tabulate(self, measurement: HeldOutMeasurement) -> None:
        """Give it the scores of held-out prompts, with the pictures that are stored."""
        if self.outlet is None:
            return
        with self._giving(measurement.step), TemporaryDirectory() as folder:
            stored = measurement.pictures.items()
            smaller = {row: smaller_file(file, Path(folder), PICTURE_SIDE) for row, file in stored}
            self.outlet.tabulate("held_out", replace(measurement, pictures=smaller))


def smaller_file(file: Path, folder: Path, side: int) -> Path:
    """Return a stored file, or where that is large one in `folder` of at most `side` pixels a side."""
    if file.stat().st_size <= AS_STORED:
        return file
    moves = file.suffix == ".gif"
    smaller = folder / (file.name if moves else f"{file.stem}.jpg")
    smaller.write_bytes((smaller_clip if moves else smaller_picture)(file.read_bytes(), side))
    return smaller
