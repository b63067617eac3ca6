"""Train a recipe over seeds, judge each result beside its base on held-out prompts, and draw the curves.

    python bench/learning_curve.py shapes_flow_grpo --seeds 0 1 2

Writes bench/results/RECIPE.json (settings, hardware, every seed's curve and final scores) and
docs/algorithms/curves/RECIPE.png.  A seed whose result is already in the file is not trained again, and one that was
interrupted goes on from its checkpoint.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("agg")
import matplotlib.pyplot as plt
from harness import provenance

from afterflow.evaluation.comparison import tuned_model
from afterflow.evaluation.report import ShapesSettings
from afterflow.evaluation.shapes_suite import compare_pictures, suite_pictures, suite_prompts
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.experiment.serialization import to_json
from afterflow.experiment.train_subprocess import has_ended
from afterflow.models.pipeline import no_progress_bars
from afterflow.models.sd3 import SD3
from afterflow.recipes import RECIPES

RESULTS = Path(__file__).parent / "results"
CURVES = Path(__file__).parents[1] / "docs" / "algorithms" / "curves"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prompts", type=int, default=350)
    parser.add_argument("--images", type=int, default=8)
    options = parser.parse_args()
    no_progress_bars()
    recipe = RECIPES[options.recipe]()
    if not isinstance(recipe, Run) or not recipe.evaluation.eval_every or not isinstance(recipe.model, SD3):
        raise SystemExit(f"{options.recipe} has no curve: it needs held_out, eval_every and a base to compare with")
    settings = ShapesSettings(prompts=options.prompts, images=options.images, guidance=recipe.batches.guidance_scale)
    file = RESULTS / f"{options.recipe}.json"
    about = {"run": to_json(recipe), "suite": to_json(settings)}
    results = stored(file, about)
    for seed in options.seeds:
        if str(seed) not in results["seeds"]:
            result = provenance() | one(recipe, seed, settings)
            results = stored(file, about)  # another process may have added its seed meanwhile
            results["seeds"][str(seed)] = result
            file.write_text(json.dumps(results) + "\n")
    figure(results, options.recipe).savefig(CURVES / f"{options.recipe}.png", dpi=120)
    scores = {seed: result["report"]["overall"]["strict"] for seed, result in results["seeds"].items()}
    print(json.dumps({"recipe": options.recipe, "strict": scores}))


def stored(file: Path, about: dict) -> dict:
    """What the file holds so far; SystemExit when that is of other settings."""
    results = json.loads(file.read_text()) if file.is_file() else {"seeds": {}} | about
    if any(results[name] != value for name, value in about.items()):
        raise SystemExit(f"{file} holds another setting; move it away")
    return results


def one(recipe: Run, seed: int, settings: ShapesSettings) -> dict:
    """Train one seed; its curve and its scores beside the base."""
    run = replace(recipe, seed=seed, name=f"{recipe.name}_{seed}")
    if not has_ended(run.folder, run):
        execute(run, recipe.name, resume=any(run.folder.glob("checkpoints/step_*")))
    folder = run.folder
    assert isinstance(recipe.model, SD3)
    model = recipe.model.load()
    records = suite_prompts(settings, model.drawn_size)
    base = suite_pictures(model, records, settings)
    tuned = suite_pictures(tuned_model(run, folder), records, settings)
    report, _, _ = compare_pictures(settings, records, tuned, base, str(folder), recipe.model.path)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    prefixes = ("step", "seconds", "reward", "eval/", "reward/", "grad_norm", "ratio_max", "clip_fraction", "zero_std")
    curve = [{k: v for k, v in line.items() if k.startswith(prefixes)} for line in lines]
    took = {name: lines[-1][name] for name in ("seconds", "seconds_trained")}
    return {**took, "curve": curve, "report": to_json(report)}


def figure(results: dict, title: str):
    """Held-out rewards against minutes, a line for each seed."""
    names = sorted(
        {key for result in results["seeds"].values() for line in result["curve"] for key in line if "eval/" in key}
    )
    figure, axes = plt.subplots(1, len(names), figsize=(5 * len(names), 3.6), squeeze=False)
    for axis, name in zip(axes[0], names):
        for seed, result in sorted(results["seeds"].items()):
            points = np.array([(line["seconds_trained"] / 60, line[name]) for line in result["curve"] if name in line])
            axis.plot(*points.T, label=f"seed {seed}")
        axis.set(xlabel="minutes", title=name.removeprefix("eval/") + ", held-out prompts")
        axis.grid(alpha=0.3)
    axes[0][0].legend()
    figure.suptitle(title)
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    main()
