"""Runs side by side: the same prompts and noise for all of them, and the same judges.

A method is a recipe; its runs differ in their seed.  Intervals of a method are over prompts, each prompt's figure
being the mean over the method's runs; every run's own figures stand beside them.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from ..algorithms.base import OnPolicy
from ..data.prompts import ShapesPrompts
from ..envs.shapes import population
from ..experiment.config import Run
from ..experiment.run_files import before_after
from ..experiment.serialization import from_json, to_json
from ..models.adapters import LoRA
from ..models.base import Model, default_device
from ..models.pipeline import Pretrained
from ..train.budget import Budget
from ..train.checkpoint import checkpoints
from ..train.distributed import Stopped
from .shapes_report import Judged, Settings, report
from .shapes_suite import frechet, judge, picture_size, renders, suite_pictures, suite_prompts

HELD_OUT = ShapesPrompts("test", count=60)
"""Prompts of a curve, where the recipe has none of its own."""


@dataclass(frozen=True)
class Finished:
    """A run that has ended, and what its pictures of the suite are worth."""

    folder: Path
    run: Run
    recipe: str
    judged: Judged
    lines: list[dict[str, float]]
    """Of metrics.jsonl."""


def train_all(asked: Mapping[str, Run], budget_seconds: float | None, seeds: int, name: str) -> list[Path]:
    """Train each recipe's run with every seed, one after another; the folders.  None: for its own iterations.

    A run that has ended is not repeated, and one that was interrupted goes on from its checkpoint.  ValueError when a
    folder holds a run with other settings, Stopped when one could not be brought to its end.
    """
    runs = [
        (recipe, budgeted(run, budget_seconds, seed, f"{name}/{recipe}_{seed}"))
        for seed in range(seeds)
        for recipe, run in asked.items()
    ]
    for _, run in runs:
        check_same(run)
    for recipe, run in runs:
        if ended(run.folder, run):
            print(f"{run.folder} is there already")
        else:
            train_apart(run, recipe)
    return [run.folder for _, run in runs]


def check_same(run: Run) -> None:
    """ValueError when the run's folder holds another run."""
    file = run.folder / "run.json"
    # Read back, because a field that is newer than the file has its default there.
    if file.is_file() and from_json(Run, json.loads(file.read_text())["config"]) != run:
        raise ValueError(f"{run.folder} holds a run with other settings; take another --name, or delete it")


def train_apart(run: Run, recipe: str, processes: int = 1) -> None:
    """In a process of its own, or several: threads, precision and memory of one run do not reach the next."""
    file = run.folder / "asked.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"recipe": recipe, "config": to_json(run)}))
    resumes = bool(checkpoints(run.folder / "checkpoints"))
    what = ["--resume", str(run.folder)] if resumes else ["--from", str(file)]
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    launcher = several if processes > 1 else []
    trained = subprocess.Popen([sys.executable, *launcher, "-m", "afterflow", "train", *what])
    # Ctrl-C reaches both processes, SIGTERM this one alone; the other one saves, and this one waits for it.
    handlers = {signal.SIGINT: lambda *_: None, signal.SIGTERM: lambda *_: trained.terminate()}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        code = trained.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if code != 0:
        raise Stopped(f"{run.folder} could not be trained, see above; the runs before it are kept")
    if not ended(run.folder, run):
        raise Stopped(f"{run.folder} was interrupted; the same command goes on with it")


def budgeted(run: Run, budget_seconds: float | None, seed: int, name: str) -> Run:
    """The run under a budget of seconds, if any, instead of iterations."""
    if run.held_out is None:
        run = replace(run, held_out=HELD_OUT, eval_every=10)
    if budget_seconds is not None:
        # The budget ends it; so many iterations are out of reach.
        run = replace(run, budget_seconds=budget_seconds, iterations=10**6)
    return replace(run, seed=seed, name=name, keep=1)


def ended(folder: Path, run: Run) -> bool:
    """Whether the run in this folder did its iterations or used up its budget, and left its result."""
    if not any((folder / result).is_dir() for result in ("lora", "model")):
        return False
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return Budget(run.iterations, run.budget_seconds, last["seconds_trained"]).ends(last["step"])


def check_ended(folder: Path, run: Run) -> None:
    """ValueError when it has not, or has no base that draws pictures of the shapes world."""
    if not ended(folder, run):
        raise ValueError(f"{folder}: the run has not ended; go on with: afterflow train --resume {folder}")
    if not isinstance(run.model, Pretrained):
        raise ValueError(f"{folder}: it was trained from scratch, so there is no base to compare it with")


def finished(folder: Path, run: Run, recipe: str, settings: Settings) -> Finished:
    """A run's pictures of the suite, judged beside its base's; kept in the run's folder for the next time."""
    check_ended(folder, run)
    assert isinstance(run.model, Pretrained)
    settings = replace(settings, guidance=run.guidance_scale)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    base = base_of(run.model, settings)
    about = {"suite": to_json(settings), "step": lines[-1]["step"]}
    file = folder / "evaluation.json"
    kept = json.loads(file.read_text()) if file.is_file() else {}
    if any(kept.get(name) != value for name, value in about.items()):
        pictures = suite_pictures(tuned_model(run, folder), base.records, settings)
        judged = judge(pictures, base.records, base.features)
        grid = before_after(base.records, base.pictures, pictures, base.judged.strict, judged.strict)
        grid.save(folder / "before_after.png")
        kept = about | {"judged": as_lists(judged)}
        file.write_text(json.dumps(kept) + "\n")
    return Finished(folder, run, recipe, from_lists(kept["judged"]), lines)


@dataclass(frozen=True)
class Base:
    """The untrained model on the suite, and what all its runs are measured by."""

    records: list[dict]
    pictures: np.ndarray
    features: np.ndarray
    """Of true pictures of the records, for Fréchet distances."""
    judged: Judged
    truth: dict[str, float]
    """What other true pictures get."""


@cache
def base_of(model: Pretrained, settings: Settings) -> Base:
    loaded = model.load(default_device())
    records = suite_prompts(settings, picture_size(loaded))
    pictures = suite_pictures(loaded, records, settings)
    reference, fresh = (renders(records, pictures.shape, settings.seed, name) for name in ("reference", "fresh"))
    features = population.features(reference.reshape(-1, *pictures.shape[2:]))
    truth = {"frechet": frechet(fresh, features)}
    return Base(records, pictures, features, judge(pictures, records, features), truth)


def tuned_model(run: Run, folder: Path) -> Model:
    """What a run made of its model."""
    assert isinstance(run.model, Pretrained)
    if not isinstance(run.tune, LoRA):
        return replace(run.model, path=str(folder / "model")).load(default_device())
    model = run.model.load(default_device())
    model.load_lora(folder / "lora")
    return model


def as_lists(judged: Judged) -> dict[str, Any]:
    """For JSON."""
    figures = {name: values.tolist() for name, values in judged.figures.items()}
    return {"figures": figures, "strict": judged.strict.tolist(), "frechet": judged.frechet}


def from_lists(data: dict[str, Any]) -> Judged:
    figures = {name: np.array(values) for name, values in data["figures"].items()}
    return Judged(figures, np.array(data["strict"]), data["frechet"])


def pooled(runs: Sequence[Judged]) -> Judged:
    """Each prompt's mean figure over several runs."""
    figures = {name: np.mean([run.figures[name] for run in runs], 0) for name in runs[0].figures}
    return Judged(figures, runs[0].strict, float(np.mean([run.frechet for run in runs])))


def comparison(runs: Sequence[Finished], settings: Settings) -> dict[str, Any]:
    """What the page shows, as JSON: one entry for each method, in the order given."""
    methods: dict[str, list[Finished]] = {}
    for each in runs:
        methods.setdefault(each.recipe, []).append(each)
    return {
        "suite": to_json(settings),
        "methods": [method(name, of_method, settings) for name, of_method in methods.items()],
    }


def method(name: str, runs: Sequence[Finished], settings: Settings) -> dict[str, Any]:
    """One method over its seeds."""
    run = runs[0].run
    assert isinstance(run.model, Pretrained)
    settings = replace(settings, guidance=run.guidance_scale)
    base, path = base_of(run.model, settings), run.model.path
    of = lambda judged, model: report(settings, base.records, judged, base.judged, base.truth, model, path)
    lines = [line for each in runs for line in each.lines]
    return {
        "name": name,
        "algorithm": type(run.algorithm).__name__,
        "config": to_json(run),
        "guidance": run.guidance_scale,
        "report": to_json(of(pooled([each.judged for each in runs]), name)),
        "nfe": {
            stage: mean(line[f"nfe/{stage}"] for line in lines)
            for stage in ("rollout", "update")
            if f"nfe/{stage}" in lines[0]
        },
        "seconds_per_iteration": median(iteration_seconds(runs[0].lines)),
        "runs": [
            {
                "folder": str(each.folder),
                "seed": each.run.seed,
                "iterations": len(each.lines),
                "seconds_trained": each.lines[-1]["seconds_trained"],
                "overall": to_json(of(each.judged, str(each.folder)))["overall"],
                "curve": curve(each),
                **where(each.folder),
            }
            for each in runs
        ],
    }


def where(folder: Path) -> dict[str, Any]:
    """The version and the machine that a run was done with."""
    told = json.loads((folder / "run.json").read_text())
    return {name: told[name] for name in ("git_commit", "hardware")}


def iteration_seconds(lines: Sequence[dict[str, float]]) -> list[float]:
    return np.diff([0.0, *(line["seconds_trained"] for line in lines)]).tolist()


def curve(of: Finished) -> list[dict[str, float]]:
    """What was measured on held-out prompts, against seconds and velocity evaluations."""
    run, points, evaluations = of.run, [], 0.0
    group = getattr(run.algorithm, "group", 1)
    explores = isinstance(run.algorithm, OnPolicy)  # under guidance; what images teach is not
    passes = run.batch * group * (2 if explores and run.guidance_scale != 1 else 1)
    for line in of.lines:
        evaluations += passes * sum(value for name, value in line.items() if name.startswith("nfe/"))
        found = {name: value for name, value in line.items() if name.startswith("eval/")}
        if found:
            points.append({"seconds": line["seconds_trained"], "evaluations": evaluations, **found})
    return points
