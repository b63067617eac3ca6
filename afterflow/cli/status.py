"""afterflow status: how far a run is, how long it will take, and whether it is well."""

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional, PositionalMetavarFromFieldName

RECENT = 20
"""Iterations whose time tells that of those to come."""
QUIET = 10
"""Times an iteration's own, after which a run that writes nothing seems to be gone."""


def status(args: Sequence[str]) -> None:
    """Show the progress and the health of runs."""
    tyro.cli(Status, args=args, prog="afterflow status", config=[PositionalMetavarFromFieldName])()


@dataclass(frozen=True)
class Status:
    """Show the progress and the health of runs, without disturbing them."""

    runs: Positional[tuple[str, ...]]
    """Folders of runs, as runs/NAME."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("name at least one run: afterflow status runs/NAME...")

    def __call__(self) -> None:
        for folder in map(Path, self.runs):
            print("\n".join(lines_of(folder, time.time())))


def lines_of(folder: Path, now: float) -> list[str]:
    """What is known of a run; ValueError where there is none."""
    if not (folder / "run.json").is_file():
        raise ValueError(f"{folder}: no run is there; runs are kept in runs/NAME")
    config = json.loads((folder / "run.json").read_text(encoding="utf-8"))["config"]
    metrics = whole_lines(folder / "metrics.jsonl")
    if not metrics:
        return [f"{folder}: no iteration has ended yet"]
    last, seconds = metrics[-1], iteration_seconds(metrics)
    ended = any((folder / result).is_dir() for result in ("lora", "model"))
    found = [f"{folder}: {progress(config, metrics, seconds, ended)}"]
    idle = now - (folder / "metrics.jsonl").stat().st_mtime
    if not ended and idle > QUIET * max(seconds, 1):
        found.append(f"  it has written nothing for {length(idle)}; go on with: afterflow train --resume {folder}")
    saved = sorted(path.name for path in folder.glob("checkpoints/step_*") if not path.suffix)
    found.append(f"  last checkpoint: {saved[-1] if saved else 'none yet'}")
    changes = (change(name, metrics) for name in last if name == "reward" or name.startswith(("reward/", "eval/")))
    found += [f"  {line}" for line in changes if line]
    return found + [f"  ! {line}" for line in warnings(metrics)]


def progress(config: Mapping[str, Any], metrics: Sequence[Mapping[str, float]], seconds: float, ended: bool) -> str:
    done, last = int(metrics[-1]["step"]) + 1, metrics[-1]
    budget = config.get("budget_seconds")
    share = last["seconds_trained"] / budget if budget else done / config["iterations"]
    about = f"iteration {done}" + ("" if budget else f" of {config['iterations']}") + f" ({min(share, 1):.0%})"
    if ended:
        return f"{about}, ended after {length(last['seconds_trained'])} of training"
    left = budget - last["seconds_trained"] if budget else seconds * (config["iterations"] - done)
    return f"{about}, {seconds:.3g} s an iteration, about {length(max(0, left))} to go"


def iteration_seconds(metrics: Sequence[Mapping[str, float]]) -> float:
    """The median of the last ones."""
    ends = [line["seconds_trained"] for line in metrics[-RECENT - 1 :]]
    return statistics.median([b - a for a, b in pairwise(ends)] or ends)


def change(name: str, metrics: Sequence[Mapping[str, float]]) -> str | None:
    """First and last value of a figure that is not measured at every iteration."""
    values = [line[name] for line in metrics if isinstance(line.get(name), int | float)]
    return f"{name} {values[0]:.4g} → {values[-1]:.4g}" if values else None


def warnings(metrics: Sequence[Mapping[str, float]]) -> list[str]:
    """What somebody should look at, of the last iterations."""
    recent, found = metrics[-RECENT:], []
    alarms = [int(line["step"]) for line in metrics if line.get("alarm")]
    if alarms:
        found.append(f"ALARM since iteration {alarms[0]}: a reward that is not trained has fallen; look at samples/")
    for name in metrics[-1]:
        if name.startswith("invalid/"):
            found.append(f"{metrics[-1][name]:.0%} of the last images have no {name.removeprefix('invalid/')}")
    if any(not math.isfinite(line.get("grad_norm", 0)) for line in recent):
        found.append("a gradient was not finite")
    teaches_nothing = statistics.mean(line.get("zero_std_groups", 0) for line in recent)
    if teaches_nothing > 0.5:
        found.append(f"{teaches_nothing:.0%} of the groups have one reward for all their images, and teach nothing")
    clipped = statistics.mean(line.get("clip_fraction", 0) for line in recent)
    if clipped > 0.5:
        found.append(f"{clipped:.0%} of the ratios are clipped; lower the learning rate, or widen clip")
    return found


def whole_lines(file: Path) -> list[dict[str, Any]]:
    """A run may be writing the last one."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def length(seconds: float) -> str:
    """45 s, 12 min, 3.4 h, 2.1 days"""
    for unit, size, many in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds / size < many:
            return f"{seconds / size:.2g} {unit}" if unit == "h" else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.2g} days"
