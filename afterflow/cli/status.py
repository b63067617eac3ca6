"""afterflow status: how far a run is, how long it will take, and whether it is well."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tyro.conf import Positional

from ..experiment.run_folder import RESULTS, RunFolder, duration
from ..system.errors import InputError
from ..system.escapes import printable
from .parsing import parse_options

RECENT = 20
"""Number of iterations whose time predicts that of the next ones."""
QUIET = 10
"""Number of iteration times without a new line, after which a run seems to be gone."""

MetricLines = Sequence[Mapping[str, float]]


def status(args: Sequence[str]) -> None:
    """Show the progress and the health of runs."""
    parse_options(Status, args, "afterflow status")()


@dataclass(frozen=True)
class Status:
    """Show the progress and the health of runs, without disturbing them."""

    runs: Positional[tuple[str, ...]] = ()
    """Folders of runs, as runs/NAME.  None: a line for each run in runs/."""

    def __call__(self) -> None:
        """Print the lines of every run, or the first line of each that is in runs/."""
        for path in map(Path, self.runs):
            print("\n".join(map(printable, status_lines(RunFolder(path), time.time()))))
        if self.runs:
            return
        nothing = ["no run is in runs/; afterflow recipes lists what to train"]
        print("\n".join(map(printable, run_lines(Path("runs"), time.time()) or nothing)))


def run_lines(folder: Path, now: float) -> list[str]:
    """Return a line for each run in a folder and below, the one that wrote last at the end."""
    runs = [RunFolder(file.parent) for file in folder.rglob("run.json") if file.parent.name not in RESULTS]
    lines = []
    for run in sorted(runs, key=last_written):
        try:
            first, *others = status_lines(run, now)
        except InputError as error:
            first, others = str(error), []
        alarms = sum(line.startswith("  !") for line in others)
        lines.append(first + (f"  ({alarms} to look at: afterflow status {run.path})" if alarms else ""))
    return lines


def last_written(run: RunFolder) -> float:
    """Return the time (seconds) at which a run last wrote its metrics, or its record before."""
    return (run.metrics_file if run.metrics_file.is_file() else run.record_file).stat().st_mtime


def status_lines(folder: RunFolder, now: float) -> list[str]:
    """Return what a run's folder says at time `now` (seconds).  InputError where there is no run."""
    if not folder.record_file.is_file():
        raise InputError(f"{folder.path}: no run is there; runs are kept in runs/NAME")
    metrics = folder.metrics()
    if not metrics:
        return [f"{folder.path}: no iteration has ended yet"]
    seconds, ended = recent_seconds(metrics), folder.result() is not None
    lines = [f"{folder.path}: {progress_line(folder.limits(), metrics, seconds, ended)}"]
    idle = now - folder.metrics_file.stat().st_mtime
    if not ended and idle > QUIET * max(seconds, 1):
        resume = f"afterflow train --resume {folder.path}"
        lines.append(f"  it has written nothing for {duration(idle)}; go on with: {resume}")
    checkpoints = folder.checkpoints()
    lines.append(f"  last checkpoint: {checkpoints[-1].name if checkpoints else 'none yet'}")
    curves = [name for name in metrics[-1] if name == "reward" or name.startswith(("reward/", "eval/"))]
    lines += [f"  {line}" for line in (first_and_last(name, metrics) for name in curves) if line]
    return lines + [f"  ! {line}" for line in health_warnings(metrics)]


def progress_line(limits: tuple[int, float | None], metrics: MetricLines, seconds: float, ended: bool) -> str:
    """Return how far a run is; `limits` are iterations and seconds of training, `seconds` those of an iteration."""
    iterations, budget = limits
    done, last = int(metrics[-1]["step"]) + 1, metrics[-1]
    share = last["seconds_trained"] / budget if budget else done / iterations
    position = f"iteration {done}" + ("" if budget else f" of {iterations}") + f" ({min(share, 1):.0%})"
    if ended:
        return f"{position}, ended after {duration(last['seconds_trained'])} of training"
    remaining = budget - last["seconds_trained"] if budget else seconds * (iterations - done)
    return f"{position}, {seconds:.3g} s an iteration, about {duration(max(0, remaining))} to go"


def recent_seconds(metrics: MetricLines) -> float:
    """Return the median seconds of the last iterations."""
    ends = [line["seconds_trained"] for line in metrics[-RECENT - 1 :]]
    return statistics.median([b - a for a, b in pairwise(ends)] or ends)


def first_and_last(name: str, metrics: MetricLines) -> str | None:
    """Return the first and last value of a metric that is not measured at every iteration."""
    values = [line[name] for line in metrics if isinstance(line.get(name), int | float)]
    return f"{name} {values[0]:.4g} → {values[-1]:.4g}" if values else None


def health_warnings(metrics: MetricLines) -> list[str]:
    """Return a sentence for each thing in the last iterations that somebody should look at."""
    recent, sentences = metrics[-RECENT:], []
    alarms = [int(line["step"]) for line in metrics if line.get("alarm")]
    if alarms:
        sentences.append(
            f"ALARM since iteration {alarms[0]}: a reward that is not trained has fallen; look at samples/"
        )
    for name in metrics[-1]:
        if name.startswith("invalid/"):
            sentences.append(f"{metrics[-1][name]:.0%} of the last images have no {name.removeprefix('invalid/')}")
    if any(not math.isfinite(line.get("grad_norm", 0)) for line in recent):
        sentences.append("a gradient was not finite")
    tied = statistics.mean(line.get("zero_std_groups", 0) for line in recent)
    if tied > 0.5:
        sentences.append(f"{tied:.0%} of the groups have one reward for all their images, and teach nothing")
    clipped = statistics.mean(line.get("clip_fraction", 0) for line in recent)
    if clipped > 0.5:
        sentences.append(f"{clipped:.0%} of the ratios are clipped; lower the learning rate, or widen clip")
    masked = statistics.mean(line.get("masked_fraction", 0) for line in recent)
    if masked > 0.5:
        sentences.append(f"{masked:.0%} of the steps are masked; lower the learning rate, or raise divergence")
    return sentences
