"""Every method of the shapes world under the same seconds, by counted iterations.

    python bench/methods.py time                 # on a quiet machine
    python bench/methods.py train --seeds 0 1 2
    python bench/methods.py report

Two trainings at once slow each other, and by how much depends on what else runs.  So `time` first measures an
iteration of every method, in turn and alone; BUDGET seconds are as many iterations as that makes, rewards included,
evaluation and pictures not.  `train` does those, several trainings at a time, and judges each beside the base on
held-out prompts; what has been stored is not repeated.  `report` pools the seeds.

SFT, SOAR and DPO learn from images that are there, whose drawing does not count.  Flow-OPD needs teachers, see
generalist.py.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from harness import provenance, read_json

from afterflow.evaluation.comparison import (
    Finished,
    beside_base,
    curve,
    judge_run,
    judged_from_json,
    judged_to_json,
    pooled,
)
from afterflow.evaluation.differences import differences_of_methods
from afterflow.evaluation.report import ShapesSettings
from afterflow.evaluation.shapes_suite import Judged, suite_prompts
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.experiment.run_folder import RunFolder
from afterflow.experiment.serialization import to_json
from afterflow.experiment.stages import Chain, execute_chain
from afterflow.experiment.train_subprocess import CURVE_PROMPTS, check_same, has_ended
from afterflow.models.pipeline import no_progress_bars
from afterflow.recipes import RECIPES

BUDGET = 420
RESULTS = Path(__file__).parent / "results" / "methods"
TIMES = RESULTS / "times.json"
SUITE = ShapesSettings(prompts=280, images=4)
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


def time_methods(names: Sequence[str], rounds: int) -> None:
    """Store the seconds of an iteration of each method: the median over rounds of the second of two."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            run = replace(run_of(name, 2, 0), name=f"methods/{name}_time")
            run = run.with_options(held_out=None, eval_every=0, eval_rewards=())
            lines = RunFolder(execute(run, name).folder).metrics()
            shutil.rmtree(run.folder)
            seconds[name].append(lines[1]["seconds_trained"] - lines[0]["seconds_trained"])
            print(name, [round(value, 2) for value in seconds[name]], flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    times = read_json(str(TIMES)).get("seconds", {})
    times |= {name: round(statistics.median(values), 3) for name, values in seconds.items()}
    iterations = {name: round(BUDGET / value) for name, value in times.items()}
    TIMES.write_text(json.dumps({"seconds": times, "iterations": iterations, **provenance()}, indent=1) + "\n")


def result_file(name: str, seed: int) -> Path:
    return RESULTS / f"{name}_{seed}.json"


def train_methods(names: list[str], seeds: list[int], jobs: int) -> None:
    """Train what has no result yet, each in a process of its own."""

    def train(one: tuple[str, int]) -> int:
        command = [sys.executable, __file__, "one", one[0], "--seeds", str(one[1])]
        code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
        print(*one, "is stored" if code == 0 else f"ended with {code}", flush=True)
        return code

    missing = [(name, seed) for seed in seeds for name in names if not is_stored(name, seed)]
    with ThreadPoolExecutor(jobs) as pool:
        if any(list(pool.map(train, missing))):
            raise SystemExit("some ended with an error, see above; the same command goes on with them")


def is_stored(name: str, seed: int) -> bool:
    """Whether the result is there.  SystemExit where it is that of another recipe, or of other iterations."""
    stored, run = read_json(str(result_file(name, seed))), counted_run(name, seed)
    if stored and stored["config"] != to_json(run):
        raise SystemExit(f"{result_file(name, seed)} is of other settings; delete it")
    return bool(stored)


def counted_run(name: str, seed: int) -> Run:
    """The run with the iterations of BUDGET seconds."""
    return run_of(name, json.loads(TIMES.read_text())["iterations"][name], seed)


def train_one(name: str, seed: int) -> None:
    """Train one method with one seed, and store its figures prompt by prompt."""
    run = counted_run(name, seed)
    finished = trained_and_judged(run, name, name)
    result = {
        "name": name,
        "seed": seed,
        "iterations": run.batches.iterations,
        "seconds_trained": finished.lines[-1]["seconds_trained"],
        "config": to_json(run),
        "curve": curve(finished),
        "judged": shortened(finished.judged),
        **provenance(f"python bench/methods.py train --seeds {seed}"),
    }
    result_file(name, seed).write_text(json.dumps(result) + "\n")


def trained_and_judged(run: Run, recipe: str, name: str) -> Finished:
    """Train a run, or go on with it, and judge its pictures of the suite; `name` names it in reports."""
    check_same(run)
    if not has_ended(run.folder, run):
        execute(run, recipe, resume=bool(RunFolder(run.folder).checkpoints()))
    return judge_run(run.folder, run, name, SUITE)


def shortened(judged: Judged) -> dict:
    """Return the figures of every prompt with five decimals, which sums do not see; which image passed is left out."""
    figures = {name: np.round(values, 5) for name, values in judged.figures.items()}
    return judged_to_json(replace(judged, figures=figures, strict=np.zeros(0, bool)))


def report_methods() -> None:
    """Pool the stored seeds of each method, in one file and as a table."""
    methods, judged = [], {}
    for name in METHODS:
        stored = [json.loads(file.read_text()) for file in sorted(RESULTS.glob(f"{name}_[0-9]*.json"))]
        if stored:
            methods.append(pooled_entry(name, stored))
            judged[name] = [judged_from_json(one["judged"]) for one in stored]
    records = suite_prompts(SUITE, RECIPES["demo"]().model.load().drawn_size)
    result = {
        "budget_seconds": BUDGET,
        "methods": methods,
        "differences": differences_of_methods(judged, records, SUITE.split),
        "suite": to_json(SUITE),
        "command": " && ".join(f"python bench/methods.py {work}" for work in ("time", "train --seeds 0 1 2", "report")),
    }
    (RESULTS.parent / "methods.json").write_text(json.dumps(result) + "\n")
    print("| method | seeds | strict | closed | fidelity | diversity |\n|---|---|---|---|---|---|")
    for entry in methods:
        deltas = (
            entry["report"]["overall"][figure]["delta"] for figure in ("strict", "closed", "fidelity", "diversity")
        )
        cells = (f"{d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]" for d in deltas)
        print("|", entry["name"], "|", len(entry["runs"]), "|", " | ".join(cells), "|")


def pooled_entry(name: str, stored: list[dict]) -> dict:
    """One method: the report over its seeds, and each seed's own gain."""
    report = lambda judged: to_json(beside_base(run_of(name, 1, 0), SUITE, judged, name))
    runs = [
        {key: one[key] for key in ("seed", "iterations", "seconds_trained", "curve", "git_commit", "hardware")}
        | {"strict": report(judged_from_json(one["judged"]))["overall"]["strict"]}
        for one in stored
    ]
    return {"name": name, "report": report(pooled([judged_from_json(one["judged"]) for one in stored])), "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=("time", "train", "one", "report"))
    parser.add_argument("names", nargs="*", choices=[*METHODS, []], help="all of them without a name")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, each on one thread")
    parser.add_argument("--rounds", type=int, default=3, help="of timing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    no_progress_bars()
    names = options.names or list(METHODS)
    if options.work in ("time", "train"):
        prepare(names)
    if options.work == "time":
        time_methods(names, options.rounds)
    elif options.work == "train":
        train_methods(names, options.seeds, options.jobs)
    elif options.work == "one":
        train_one(names[0], options.seeds[0])
    else:
        report_methods()


if __name__ == "__main__":
    main()
