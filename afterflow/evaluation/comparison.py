"""Runs side by side: the same prompts and noise for all of them, and the same judges.

A method is a recipe; its runs differ in their seed and in nothing else that run.json records.  Intervals of a method
are over prompts, each prompt's figure being the mean over the method's runs; every run's own figures stand beside them.
Runs of a recipe that differ in anything else are methods of their own, each named by what differs.
"""

import json
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch

from ..algorithms.base import explores
from ..experiment.config import Run
from ..experiment.image_grid import first_images, save_sheet
from ..experiment.provenance import hardware
from ..experiment.run_folder import RunFolder, read_object
from ..experiment.serialization import to_json
from ..experiment.train_subprocess import check_ended
from ..models.adapters import LoRA
from ..models.base import cache_folder, default_device, read_cache_file, write_cache_file
from ..models.lora.files import lora_digest
from ..models.pipeline import Model, Pretrained
from ..models.pipeline_files import weights_digest
from ..rewards.registry import find_reward
from ..system.atomic_files import replacing, write_text_atomically
from ..system.errors import InputError
from ..system.stamps import file_stamps, options_digest, source_digest
from .differences import differences_of_methods
from .method_curve import method_curve
from .report import Report, ShapesSettings
from .shapes_suite import Judged, judge, shapes_report, suite_pictures, suite_prompts, true_pictures

_log = logging.getLogger(__name__)

NO_SETTINGS = ("config", "recipe", "seed", "resumed")
"""Parts of run.json that are compared in another form, or that may differ between the runs of a method."""
DRAWING = ("models", "sampling", "evaluation/shapes_suite.py")
"""What of afterflow draws: a change of it draws the base's pictures anew."""
MAX_DIFFERENCES = 3
"""Number of differences that the name of a method states."""


@dataclass(frozen=True)
class Finished:
    """A run that has ended, and the figures of its pictures of the suite."""

    folder: Path
    run: Run
    recipe: str
    judged: Judged
    lines: list[dict[str, float]]
    """The lines of metrics.jsonl."""


def judge_run(folder: Path, run: Run, recipe: str, settings: ShapesSettings) -> Finished:
    """Judge a run's pictures of the suite beside its base's.

    The figures are stored in the run's folder, as evaluation.json, for the next time.  ValueError is raised where the
    run has not ended.
    """
    check_ended(folder, run)
    settings = guided_settings(run, settings)
    lines = RunFolder(folder).metrics()
    base = base_of(run.model, settings)
    about = {
        "suite": to_json(settings),
        "step": lines[-1]["step"],
        "weights": [weights_digest(run.model.path, run.model.revision), result_digest(run, folder)],
        "judge": find_reward("shapes_strict").version,
        "drawn with": drawing_environment(str(default_device())),
    }
    file = folder / "evaluation.json"
    stored = read_object(file) if file.is_file() else {}
    if any(stored.get(name) != value for name, value in about.items()):
        pictures = suite_pictures(tuned_model(run, folder), base.records, settings)
        judged = judge(pictures, base.records, base.features)
        grid = first_images(base.records, [(base.pictures, base.judged.strict), (pictures, judged.strict)])
        with replacing(folder / "before_after.png") as partial:
            save_sheet(grid, partial)
        stored = about | {"judged": judged_to_json(judged)}
        write_text_atomically(file, json.dumps(stored) + "\n")
    return Finished(folder, run, recipe, judged_from_json(stored["judged"]), lines)


def result_digest(run: Run, folder: Path) -> str:
    """Return a digest of the weights that a run left."""
    return lora_digest(folder / "lora") if isinstance(run.tune, LoRA) else weights_digest(str(folder / "model"))


@dataclass(frozen=True)
class Base:
    """The untrained model on the suite, by which all its runs are measured."""

    records: list[dict]
    pictures: np.ndarray
    features: np.ndarray
    """Features of true pictures of the records, for Fréchet distances."""
    judged: Judged
    truth: dict[str, float]
    """Figures of other true pictures."""


def guided_settings(run: Run, settings: ShapesSettings) -> ShapesSettings:
    """Return the settings under the guidance that the run's rollouts have."""
    return replace(settings, guidance=run.batches.guidance_scale)


def beside_base(run: Run, settings: ShapesSettings, judged: Judged, model: str) -> Report:
    """Report judged pictures of a run, or of several of its kind, beside its base; `model` names them."""
    settings = guided_settings(run, settings)
    base = base_of(run.model, settings)
    return shapes_report(settings, base.records, judged, base.judged, base.truth, (model, run.model.path))


@cache
def base_of(model: Pretrained, settings: ShapesSettings) -> Base:
    """Draw and judge the suite by the untrained model, once for all its runs."""
    records, pictures = base_pictures(model, settings)
    features, truth = true_pictures(records, pictures.shape, settings.seed)
    return Base(records, pictures, features, judge(pictures, records, features), truth)


def base_pictures(model: Pretrained, settings: ShapesSettings) -> tuple[list[dict], np.ndarray]:
    """Return the P prompts of the suite and the untrained model's pictures of them, uint8 (P, images, H, W, 3).

    Pictures are kept in the cache folder, for later commands.
    """
    loaded = model.load(default_device())
    records = suite_prompts(settings, loaded.drawn_size)
    file = cache_folder() / "base_pictures" / f"{pictures_key(loaded, records, settings)}.safetensors"
    drawn = read_cache_file(file)
    if drawn is None:
        drawn = {"pictures": torch.from_numpy(np.ascontiguousarray(suite_pictures(loaded, records, settings)))}
        write_cache_file(file, drawn)
    return records, drawn["pictures"].numpy()


def pictures_key(model: Model, records: Sequence[dict], settings: ShapesSettings) -> str:
    """Return a digest of all that decides an untrained model's pictures of the suite, to the last bit."""
    options = {
        "model": [type(model.config).__name__, to_json(model.config)],
        "files": file_stamps(model.folder),
        "prompts": [record["prompt"] for record in records],
        "settings": to_json(settings),
        **drawing_environment(str(model.device)),
    }
    return options_digest(options)


def drawing_environment(device: str) -> dict[str, Any]:
    """Return what decides pictures beside a model, prompts and settings: machine, libraries and our own sampler."""
    return {
        "machine": [platform.node(), device, hardware()],
        "libraries": {name: version(name) for name in ("torch", "diffusers", "transformers")},
        "afterflow": source_digest(DRAWING),
    }


def tuned_model(run: Run, folder: Path) -> Model:
    """Load the model that a run trained."""
    if not isinstance(run.tune, LoRA):
        return replace(run.model, path=str(folder / "model")).load(default_device())
    model = run.model.load(default_device())
    model.load_lora(folder / "lora")
    return model


def judged_to_json(judged: Judged) -> dict[str, Any]:
    """Return the figures as what `json.dumps` takes."""
    figures = {name: values.tolist() for name, values in judged.figures.items()}
    return {"figures": figures, "strict": judged.strict.tolist(), "frechet": judged.frechet}


def judged_from_json(data: dict[str, Any]) -> Judged:
    """Read what `judged_to_json` returned.  InputError for anything else."""
    try:
        figures = {name: np.array(values, float) for name, values in data["figures"].items()}
        return Judged(figures, np.array(data["strict"]), float(data["frechet"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"evaluation.json of a run holds no figures ({error}); delete it, to judge anew") from error


def pooled(runs: Sequence[Judged]) -> Judged:
    """Average the figures of every prompt over several runs."""
    figures = {name: np.mean([run.figures[name] for run in runs], 0) for name in runs[0].figures}
    return Judged(figures, runs[0].strict, float(np.mean([run.frechet for run in runs])))


def comparison(runs: Sequence[Finished], settings: ShapesSettings) -> dict[str, Any]:
    """Return what the page shows, as JSON: an entry for each method in the order given, and for each pair of them."""
    methods = methods_of(runs)
    return {
        "suite": to_json(settings),
        "methods": [method_entry(name, of_method, settings) for name, of_method in methods.items()],
        "differences": differences_on_same_prompts(methods, settings),
    }


def differences_on_same_prompts(
    methods: Mapping[str, Sequence[Finished]], settings: ShapesSettings
) -> list[dict[str, Any]]:
    """Return for each pair of methods with the same prompts how much more one gained over its base."""
    of_prompts: dict[str, tuple[list[dict], dict[str, list[Judged]]]] = {}
    for name, runs in methods.items():
        base = base_of(runs[0].run.model, guided_settings(runs[0].run, settings))
        gains = of_prompts.setdefault(json.dumps(base.records), (base.records, {}))[1]
        gains[name] = [over_base(finished.judged, base.judged) for finished in runs]
    return [
        entry
        for records, gains in of_prompts.values()
        for entry in differences_of_methods(gains, records, settings.split)
    ]


def over_base(judged: Judged, base: Judged) -> Judged:
    """Return by how much each prompt's figures are above those of the base."""
    return replace(judged, figures={name: values - base.figures[name] for name, values in judged.figures.items()})


def methods_of(runs: Sequence[Finished]) -> dict[str, list[Finished]]:
    """Return the runs of each method, by its name: the recipe, and what differs where its runs are not of one kind.

    Two runs of a method differ in their seed alone.  What else separates runs of a recipe is logged.
    """
    by_recipe: dict[str, list[Finished]] = {}
    for run in runs:
        by_recipe.setdefault(run.recipe, []).append(run)
    return {name: group for recipe, of_recipe in by_recipe.items() for name, group in variants(recipe, of_recipe)}


def variants(recipe: str, runs: Sequence[Finished]) -> list[tuple[str, list[Finished]]]:
    """Return the methods among the runs of a recipe, each with its name."""
    rows: dict[str, tuple[dict[str, Any], list[Finished]]] = {}
    for run in runs:
        recorded = recorded_settings(run)
        rows.setdefault(json.dumps(recorded, sort_keys=True), (recorded, []))[1].append(run)
    settings = [of_row for of_row, _ in rows.values()]
    varied = [
        name
        for name in dict.fromkeys(name for of_row in settings for name in of_row)
        if any(of_row.get(name) != settings[0].get(name) for of_row in settings)
    ]
    if varied:
        _log.info(f"{recipe}: {len(rows)} methods, because their runs differ in {', '.join(varied)}")
    named = []
    for of_row, group in rows.values():
        stated = [f"{name} = {json.dumps(of_row.get(name))}" for name in varied[:MAX_DIFFERENCES]]
        more = [f"{len(varied) - MAX_DIFFERENCES} more"] if len(varied) > MAX_DIFFERENCES else []
        named.append((", ".join([recipe, *stated, *more]), group))
    return [each for name, group in named for each in distinct(name, group, [other for other, _ in named])]


def distinct(name: str, runs: list[Finished], names: Sequence[str]) -> list[tuple[str, list[Finished]]]:
    """Return the method as it is, or each run by its folder where a seed or the name is there twice."""
    seeds = [run.run.seed for run in runs]
    if names.count(name) == 1 and len(set(seeds)) == len(seeds):
        return [(name, runs)]
    return [(f"{name}, {run.folder}", [run]) for run in runs]


def recorded_settings(finished: Finished) -> dict[str, Any]:
    """Return all that a run's record says of how it was made, by dotted names, without its name and seed."""
    record = RunFolder(finished.folder).record()
    config = {name: value for name, value in to_json(finished.run).items() if name not in ("name", "seed")}
    about = leaves({name: value for name, value in record.items() if name not in NO_SETTINGS})
    begun = leaves(config) | about
    for part in record.get("resumed", ()):
        later = leaves({name: value for name, value in part.items() if name != "iteration"})
        about |= {f"resumed.{name}": value for name, value in later.items() if value != begun.get(name)}
    # What is drawn from the seed differs with it.
    for name, prompts in (("prompts", finished.run.data), ("held-out prompts", finished.run.evaluation.held_out)):
        if not hasattr(prompts, "path"):
            about.pop(f"contents.{name}", None)
    return leaves(config) | about


def leaves(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return the values in nested mappings, by dotted names."""
    values: dict[str, Any] = {}
    for name, value in tree.items():
        inside = isinstance(value, Mapping) and value
        values |= leaves(value, f"{path}{name}.") if inside else {f"{path}{name}": value}
    return values


def method_entry(name: str, runs: Sequence[Finished], settings: ShapesSettings) -> dict[str, Any]:
    """Return the entry of one method over its seeds."""
    run = runs[0].run
    report = lambda judged, model: to_json(beside_base(run, settings, judged, model))
    lines = [line for finished in runs for line in finished.lines]
    return {
        "name": name,
        "algorithm": type(run.algorithm).__name__,
        "config": to_json(run),
        "guidance": run.batches.guidance_scale,
        "trained": [name for name in ("closed", "fidelity") if f"shapes_{name}" in run.algorithm.requirements.rewards],
        "report": report(pooled([finished.judged for finished in runs]), name),
        "nfe": {
            stage: mean(line[f"nfe/{stage}"] for line in lines)
            for stage in ("rollout", "update")
            if f"nfe/{stage}" in lines[0]
        },
        "seconds_per_iteration": median(
            seconds
            for finished in runs
            for seconds in np.diff([0.0, *(line["seconds_trained"] for line in finished.lines)]).tolist()
        ),
        "curve": method_curve(
            [(RunFolder(finished.folder), finished.lines) for finished in runs], settings.draws, settings.seed
        ),
        "runs": [
            {
                "folder": str(finished.folder),
                "seed": finished.run.seed,
                "iterations": len(finished.lines),
                "seconds_trained": finished.lines[-1]["seconds_trained"],
                "overall": report(finished.judged, str(finished.folder))["overall"],
                "curve": curve(finished),
                **provenance(finished.folder),
            }
            for finished in runs
        ],
    }


def provenance(folder: Path) -> dict[str, Any]:
    """Return the version and the machine of a run."""
    record = RunFolder(folder).record()
    return {name: record[name] for name in ("git_commit", "hardware")}


def curve(finished: Finished) -> list[dict[str, float]]:
    """Return the measurements on held-out prompts, with the seconds and velocity evaluations until then."""
    run, points, evaluations = finished.run, [], 0.0
    group = getattr(run.algorithm, "group", 1)
    guided = explores(run.algorithm)  # under guidance; what images teach is not
    passes = run.batches.batch * group * (2 if guided and run.batches.guidance_scale != 1 else 1)
    for line in finished.lines:
        evaluations += passes * sum(value for name, value in line.items() if name.startswith("nfe/"))
        held_out = {name: value for name, value in line.items() if name.startswith("eval/")}
        if held_out:
            points.append({"seconds": line["seconds_trained"], "evaluations": evaluations, **held_out})
    return points
