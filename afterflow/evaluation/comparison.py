"""Runs side by side: the same prompts and noise for all of them, and the same judges.

A method is a recipe; its runs differ in their seed.  Intervals of a method are over prompts, each prompt's figure
being the mean over the method's runs; every run's own figures stand beside them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from ..algorithms.base import explores
from ..envs.shapes import population
from ..experiment.config import Run
from ..experiment.image_grid import before_after
from ..experiment.run_folder import RunFolder
from ..experiment.serialization import to_json
from ..experiment.train_subprocess import check_ended
from ..models.adapters import LoRA
from ..models.base import Model, default_device
from ..models.generate import picture_size
from ..models.pipeline import Pretrained
from .report import ShapesSettings
from .shapes_suite import Judged, frechet, judge, renders, shapes_report, suite_pictures, suite_prompts


@dataclass(frozen=True)
class Finished:
    """A run that has ended, and what its pictures of the suite are worth."""

    folder: Path
    run: Run
    recipe: str
    judged: Judged
    lines: list[dict[str, float]]
    """Of metrics.jsonl."""


def finished(folder: Path, run: Run, recipe: str, settings: ShapesSettings) -> Finished:
    """A run's pictures of the suite, judged beside its base's; kept in the run's folder for the next time."""
    check_ended(folder, run)
    assert isinstance(run.model, Pretrained)
    settings = replace(settings, guidance=run.batches.guidance_scale)
    lines = RunFolder(folder).metrics()
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
def base_of(model: Pretrained, settings: ShapesSettings) -> Base:
    loaded = model.load(default_device())
    records = suite_prompts(settings, picture_size(loaded))
    pictures = suite_pictures(loaded, records, settings)
    reference, fresh = (renders(records, pictures.shape, settings.seed, name) for name in ("reference", "fresh"))
    features = population.texture_features(reference.reshape(-1, *pictures.shape[2:]))
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


def comparison(runs: Sequence[Finished], settings: ShapesSettings) -> dict[str, Any]:
    """What the page shows, as JSON: one entry for each method, in the order given."""
    methods: dict[str, list[Finished]] = {}
    for each in runs:
        methods.setdefault(each.recipe, []).append(each)
    return {
        "suite": to_json(settings),
        "methods": [method(name, of_method, settings) for name, of_method in methods.items()],
    }


def method(name: str, runs: Sequence[Finished], settings: ShapesSettings) -> dict[str, Any]:
    """One method over its seeds."""
    run = runs[0].run
    assert isinstance(run.model, Pretrained)
    settings = replace(settings, guidance=run.batches.guidance_scale)
    base, path = base_of(run.model, settings), run.model.path
    of = lambda judged, model: shapes_report(settings, base.records, judged, base.judged, base.truth, (model, path))
    lines = [line for each in runs for line in each.lines]
    return {
        "name": name,
        "algorithm": type(run.algorithm).__name__,
        "config": to_json(run),
        "guidance": run.batches.guidance_scale,
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
    told = RunFolder(folder).record()
    return {name: told[name] for name in ("git_commit", "hardware")}


def iteration_seconds(lines: Sequence[dict[str, float]]) -> list[float]:
    return np.diff([0.0, *(line["seconds_trained"] for line in lines)]).tolist()


def curve(of: Finished) -> list[dict[str, float]]:
    """What was measured on held-out prompts, against seconds and velocity evaluations."""
    run, points, evaluations = of.run, [], 0.0
    group = getattr(run.algorithm, "group", 1)
    guided = explores(run.algorithm)  # under guidance; what images teach is not
    passes = run.batches.batch * group * (2 if guided and run.batches.guidance_scale != 1 else 1)
    for line in of.lines:
        evaluations += passes * sum(value for name, value in line.items() if name.startswith("nfe/"))
        found = {name: value for name, value in line.items() if name.startswith("eval/")}
        if found:
            points.append({"seconds": line["seconds_trained"], "evaluations": evaluations, **found})
    return points
