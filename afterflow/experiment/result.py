"""The result of a run: its folder, what it trained, and its metrics as a table and as curves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..system.names import unknown_name
from ..system.optional_dependencies import check_extra
from .run_folder import RunFolder

if TYPE_CHECKING:
    from .curves import Curves

SHOWN_ROWS = 10
"""Number of iterations that a table shows, the first and the last ones."""


class MetricsTable(dict[str, np.ndarray]):
    """Columns of numbers by metric, all of one length, NaN where a metric was not measured.

    `pandas.DataFrame(table)` takes it as it is.
    """

    @classmethod
    def of_lines(cls, lines: Sequence[dict[str, Any]]) -> "MetricsTable":
        """Make a table of lines of metrics.jsonl; what is no number is left out."""
        names = dict.fromkeys(name for line in lines for name, value in line.items() if isinstance(value, int | float))
        return cls({name: np.array([line.get(name, math.nan) for line in lines], np.float64) for name in names})

    def rows(self) -> list[dict[str, float]]:
        """Return a row for each iteration, with what was measured in it."""
        columns = {name: values.tolist() for name, values in self.items()}
        count = len(next(iter(columns.values()), ()))
        return [{name: column[i] for name, column in columns.items() if column[i] == column[i]} for i in range(count)]

    def shown(self) -> list[list[str]]:
        """Return the head and the first and last rows as texts; metrics of seconds and of work are left out."""
        names = [name for name in self if not name.startswith(("seconds", "nfe/"))]
        rows = [[f"{row[name]:.4g}" if name in row else "" for name in names] for row in self.rows()]
        half = SHOWN_ROWS // 2
        short = rows if len(rows) <= SHOWN_ROWS else [*rows[:half], ["…"] * len(names), *rows[-half:]]
        return [names, *short]

    def __repr__(self) -> str:
        lines = self.shown()
        widths = [max(map(len, column)) for column in zip(*lines)]
        return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines)

    def _repr_html_(self) -> str:
        head, *rows = self.shown()
        line = lambda cells, tag: f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
        return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


@dataclass(frozen=True)
class Result:
    """What a run left.  It stands for its folder where a path is wanted."""

    folder: Path
    """The folder of the run, runs/NAME."""

    @property
    def lora(self) -> Path | None:
        """The folder of the LoRA, which diffusers loads; None where all weights were trained."""
        return self._existing("lora")

    @property
    def model(self) -> Path | None:
        """The folder of the pipeline, where all weights were trained."""
        return self._existing("model")

    @property
    def metrics(self) -> MetricsTable:
        """The metrics of every iteration, by the names of docs/metrics.md."""
        return MetricsTable.of_lines(RunFolder(self.folder).metrics())

    def plot(self, *names: str) -> "Curves":
        """Return a figure of these metrics over the iterations; without names, of the rewards and held-out rewards.

        MissingDependencyError where matplotlib is not installed, ConfigError for a metric that was not measured.
        """
        check_extra("a plot", ["matplotlib"], "report")
        table = self.metrics
        for name in names:
            if name not in table:
                raise unknown_name("metric of this run", name, table)
        from .curves import Curves

        return Curves(table, names or default_curves(table))

    def _existing(self, name: str) -> Path | None:
        return self.folder / name if (self.folder / name).is_dir() else None

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def __fspath__(self) -> str:
        return str(self.folder)


def default_curves(table: MetricsTable) -> tuple[str, ...]:
    """Return the metrics to look at first: rewards and held-out ones, or the losses where images teach."""
    rewards = tuple(name for name in table if name == "reward" or name.startswith(("reward/", "eval/")))
    return rewards or tuple(name for name in table if "loss" in name or name in ("flow_matching", "teacher_distance"))
