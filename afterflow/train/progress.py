"""One line on the terminal: how far, how good, how long yet."""

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """A bar on a terminal; elsewhere a line every so often, since logs keep every redraw."""

    def __init__(self, name: str, first: int, total: int) -> None:
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[health]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.task = self.bar.add_task(name, total=total, completed=first, health="")
        self.name, self.total, self.every = name, total, max(1, total // 50)

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        shown = {name: metrics[name] for name in ("reward", "flow_matching", "clip_fraction", "kl") if name in metrics}
        health = " ".join(f"{name} {value:.4g}" for name, value in shown.items())
        self.bar.update(self.task, completed=step + 1, health=health)
        if not self.bar.console.is_terminal and (step % self.every == 0 or step == self.total - 1):
            print(f"{self.name} {step + 1}/{self.total} {health} ({metrics['seconds']:.0f} s)", flush=True)

    def __enter__(self) -> Self:
        if self.bar.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar.console.is_terminal:
            self.bar.stop()
