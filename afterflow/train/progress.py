"""One line on the terminal: how far, how good, how long yet."""

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from .budget import Budget

PROGRESS_METRICS = (
    "reward",
    "flow_matching",
    "base_loss",
    "correction_loss",
    "teacher_distance",
    "clip_fraction",
    "kl",
    "skipped",
)
"""Metrics of one algorithm or another."""


class Progress:
    """A bar on a terminal; elsewhere a line every so often, since logs keep every redraw."""

    def __init__(self, name: str, budget: Budget, first: int) -> None:
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[step]} {task.fields[health]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.task = self.bar.add_task(name, total=1.0, step=first, health="")
        self.bar.update(self.task, completed=budget.done(first))
        self.name, self.budget, self.told = name, budget, -1

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        shown = {name: metrics[name] for name in PROGRESS_METRICS if name in metrics}
        health = " ".join(f"{name} {value:.4g}" for name, value in shown.items())
        done = self.budget.done(step + 1)
        self.bar.update(self.task, completed=done, step=step + 1, health=health)
        fiftieth = int(50 * done)
        if not self.bar.console.is_terminal and fiftieth > self.told:
            self.told = fiftieth
            print(f"{self.name} {step + 1} ({done:.0%}) {health} ({metrics['seconds']:.0f} s)", flush=True)

    def __enter__(self) -> Self:
        if self.bar.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar.console.is_terminal:
            self.bar.stop()
