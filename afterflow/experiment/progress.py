"""How far a run is: one reckoning and one choice of words, for a run under way, `afterflow status` and the page."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from rich.cells import cell_len

from ..system.escapes import one_line
from ..train.budget import Budget
from .run_folder import RunFolder, duration, is_json_number

RECENT = 20
"""Number of iterations that predict the next ones, and whose mean is held against that of as many before."""
MAIN_METRICS = (
    "reward",
    "preference_accuracy",
    "flow_matching",
    "base_loss",
    "preference_loss",
    "teacher_distance",
)
"""Metrics that say how training goes, the first that a run has."""
SPREAD = ("eval/diversity", "eval/std")
"""What is measured on held-out images and is no reward."""
ARROWS = {"up": "↑", "down": "↓", "flat": "→"}
QUIET, PAUSES = 10, 3
"""After how many iteration times without a new line, and how many times its longest known pause, a run seems gone."""

MetricLines = Sequence[Mapping[str, float]]
Direction = Literal["up", "down", "flat"]
RunState = Literal["training", "quiet", "ended"]


@dataclass(frozen=True)
class Trend:
    """A metric, and where it goes."""

    name: str
    value: float
    """Mean over the last iterations; where there are few, the last value."""
    before: float | None = None
    """Mean over as many iterations before; None where there are few."""
    direction: Direction = "flat"
    """Flat where the two means differ by no more than one standard error."""


@dataclass(frozen=True)
class RunProgress:
    """How far a run is, from its limits and from the last lines of its metrics, oldest first."""

    budget: Budget
    lines: MetricLines
    items: tuple[int, str] | None = None
    """Number of what an iteration draws or learns from, and its name in the plural; None: not known."""

    @property
    def done(self) -> int:
        """The number of iterations that have ended."""
        return int(self.lines[-1]["step"]) + 1 if self.lines else 0

    @property
    def share(self) -> float:
        """The share in [0, 1] that is done, by whichever limit is nearer."""
        return self.budget.fraction_done(self.done)

    @property
    def seconds(self) -> float:
        """The median seconds of training of the last iterations, of which there must be one."""
        ends = [line["seconds_trained"] for line in self.lines[-RECENT - 1 :]]
        return statistics.median([b - a for a, b in pairwise(ends)] or ends)

    @property
    def remaining(self) -> float:
        """The seconds until the nearer limit, with what evaluation, pictures and checkpoints take on the way."""
        training = self.seconds * (self.budget.iterations - self.done)
        if self.budget.seconds is not None:
            training = min(training, self.budget.seconds - self.budget.used)
        return max(0.0, training) * time_beside(self.lines)

    @property
    def longest_pause(self) -> float:
        """The most seconds beside training between two iterations, such as those of a measurement, that lines tell."""
        lines = [line for line in self.lines if is_json_number(line.get("seconds"))]
        beside = [line["seconds"] - line["seconds_trained"] for line in lines[:1] if line["step"] == 0]
        beside += [line["seconds/eval"] for line in lines if is_json_number(line.get("seconds/eval"))]
        for before, after in pairwise(lines):
            if after["step"] == before["step"] + 1:
                passed, trained = (after[name] - before[name] for name in ("seconds", "seconds_trained"))
                beside.append(passed - trained)
        return max(beside, default=0.0)

    @property
    def position(self) -> str:
        """The iteration, of how many where their number ends the run, and the share that is done."""
        limit = f" of {self.budget.iterations}" if self._ends_by_iterations else ""
        return f"iteration {self.done}{limit} ({self.share:.0%})"

    @property
    def _ends_by_iterations(self) -> bool:
        return self.share <= self.done / self.budget.iterations

    @property
    def pace(self) -> str:
        """The seconds of an iteration, in words."""
        return f"{self.seconds:.3g} s an iteration"

    def sentence(self, ended: bool) -> str:
        """Return in words how far a run is that has an iteration behind it."""
        if ended:
            return f"{self.position}, ended after {duration(self.lines[-1]['seconds_trained'])} of training"
        return f"{self.position}, {self.pace}, about {duration(self.remaining)} to go"

    def parts(self, arrows: Mapping[str, str]) -> list["ProgressPart"]:
        """Return what somebody who waits wants to know, in order; `arrows` stand for up, down and flat."""
        short = f"{self.done}/{self.budget.iterations}" if self._ends_by_iterations else f"{self.done}"
        parts = [ProgressPart(self.position, short, 0)]
        if not self.lines:
            return parts
        left = duration(self.remaining)
        parts.append(ProgressPart(f"about {left} to go", f"{left} to go", 1))
        trend, held_out = main_trend(self.lines), held_out_reward(self.lines)
        if trend is not None:
            value = f"{trend.name} {trend.value:.3g}"
            if trend.before is not None:
                value += f" {arrows[trend.direction]}"
            before = "" if trend.before is None else f" (before {trend.before:.3g})"
            parts.append(ProgressPart(value + before, value, 2))
        if held_out is not None:
            words = f"{one_line(held_out[0])} {held_out[1]:.3g} held out"
            parts.append(ProgressPart(words, words, 3))
        parts.append(ProgressPart(self.pace, "", 5))
        if self.items is not None and self.seconds > 0:
            words = f"{self.items[0] / self.seconds:.3g} {self.items[1]}/s"
            parts.append(ProgressPart(words, words, 4))
        return parts


@dataclass(frozen=True)
class ProgressPart:
    """A part of the line that shows progress."""

    words: str
    short: str
    """The same where there is little room; empty: it is left out there."""
    rank: int
    """Of two parts the one of higher rank is left out first."""


def progress_of(folder: RunFolder, lines: MetricLines) -> RunProgress:
    """Return how far the run in a folder is, from some last lines of its metrics, of which there must be one."""
    iterations, seconds = folder.limits()
    return RunProgress(Budget(iterations, seconds, lines[-1]["seconds_trained"]), lines)


def state_of(folder: RunFolder, progress: RunProgress, now: float) -> tuple[RunState, float]:
    """Return whether a run has ended, trains, or is quiet for so long that it seems gone, and the seconds it is quiet.

    A run that is trained further still has the result from before, which is older than its lines, and of a shorter run.

    Args:
        folder: The run's folder.
        progress: How far it is, from lines of its metrics.
        now: The time in seconds since 1970.
    """
    written, result = folder.metrics_file.stat().st_mtime, folder.result()
    idle = now - written
    if result is not None and result.stat().st_mtime >= written:
        return "ended", idle
    if progress.share >= 1 and folder.has_result_of(folder.limits()):
        return "ended", idle
    is_gone = idle > max(QUIET * max(progress.seconds, 1), PAUSES * progress.longest_pause)
    return "quiet" if is_gone else "training", idle


def progress_words(name: str, parts: Sequence[ProgressPart], width: int | None = None) -> str:
    """Return a line of at most `width` columns with as many parts as fit, or one that is too long with the first."""
    line = ""
    for line in shorter_and_shorter(name, parts):
        if width is None or cell_len(line) <= width:
            break
    return line


def shorter_and_shorter(name: str, parts: Sequence[ProgressPart]) -> Iterator[str]:
    """Yield the line with all parts, without the least of them, with few words for each, and with fewer and fewer."""
    yield f"{name}: " + ", ".join(part.words for part in parts)
    short = [part for part in parts if part.short]
    yield f"{name}: " + ", ".join(part.words for part in short)
    yield f"{name}: " + ", ".join(part.short for part in short)
    for rank in sorted((part.rank for part in short), reverse=True):
        yield ", ".join(part.short for part in short if part.rank <= rank)


def main_trend(lines: MetricLines) -> Trend | None:
    """Return how the first of `MAIN_METRICS` goes that the last line has; values that are not finite count nothing."""
    name = next((name for name in MAIN_METRICS if is_json_number(lines[-1].get(name))), None)
    if name is None:
        return None
    last = lines[-1][name]
    values = [line[name] for line in lines[-2 * RECENT :] if is_json_number(line.get(name))]
    values = [value for value in values if math.isfinite(value)]
    half = len(values) // 2
    if half < 2 or not math.isfinite(last):
        return Trend(name, last)
    before, now = values[-2 * half : -half], values[-half:]
    difference = statistics.mean(now) - statistics.mean(before)
    error = math.sqrt((statistics.variance(now) + statistics.variance(before)) / half)
    direction: Direction = "flat" if abs(difference) <= error else "up" if difference > 0 else "down"
    return Trend(name, statistics.mean(now), statistics.mean(before), direction)


def held_out_reward(lines: MetricLines) -> tuple[str, float] | None:
    """Return name and last mean of a held-out reward: of the first that is not trained, else of the first."""
    line = next((line for line in reversed(lines) if held_out_names(line)), None)
    if line is None:
        return None
    names = held_out_names(line)
    name = next((name for name in names if f"reward/{name}" not in line), names[0])
    return name, line[f"eval/{name}"]


def held_out_names(line: Mapping[str, float]) -> list[str]:
    """Return the rewards that were measured on held-out prompts in an iteration."""
    return [
        name.removeprefix("eval/")
        for name, value in line.items()
        if name.startswith("eval/") and name not in SPREAD and is_json_number(value)
    ]


def time_beside(lines: MetricLines) -> float:
    """Return the seconds that pass for each second of training, at least 1, since the run was last begun or resumed."""
    first = last = lines[-1]
    for line in reversed(lines):
        if not is_json_number(line.get("seconds")) or line["seconds"] > first["seconds"]:
            break
        # Within one session no more seconds are trained than pass, so this line is from before.
        if last["seconds"] - line["seconds"] < last["seconds_trained"] - line["seconds_trained"]:
            break
        first = line
    trained = last["seconds_trained"] - first["seconds_trained"]
    return max(1.0, (last["seconds"] - first["seconds"]) / trained) if trained > 0 else 1.0
