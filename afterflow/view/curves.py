"""Curves of a run: every number of its metrics, thinned to what a screen shows, and held-out means with intervals."""

import math
import re
from array import array
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..experiment.run_folder import REPEATED, are_repeated_rows, rewards_of
from ..train.repeated_prompts import mean_and_error, prompts_of_rows
from .growing_file import GrowingFile, is_number

MOST_POINTS = 600
"""Number of points of a curve that a page gets, at most."""
Z = 1.96
"""Standard errors on either side of a mean that 95 % of means fall within."""


class MetricCurves:
    """The numbers of metrics.jsonl by name, in 12 bytes each, and what was added since the last time."""

    def __init__(self, file: Path, run_folder: Path) -> None:
        self.file = GrowingFile(file, run_folder)
        self.series: dict[str, tuple[array, array]] = {}
        """Name → iterations and values."""
        self.alarms: list[int] = []
        """Iterations at which a trained reward rose while a hidden one fell."""

    def update(self) -> None:
        """Read the lines that are new."""
        if not self.file.changed():
            return
        anew, lines = self.file.read()
        if anew:
            self.series, self.alarms = {}, []
        for names, alike in groupby(lines, key=tuple):
            self._add(names, list(alike))

    def _add(self, names: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> None:
        """Add lines that have the same names, name by name; what is no number is left out."""
        steps = [int(line["step"]) for line in lines]
        for name in names:
            column = [line[name] for line in lines]
            pairs = (steps, column)
            if set(map(type, column)) != {float}:  # the check of each value would take most of the time
                known = [i for i, value in enumerate(column) if is_number(value)]
                pairs = [steps[i] for i in known], [column[i] for i in known]
            if name != "step" and pairs[0]:
                for values, new in zip(self.series.setdefault(name, (array("q"), array("f"))), pairs):
                    values.extend(new)
            if name == "alarm":
                self.alarms += [step for step, value in zip(steps, column) if value]

    def thinned(self, names: Sequence[str]) -> dict[str, list[list[float | None]]]:
        """Return the curves of these names as lists of [iteration, value]; a name without one is left out."""
        return {name: thin(*self.series[name]) for name in names if name in self.series}


def thin(steps: Sequence[int], values: Sequence[float], most: int = MOST_POINTS) -> list[list[float | None]]:
    """Return at most `most` points [step, value] of a curve: the lowest and the highest of each stretch of it."""
    x, y = np.asarray(steps), np.asarray(values, np.float64)
    chosen = np.arange(len(x))
    if len(x) > most:
        edges = np.linspace(0, len(x), most // 2 + 1).astype(int)
        low, high = np.where(np.isfinite(y), y, np.inf), np.where(np.isfinite(y), y, -np.inf)
        ends = [(a + low[a:b].argmin(), a + high[a:b].argmax()) for a, b in pairwise(edges)]
        chosen = np.unique(ends)
    return [[int(step), finite_or_none(value)] for step, value in zip(x[chosen].tolist(), y[chosen].tolist())]


def finite_or_none(value: float) -> float | None:
    """Return a number to six digits, as JSON holds it; None for one that is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


class HeldOutCurves:
    """Means of held-out rewards with intervals, one point for each measurement."""

    def __init__(self, file: Path, run_folder: Path) -> None:
        self.file = GrowingFile(file, run_folder)
        self.points: list[dict[str, Any]] = []
        """{"step", "means": name → [mean, low, high, number of prompts]}, oldest first."""

    def thinned(self) -> list[dict[str, Any]]:
        """Return at most MOST_POINTS points, spread over all, with the first and the last."""
        chosen = np.linspace(0, len(self.points) - 1, min(len(self.points), MOST_POINTS)).round().astype(int)
        return [self.points[i] for i in chosen]

    def update(self) -> None:
        """Read the lines that are new."""
        if not self.file.changed():
            return
        anew, lines = self.file.read()
        self.points = [] if anew else self.points
        for line in lines:
            repeated = line.get(REPEATED, {})
            self.points.append({"step": int(line["step"]), "means": mean_intervals(rewards_of(line), repeated)})


def mean_intervals(values: Mapping[str, Sequence[Any]], repeated: object) -> dict[str, list[float | None]]:
    """Return name → [mean, low, high, n] of n different prompts with a score; an interval needs two, a mean one.

    The interval is 1.96 standard errors on either side, over prompts.  repeated: the rows that repeat a prompt, as a
    line of held_out.jsonl has them; what is no such thing is taken for none.
    """
    means: dict[str, list[float | None]] = {}
    for name, column in values.items():
        known = [row for row, value in enumerate(column) if is_number(value) and math.isfinite(value)]
        if known:
            rows = repeated if are_repeated_rows(repeated, len(column)) else {}
            prompts = prompts_of_rows(len(column), rows)[known]
            mean, error = mean_and_error(np.array([column[row] for row in known], np.float64), prompts)
            ends = [finite_or_none(mean + sign * Z * error) for sign in (-1, 1)]
            means[name] = [finite_or_none(mean), *ends, len(set(prompts.tolist()))]
    return means


ALARM = re.compile(rb'"alarm": (?!0\.0[,}]|0[,}])')
"""An alarm in a line of metrics, as `json.dumps` writes it."""


class AlarmSearch:
    """Finds the first alarm in metrics.jsonl without parsing it, and reads each part of the file once."""

    def __init__(self, file: Path, run_folder: Path) -> None:
        self.file = GrowingFile(file, run_folder)
        self.first: int | None = None
        """The first iteration with an alarm; None: none so far."""

    def update(self) -> int | None:
        """Read what is new, and return the first iteration with an alarm."""
        anew, content = self.file.read_bytes()
        self.first = None if anew else self.first
        if self.first is None and (match := ALARM.search(content)):
            start = content.rfind(b"\n", 0, match.start()) + 1
            step = re.match(rb'\{"step": (\d{1,15})', content[start:])
            self.first = int(step[1]) if step else None
        return self.first
