"""Where progress is shown: a line of a terminal, a cell of a notebook, lines of a log, or nowhere."""

import html
import logging
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import TracebackType
from typing import Any, Protocol, Self

from ..system.escapes import one_line
from ..system.running_time import running_seconds
from ..system.side_outputs import SideOutputs
from ..system.streams import LastingStream
from ..system.terminal_line import TerminalLine
from ..train.budget import Budget
from .progress import ARROWS, RECENT, MetricLines, RunProgress, held_out_names, progress_words

_log = logging.getLogger(__name__)

KIND = "the progress line"
"""What a failure of it is called."""


class ProgressDisplay(Protocol):
    """Shows one state after another."""

    seconds_between: float
    """Seconds between two states that are shown, at the least, but for the last."""
    waits: bool
    """Whether it shows a run of which no iteration has ended."""

    def show(self, name: str, progress: RunProgress) -> None:
        """Show how far the run of that name is."""

    def close(self) -> None:
        """Leave what was shown last."""


class LogDisplay:
    """Logs a line for every iteration, since a file keeps every state."""

    seconds_between, waits = 0.0, False

    def show(self, name: str, progress: RunProgress) -> None:
        """Log how far the run is."""
        _log.info(progress_words(name, progress.parts(arrows_of(sys.stdout))))

    def close(self) -> None:
        """Leave the lines as they are."""


class TerminalDisplay:
    """Writes one line of a terminal again and again."""

    seconds_between, waits = 0.1, True

    def __init__(self) -> None:
        streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, LastingStream)]
        first, *others = [stream for stream in streams if stream.isatty()] or [LastingStream(sys.stdout, "stdout")]
        self.line = TerminalLine(first, others)

    def show(self, name: str, progress: RunProgress) -> None:
        """Show as much of the state as the terminal is wide."""
        parts = progress.parts(arrows_of(self.line.stream))
        self.line.show(progress_words(name, parts, self.line.width))

    def close(self) -> None:
        """Leave the cursor on a new line."""
        self.line.close()


class NotebookDisplay:
    """Updates one output of a notebook's cell."""

    seconds_between, waits = 0.5, True

    def __init__(self) -> None:
        self.handle: Any = None

    def show(self, name: str, progress: RunProgress) -> None:
        """Show the state as text and as a bar."""
        words = progress_words(name, progress.parts(ARROWS))
        bar = f'<progress value="{progress.share:.4f}" max="1"></progress> {html.escape(words)}'
        content = {"text/plain": words, "text/html": bar}
        if self.handle is None:
            self.handle = import_module("IPython.display").display(content, raw=True, display_id=True)
        else:
            self.handle.update(content, raw=True)

    def close(self) -> None:
        """Leave the output as it is."""


class Progress:
    """Shows how far a run is, from the metrics of its iterations as they come."""

    def __init__(
        self,
        name: str,
        budget: Budget,
        side: SideOutputs,
        items: tuple[int, str],
        earlier: MetricLines = (),
        shows: bool = True,
    ) -> None:
        """Describe a run.

        Args:
            name: Its name.
            budget: Its limits.
            side: What may fail without ending the run.
            items: Number of what an iteration draws or learns from, and its name in the plural.
            earlier: Lines of its metrics, where it is resumed.
            shows: Whether this process shows it.
        """
        self.name, self.budget, self.side, self.items, self.shows = one_line(name), budget, side, items, shows
        self.lines = shortened(earlier)
        self.display: ProgressDisplay | None = None
        self.shown, self.waiting = -1.0, False

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show that iteration `step` is finished, with its metrics."""
        self.lines = shortened([*self.lines, {"step": step, **metrics}])
        if self.display is not None:
            self.waiting = True
            if running_seconds() - self.shown >= self.display.seconds_between:
                self._update(self.display)

    def _update(self, display: ProgressDisplay) -> None:
        self.shown, self.waiting = running_seconds(), False
        display.show(self.name, RunProgress(self.budget, self.lines, self.items))

    def __enter__(self) -> Self:
        with self.side.making(KIND):
            self.display = display_here() if self.shows else None
            if self.display is not None and self.display.waits:
                self._update(self.display)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.display is None:
            return
        with self.side.making(KIND):
            if self.waiting:
                self._update(self.display)
        with self.side.making(KIND):
            self.display.close()


def shortened(lines: MetricLines) -> Sequence[Mapping[str, float]]:
    """Return lines without those that tell nothing of progress: the first stays, the last measurement, and the last."""
    recent = 2 * RECENT + 1
    if len(lines) <= 2 * recent:
        return lines
    measured = [line for line in lines[1:-recent] if held_out_names(line)]
    return [lines[0], *measured[-1:], *lines[-recent:]]


def display_here() -> ProgressDisplay:
    """Return the display for where this process prints to."""
    if in_notebook():
        return NotebookDisplay()
    return TerminalDisplay() if sys.stdout.isatty() else LogDisplay()


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook.  IPython is asked only where it is imported already."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def arrows_of(stream: Any) -> Mapping[str, str]:
    """Return what stands for up, down and flat on a stream: arrows, or the words where it does not know arrows."""
    try:
        "".join(ARROWS.values()).encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return {direction: direction for direction in ARROWS}
    return ARROWS
