"""Every method of the shapes world under the same seconds, by counted iterations.

    python bench/methods.py time                 # on a quiet machine
    python bench/methods.py train --seeds 0 1 2
    python bench/methods.py report

How seconds are counted, and what is stored, stands in counted.py.  `report` pools the seeds.

SFT, SOAR and DPO learn from images that are there, whose drawing does not count.  Flow-OPD needs teachers, see
generalist.py.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from counted import SUITE, CountedTrainings, parse_work
from trainings import strata_of

from afterflow.evaluation.comparison import judged_from_json
from afterflow.evaluation.differences import differences_of_methods
from afterflow.experiment.config import Run
from afterflow.experiment.serialization import to_json
from afterflow.experiment.stages import Chain, execute_chain
from afterflow.experiment.train_subprocess import CURVE_PROMPTS
from afterflow.models.pipeline import no_progress_bars
from afterflow.recipes import RECIPES

CURVE_POINTS = 6
METHODS = (
    "shapes_curated_sft",
    "shapes_curated_soar",
    "shapes_ddpo",
    "shapes_flow_grpo_full",
    "shapes_flow_grpo",
    "shapes_dance_grpo",
    "shapes_mix_grpo",
    "shapes_branch_grpo",
    "shapes_pref_grpo",
    "shapes_nft",
    "shapes_awm",
    "shapes_v_grpo",
    "shapes_flow_awr",
    "shapes_dgpo",
    "shapes_crd",
    "shapes_online_dpo",
    "shapes_dpo",
)


def run_of(name: str, iterations: int, seed: int) -> Run:
    """The recipe with as many iterations, and nothing else that is measured on the way but the curve."""
    recipe = RECIPES[name]()
    run = recipe.stages[-1] if isinstance(recipe, Chain) else recipe
    assert isinstance(run, Run)
    every = max(1, iterations // CURVE_POINTS)
    measured = {"held_out": CURVE_PROMPTS, "eval_every": every, "eval_rewards": ("shapes_strict",)}
    options = {"iterations": iterations, "seed": seed, "name": f"methods/{name}_{seed}", "sample_every": 0}
    # The same on every CPU, with bf16 or without, so that seeds may be trained on several.
    return run.with_options(**options, **measured, keep_checkpoints=1, mixed_precision="no")


def prepare(names: Sequence[str]) -> None:
    """Draw the images that methods learn from, once."""
    for recipe in (RECIPES[name]() for name in names):
        if isinstance(recipe, Chain):
            execute_chain(replace(recipe, stages=recipe.stages[:-1]))


TRAININGS = CountedTrainings(__file__, Path(__file__).parent / "results" / "methods", 420, run_of)


def report_methods() -> None:
    """Pool the stored seeds of each method, in one file and as a table."""
    methods, judged = [], {}
    for name in METHODS:
        if stored := TRAININGS.results(name):
            methods.append(TRAININGS.pooled_entry(name, stored))
            judged[name] = [judged_from_json(one["judged"]) for one in stored]
    result = {
        "budget_seconds": TRAININGS.budget,
        "methods": methods,
        "differences": differences_of_methods(judged, strata_of(SUITE)[0], SUITE.split),
        "suite": to_json(SUITE),
        "command": " && ".join(f"python bench/methods.py {work}" for work in ("time", "train --seeds 0 1 2", "report")),
    }
    (TRAININGS.folder.parent / "methods.json").write_text(json.dumps(result) + "\n")
    print("| method | seeds | strict | closed | fidelity | diversity |\n|---|---|---|---|---|---|")
    for entry in methods:
        deltas = (
            entry["report"]["overall"][figure]["delta"] for figure in ("strict", "closed", "fidelity", "diversity")
        )
        cells = (f"{d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]" for d in deltas)
        print("|", entry["name"], "|", len(entry["runs"]), "|", " | ".join(cells), "|")


def main() -> None:
    options = parse_work(__doc__, METHODS)
    torch.set_num_threads(1)
    no_progress_bars()
    names = options.names or list(METHODS)
    if options.work in ("time", "train"):
        prepare(names)
    if options.work == "time":
        TRAININGS.time(names, options.rounds)
    elif options.work == "train":
        TRAININGS.train([(name, seed) for seed in options.seeds for name in names], options.jobs)
    elif options.work == "one":
        TRAININGS.train_one(names[0], options.seeds[0])
    else:
        report_methods()


if __name__ == "__main__":
    main()
