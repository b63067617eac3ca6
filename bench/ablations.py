"""The papers' ablations, small: each varies one thing of one method, under the same seconds of training.

    python bench/ablations.py time                 # on a quiet machine
    python bench/ablations.py train
    python bench/ablations.py report

How seconds are counted stands in counted.py, and when a pair has been compared often enough in sequential.py: `train`
goes on with the pairs of PAIRS that are not decided, until all are or the seeds of the last look are there.  It may be
interrupted and does nothing twice.  A run that several ablations share is trained once.  `report` writes
bench/results/ablations/NAME.json for each.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from counted import SUITE, CountedTrainings, figures_of
from sequential import LOOKS, UNDECIDED, decide
from trainings import store, strata_of

from afterflow.algorithms.base import Comparisons
from afterflow.algorithms.branch_grpo import BranchGRPO
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.mix_grpo import MixGRPO
from afterflow.algorithms.pref_grpo import PrefGRPO
from afterflow.algorithms.pruning import Pruning
from afterflow.experiment.config import Run
from afterflow.experiment.serialization import to_json
from afterflow.models.pipeline import no_progress_bars
from afterflow.recipes import RECIPES
from afterflow.rewards.shapes_judge import ShapesJudge

RESULTS = Path(__file__).parent / "results" / "ablations"
IMAGES = 128
"""Of an iteration, the same for every variant as nearly as whole groups allow."""


def varied(recipe: str, **options) -> Run:
    """The recipe with options of its algorithm changed, and as many prompts as make IMAGES images."""
    run = RECIPES[recipe]()
    algorithm = replace(run.algorithm, **options)
    assert isinstance(algorithm, FlowGRPO | MixGRPO | BranchGRPO | PrefGRPO)
    return run.with_options(algorithm=algorithm, batch=max(1, IMAGES // algorithm.group))


def flow(**options) -> Run:
    return varied("shapes_flow_grpo_full", **options)


def branch(**options) -> Run:
    return varied("shapes_branch_grpo", **options)


def pref(judge: ShapesJudge, **options) -> Run:
    return replace(varied("shapes_pref_grpo", **options), judge=judge)


ABLATIONS = {
    "split_noise": {f"lambda_{lam:g}": branch(split_noise=lam) for lam in (1.0, 2.0, 4.0, 8.0)}
    | {"independent": branch(split_noise=None)},
    "splits": {
        "dense": branch(splits=(0, 1, 3, 4)),
        "sparse": branch(splits=(0, 2, 5, 7)),
    },
    "fusion": {"uniform": branch(path_weight=0.0), "path_weighted": branch(path_weight=1.0)},
    "children": {
        "K_2": branch(children=2, splits=(0, 1, 3, 4)),
        "K_4": branch(children=4, splits=(0, 1)),
    },
    "pruning": {
        "none": branch(),
        "width": branch(prune=Pruning("parent_top1")),
    },
    "flash": {
        "mix": varied("shapes_mix_grpo"),
        "flash": varied("shapes_mix_grpo_flash"),
    },
    "training_steps": {f"T_{steps}": flow(steps=steps) for steps in (5, 10, 40)},
    "group_size": {f"G_{group}": flow(group=group) for group in (4, 16)},
    "kernel": {name: varied("shapes_flow_grpo_cps", kernel=name) for name in ("flow_sde", "cps")},
    "margins": {
        # So soft that a win rate is the score itself, centred: what scores do whose margins are small beside noise.
        "score_small_noise": pref(ShapesJudge(softness=100.0, noise=0.02)),
        "forced_choice_small_noise": pref(ShapesJudge(noise=0.02)),
        "win_rate_small_noise": pref(ShapesJudge(noise=0.02, margin=0.1)),
    },
    "judge": {
        "biased_both_orders": pref(ShapesJudge(bias=0.3)),
        "biased_one_order": pref(ShapesJudge(bias=0.3), compare=Comparisons(both_orders=False)),
    },
}
PAIRS = (
    *(("training_steps", "T_10", other) for other in ("T_40", "T_5")),
    ("group_size", "G_16", "G_4"),
    ("kernel", "cps", "flow_sde"),
    ("flash", "flash", "mix"),
    ("pruning", "width", "none"),
    *(("split_noise", "lambda_4", other) for other in ("lambda_1", "lambda_2", "lambda_8", "independent")),
    ("splits", "dense", "sparse"),
    ("fusion", "path_weighted", "uniform"),
    ("children", "K_4", "K_2"),
    *(("margins", "win_rate_small_noise", other) for other in ("score_small_noise", "forced_choice_small_noise")),
    ("judge", "biased_both_orders", "biased_one_order"),
)
"""Ablation, and the two variants of it that a claim compares."""


def trained_as(run: Run) -> str:
    """The first variant of all ablations that is this run, as name of its training."""
    named = ((f"{name}_{key}", variant) for name, of_name in ABLATIONS.items() for key, variant in of_name.items())
    return next(path for path, variant in named if variant == run)


TRAINED = {trained_as(run): run for variants in ABLATIONS.values() for run in variants.values()}


def run_of(name: str, iterations: int, seed: int) -> Run:
    """A variant with as many iterations, in fp32 so that it is the same on every CPU."""
    options = {"iterations": iterations, "seed": seed, "name": f"ablations/{name}_{seed}", "sample_every": 0}
    return TRAINED[name].with_options(**options, keep_checkpoints=1, mixed_precision="no")


TRAININGS = CountedTrainings(__file__, RESULTS / "trainings", 300, run_of)


class Suite:
    """The suite's prompts, and what stored trainings score on each."""

    def __init__(self) -> None:
        self.records, self.prompts, self.strata = strata_of(SUITE)

    def figures(self, name: str) -> np.ndarray:
        """Strict (S, P) of the stored seeds of a training, by seed and prompt."""
        return figures_of(TRAININGS.results(name), self.records, self.prompts, "strict")

    def decided(self, ablation: str, first: str, second: str) -> dict:
        """What the stored seeds decide of two variants: the verdict, the seeds it took, and the interval."""
        variants = ABLATIONS[ablation]
        figures = [self.figures(trained_as(variants[name])) for name in (first, second)]
        verdict, seeds, apart = decide(*figures, self.strata)
        return {"first": first, "second": second, "verdict": verdict, "seeds": seeds, "strict": to_json(apart)}


def train_until_decided(jobs: int) -> None:
    """Train seeds of every pair until it is decided, or the seeds of the last look are there."""
    suite, before = Suite(), 0
    for seeds in sorted(LOOKS):
        open_pairs = [pair for pair in PAIRS if before == 0 or suite.decided(*pair)["verdict"] == UNDECIDED]
        names = dict.fromkeys(trained_as(ABLATIONS[name][key]) for name, *keys in open_pairs for key in keys)
        TRAININGS.train([(name, seed) for seed in range(seeds) for name in names], jobs)
        before = seeds


def write_reports() -> None:
    """Write the file of each ablation whose pairs have had their first look, and print what is decided."""
    suite = Suite()
    for ablation, variants in ABLATIONS.items():
        pairs = [suite.decided(*pair) for pair in PAIRS if pair[0] == ablation]
        if not all(pair["seeds"] for pair in pairs):
            continue
        trained = {key: trained_as(run) for key, run in variants.items()}
        result = {
            "methods": [TRAININGS.pooled_entry(name, TRAININGS.results(name), key) for key, name in trained.items()],
            "pairs": pairs,
            "budget_seconds": TRAININGS.budget,
            "suite": to_json(SUITE),
            "command": " && ".join(f"python bench/ablations.py {work}" for work in ("time", "train", "report")),
        }
        store(RESULTS / f"{ablation}.json", result)
        for pair in pairs:
            print(ablation, *pair.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    works = parser.add_subparsers(dest="work", required=True)
    works.add_parser("time").add_argument("--rounds", type=int, default=3)
    works.add_parser("train").add_argument(
        "--jobs", type=int, default=2, help="trainings at a time, each on one thread"
    )
    works.add_parser("report")
    one = works.add_parser("one", help="one training, as train starts it")
    one.add_argument("name", choices=list(TRAINED))
    one.add_argument("--seeds", type=int, nargs=1, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    no_progress_bars()
    if options.work == "time":
        TRAININGS.time(list(TRAINED), options.rounds)
    elif options.work == "train":
        train_until_decided(options.jobs)
    elif options.work == "one":
        TRAININGS.train_one(options.name, options.seeds[0])
    else:
        write_reports()


if __name__ == "__main__":
    main()
