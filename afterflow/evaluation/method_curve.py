"""The curve of a method on held-out prompts: its runs together, with intervals over prompts.

    mean(point)   = mean over runs of the mean over a run's prompts
    change(point) = the same of every prompt's change since the first measurement

Runs whose held-out prompts are the same ones are averaged prompt by prompt; else the prompts of each are a stratum.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import mean
from typing import Any

import numpy as np

from ..experiment.intervals import Estimate, estimates
from ..experiment.run_folder import REPEATED, RunFolder, rewards_of
from ..experiment.serialization import to_json
from ..train.repeated_prompts import prompts_of_rows

Line = Mapping[str, Any]


def method_curve(runs: Sequence[tuple[RunFolder, Sequence[Line]]], draws: int, seed: int) -> list[dict[str, Any]]:
    """Return the measurements that all runs of a method share, oldest first.

    Each has `seconds` of training, the mean over the runs, the iterations `steps` of the runs, and by name of a reward
    its `means` and `changes` as estimates.  What is no score of prompts, such as the spread of images, has a mean
    without an interval.

    Args:
        runs: The folder of each run, and the lines of its metrics.
        draws: Number of bootstrap resamples.
        seed: Seed of the resamples.
    """
    points = shared_measurements([folder.since_change(lines) for folder, lines in runs])
    if not points:
        return []
    scores = prompt_scores([folder for folder, _ in runs], points)
    rng = np.random.default_rng(seed)
    curves = {name: score_curve(*of_name, draws, rng) for name, of_name in scores.items()}
    return [
        {
            "seconds": mean(line["seconds_trained"] for line in lines),
            "steps": [line["step"] for line in lines],
            "means": plain_means(lines, curves) | {name: to_json(means[i]) for name, (means, _) in curves.items()},
            "changes": {name: to_json(changes[i]) for name, (_, changes) in curves.items()},
        }
        for i, lines in enumerate(points)
    ]


def shared_measurements(runs: Sequence[Sequence[Line]]) -> list[list[Line]]:
    """Return for each iteration that all runs measured the line of every run, then their last lines if these differ."""
    by_step = [{line["step"]: line for line in lines if measured_names(line)} for lines in runs]
    if not all(by_step):
        return []
    shared = sorted(set.intersection(*(set(of_run) for of_run in by_step)))
    steps = [[step] * len(runs) for step in shared]
    last = [max(of_run) for of_run in by_step]
    # Under a budget of seconds the runs end after different numbers of iterations.
    steps += [last] if last not in steps else []
    return [[of_run[step] for of_run, step in zip(by_step, of_point)] for of_point in steps]


def measured_names(line: Line) -> list[str]:
    """Return the names of what was measured on held-out prompts after an iteration."""
    return [name.removeprefix("eval/") for name in line if name.startswith("eval/")]


def plain_means(lines: Sequence[Line], without: Mapping[str, object]) -> dict[str, Any]:
    """Return means over runs of what all of them measured at a point, of names that are not in `without`."""
    values = {name: [line.get(f"eval/{name}", np.nan) for line in lines] for name in measured_names(lines[0])}
    means = {name: float(np.mean(of_runs)) for name, of_runs in values.items() if name not in without}
    return {name: to_json(Estimate(value)) for name, value in means.items() if np.isfinite(value)}


def prompt_scores(
    folders: Sequence[RunFolder], points: Sequence[Sequence[Line]]
) -> dict[str, tuple[np.ndarray, list[np.ndarray], np.ndarray]]:
    """Return name → scores (P, points) of the prompts of all runs, the rows of each stratum, and each row's prompt.

    Only rows with a score at every point count.  A name is left out where a run has no such row.
    """
    measured = [{line["step"]: line for line in folder.held_out()} for folder in folders]
    contents = [folder.record().get("contents", {}).get("held-out prompts") for folder in folders]
    rows = [[of_run.get(line["step"], {}) for line in lines] for of_run, lines in zip(measured, zip(*points))]
    scores = {}
    for name in rewards_of(rows[0][0]):
        of_runs = [scores_by_prompt([line.get(name, []) for line in of_run]) for of_run in rows]
        prompts = [prompts_of_rows(len(table), of_run[0].get(REPEATED, {})) for table, of_run in zip(of_runs, rows)]
        same = contents[0] is not None and len(set(contents)) == 1 and len({len(table) for table in of_runs}) == 1
        strata = [np.mean(of_runs, 0)] if same else of_runs
        known = [np.isfinite(table).all(1) for table in strata]
        if all(of_stratum.any() for of_stratum in known):
            ends = np.cumsum([0, *(of_stratum.sum() for of_stratum in known)])
            tables, numbers = ([values[i] for values, i in zip(of_all, known)] for of_all in (strata, prompts))
            of_strata = [np.arange(a, b) for a, b in pairwise(ends)]
            scores[name] = np.concatenate(tables), of_strata, np.concatenate(numbers)
    return scores


def scores_by_prompt(columns: Sequence[Sequence[float]]) -> np.ndarray:
    """Return scores (P, points) of a run from those of each point; no row where a point has other prompts, or none."""
    if len({len(column) for column in columns}) != 1:
        return np.zeros((0, len(columns)))
    return np.array(columns, np.float64).T


def score_curve(
    scores: np.ndarray, strata: Sequence[np.ndarray], prompts: np.ndarray, draws: int, rng: np.random.Generator
) -> tuple[list[Estimate], list[Estimate]]:
    """Return the means and the changes since the first point, with intervals over prompts.

    Args:
        scores: (P, points) of all runs.
        strata: Row numbers of each stratum.
        prompts: (P,) which prompt is each row's.
        draws: Number of bootstrap resamples.
        rng: Their source.
    """
    points = scores.shape[1]
    both = estimates(np.concatenate([scores, scores - scores[:, :1]], 1), strata, draws, rng, prompts)
    return both[:points], both[points:]
