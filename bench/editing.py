"""Reinforcement learning of edits: what the tiny FLUX.2-klein gains on requests that were held out.

    python bench/editing.py train --seeds 0 1 2    # goes on where it was stopped
    python bench/editing.py report                 # bench/results/editing.json and a table

Each recipe is trained as it stands, but in fp32, and edits the same held-out pictures as the base model does.  Requests
are scored one by one: done, all else preserved, and strict, which is both.  Results of a training lie in
bench/results/editing/RECIPE_SEED.json.
"""

from pathlib import Path

import numpy as np
import torch
from harness import provenance, read_json
from tiny_klein import verdicts_of
from trainings import is_stored, results_of, store, train_to_end, work_parser

from afterflow.envs.shapes.edits import EDIT_TASKS, edit_suite
from afterflow.evaluation.comparison import tuned_model
from afterflow.evaluation.differences import gain_over_base
from afterflow.experiment.config import Run
from afterflow.experiment.intervals import Estimate, estimate_text, estimates
from afterflow.experiment.serialization import to_json
from afterflow.models.generate import draw_images
from afterflow.models.pipeline import Model, no_progress_bars
from afterflow.models.pipeline_files import weights_digest
from afterflow.recipes import RECIPES
from afterflow.recipes.editing_shapes import TINY_KLEIN

RESULTS = Path(__file__).parent / "results" / "editing"
METHODS = ("editing_flow_grpo", "editing_dgpo")
COMMAND = "python bench/editing.py train --seeds 0 1 2"
VERDICTS = ("strict", "done", "preserved")
PER_TASK, PICTURES, STEPS = 40, 2, 20
STRATA = np.split(np.arange(PER_TASK * len(EDIT_TASKS)), len(EDIT_TASKS))


def run_of(recipe: str, seed: int) -> Run:
    """The recipe with a seed, in fp32 so that it is the same on every CPU."""
    run = RECIPES[recipe]()
    assert isinstance(run, Run)
    options = {"name": f"editing/{recipe}_{seed}", "seed": seed, "sample_every": 0, "keep_checkpoints": 1}
    return run.with_options(**options, mixed_precision="no")


def train(recipes: list[str], seeds: list[int]) -> None:
    """Train and judge what has no result yet."""
    measured = {"measured": [PER_TASK, PICTURES, STEPS], "model": weights_digest(TINY_KLEIN.path)}
    if not is_stored(RESULTS / "base.json", measured):
        store(RESULTS / "base.json", measured | {"figures": judge(TINY_KLEIN.load())} | provenance(COMMAND))
    for seed in seeds:
        for recipe in recipes:
            run, file = run_of(recipe, seed), RESULTS / f"{recipe}_{seed}.json"
            settings = measured | {"config": to_json(run)}
            if not is_stored(file, settings):
                seconds = train_to_end(run, recipe)
                result = {"name": recipe, "seed": seed, "seconds": seconds} | settings
                store(file, result | {"figures": judge(tuned_model(run, run.folder))} | provenance(COMMAND))
                print(file.stem, "is stored", flush=True)


def judge(model: Model) -> dict[str, list[float]]:
    """Verdicts on every held-out request, averaged over its pictures."""
    records = edit_suite("test", PER_TASK, 0)
    pictures = draw_images(model, records, PICTURES, STEPS, 1.0, 0)
    return dict(zip(VERDICTS, verdicts_of(records, pictures, VERDICTS).T.tolist()))


def write_report() -> None:
    """Pool the seeds of each recipe, and give each seed's own gain."""
    base = {name: np.array(row) for name, row in read_json(str(RESULTS / "base.json"))["figures"].items()}
    methods = [entry for recipe in METHODS if (entry := entry_of(recipe, base))]
    result = {
        "base": {name: to_json(of_requests(row)) for name, row in base.items()},
        "methods": methods,
        "command": f"{COMMAND} && python bench/editing.py report",
    }
    store(RESULTS.parent / "editing.json", result)
    print("| recipe | seed |", " | ".join(VERDICTS), "|\n|---|---|---|---|---|")
    print("| base | |", cells(result["base"], ""), "|")
    for entry in methods:
        print("|", entry["name"], "| all |", cells(entry["gains"], "+"), "|")
        for one in entry["runs"]:
            print("|", entry["name"], "|", one["seed"], "|", cells(one["gains"], "+"), "|")


def cells(figures: dict[str, dict], sign: str) -> str:
    return " | ".join(estimate_text(Estimate(**figures[name]), sign) for name in VERDICTS)


def entry_of(recipe: str, base: dict[str, np.ndarray]) -> dict | None:
    """One recipe: its gains over the base for other requests and seeds, and those of each seed for other requests."""
    stored = results_of(RESULTS, recipe)
    if not stored:
        return None
    every = {name: np.array([one["figures"][name] for one in stored]) for name in VERDICTS}
    alone = lambda name, i: to_json(of_requests(every[name][i] - base[name]))
    runs = [
        {key: one[key] for key in ("seed", "seconds", "git_commit", "hardware")}
        | {"gains": {name: alone(name, i) for name in VERDICTS}}
        for i, one in enumerate(stored)
    ]
    gains = {name: to_json(gain_over_base(every[name], base[name], STRATA)) for name in VERDICTS}
    return {"name": recipe, "recipe": recipe, "gains": gains, "runs": runs}


def of_requests(values: np.ndarray) -> Estimate:
    """Return the mean over requests with the interval for others, resampled within tasks."""
    return estimates(values[:, None], STRATA, 2000, np.random.default_rng(0))[0]


def main() -> None:
    options = work_parser(__doc__, ("train", "report"), list(METHODS)).parse_args()
    torch.set_num_threads(1)
    no_progress_bars()
    if options.work == "train":
        train(options.names or list(METHODS), options.seeds)
    else:
        write_report()


if __name__ == "__main__":
    main()
