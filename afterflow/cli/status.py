"""afterflow status: how far a run is, how long it will take, and whether it is well."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from ..experiment.progress import RECENT, progress_of, state_of
from ..experiment.run_folder import RESULTS, RunFolder, duration
from ..system.errors import InputError
from ..system.escapes import printable
from ..view.health import first_alarm, first_and_last, health_warnings
from .parsing import parse_options


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
    progress = progress_of(folder, metrics)
    state, idle = state_of(folder, progress, now)
    lines = [f"{folder.path}: {progress.sentence(state == 'ended')}"]
    if state == "quiet":
        resume = f"afterflow train --resume {folder.path}"
        lines.append(f"  it has written nothing for {duration(idle)}; go on with: {resume}")
    checkpoints = folder.checkpoints()
    lines.append(f"  last checkpoint: {checkpoints[-1].name if checkpoints else 'none yet'}")
    curves = [name for name in metrics[-1] if name == "reward" or name.startswith(("reward/", "eval/"))]
    lines += [f"  {line}" for line in (first_and_last(name, metrics) for name in curves) if line]
    return lines + [f"  ! {line}" for line in health_warnings(metrics[-RECENT:], first_alarm(metrics))]
