"""Progress of a run in one line: iterations, current metrics, time left."""

import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from ..system.running_time import running_seconds
from .budget import Budget

logger = logging.getLogger(__name__)

PROGRESS_METRICS = (
    "reward",
    "flow_matching",
    "base_loss",
    "correction_loss",
    "preference_loss",
    "preference_accuracy",
    "teacher_distance",
    "clip_fraction",
    "masked_fraction",
    "kl",
    "skipped",
)
"""Metrics that the line shows, where an algorithm has them."""


class Progress:
    """A progress bar on a terminal; elsewhere a logged line for every two percent, since files keep every redraw."""

    def __init__(self, name: str, budget: Budget, first: int) -> None:
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[step]} {task.fields[health]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            get_time=running_seconds,
        )
        self.task = self.bar.add_task(name, total=1.0, step=first, health="")
        self.bar.update(self.task, completed=budget.fraction_done(first))
        self.name, self.budget, self.logged_fiftieths = name, budget, -1
        self.on_terminal = self.bar.console.is_terminal  # which may go meanwhile

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show that iteration `step` is finished, with its metrics."""
        shown = {name: metrics[name] for name in PROGRESS_METRICS if name in metrics}
        health = " ".join(f"{name} {value:.4g}" for name, value in shown.items())
        done = self.budget.fraction_done(step + 1)
        self.bar.update(self.task, completed=done, step=step + 1, health=health)
        fiftieths = int(50 * done)
        if not self.on_terminal and fiftieths > self.logged_fiftieths:
            self.logged_fiftieths = fiftieths
            logger.info(f"{self.name} {step + 1} ({done:.0%}) {health} ({metrics['seconds']:.0f} s)")

    def __enter__(self) -> Self:
        if self.on_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.on_terminal:
            self.bar.stop()
