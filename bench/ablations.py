"""The papers' ablations, small: each varies one thing of one method, under the same budget of training time.

    python bench/ablations.py --budget-seconds 300 --seeds 1
    python bench/ablations.py splits fusion --budget-seconds 300 --seeds 3

Writes bench/results/ablations/NAME.json for each; runs and pages are kept in runs/ablations, where a variant that
several ablations share is trained once.  It goes on where it was interrupted.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from harness import provenance

from afterflow.algorithms.base import Comparisons
from afterflow.algorithms.branch_grpo import BranchGRPO
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.mix_grpo import MixGRPO
from afterflow.algorithms.pref_grpo import PrefGRPO
from afterflow.algorithms.pruning import Pruning
from afterflow.evaluation.comparison import comparison, judge_run
from afterflow.evaluation.html_page import write_page
from afterflow.evaluation.report import ShapesSettings
from afterflow.experiment.config import Run
from afterflow.experiment.run_folder import read_run
from afterflow.experiment.train_subprocess import train_all
from afterflow.models.pipeline import no_progress_bars
from afterflow.recipes import RECIPES
from afterflow.rewards.shapes_judge import ShapesJudge

RESULTS = Path(__file__).parent / "results" / "ablations"
IMAGES = 256
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
        "mixed": branch(splits=(0, 2, 4, 6)),
        "sparse": branch(splits=(0, 2, 5, 7)),
    },
    "fusion": {"uniform": branch(path_weight=0.0), "path_weighted": branch(path_weight=1.0)},
    "children": {
        "K_2": branch(children=2, splits=(0, 1, 3, 4)),
        "K_3": branch(children=3, splits=(0, 1, 3)),
        "K_4": branch(children=4, splits=(0, 1)),
    },
    "pruning": {
        "none": branch(),
        "width": branch(prune=Pruning("parent_top1")),
        "depth": branch(prune=Pruning(depth=2)),
    },
    "flash": {
        "mix": varied("shapes_mix_grpo"),
        "flash": varied("shapes_mix_grpo_flash"),
        "flash_star": varied("shapes_mix_grpo_flash_star"),
    },
    "training_steps": {f"T_{steps}": flow(steps=steps) for steps in (5, 10, 40)},
    "group_size": {f"G_{group}": flow(group=group) for group in (4, 16, 32)},
    "kernel": {name: varied("shapes_flow_grpo_cps", kernel=name) for name in ("flow_sde", "cps")},
    "kl": {f"beta_{beta:g}": flow(beta=beta) for beta in (0.0, 0.01, 0.1)},
    "margins": {
        # So soft that a win rate is the score itself, centred: what scores do whose margins are small beside noise.
        "score": pref(ShapesJudge(softness=100.0)),
        "score_small_noise": pref(ShapesJudge(softness=100.0, noise=0.02)),
        "forced_choice_small_noise": pref(ShapesJudge(noise=0.02)),
        "win_rate_small_noise": pref(ShapesJudge(noise=0.02, margin=0.1)),
    },
    "judge": {
        "biased_both_orders": pref(ShapesJudge(bias=0.3)),
        "biased_one_order": pref(ShapesJudge(bias=0.3), compare=Comparisons(both_orders=False)),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*ABLATIONS, []], help="all of them without a name")
    parser.add_argument("--budget-seconds", type=float, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=280)
    parser.add_argument("--images", type=int, default=4)
    options = parser.parse_args()
    no_progress_bars()
    settings = ShapesSettings(prompts=options.prompts, images=options.images)
    summary = {}
    for name in options.names or ABLATIONS:
        command = (
            f"python bench/ablations.py {name} --budget-seconds {options.budget_seconds:g} --seeds {options.seeds}"
        )
        data = one(name, options, settings) | {"command": command}
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(data) + "\n")
        write_page(Path("runs/ablations") / name, data, f"Ablation: {name}", command)
        summary[name] = {m["name"]: m["report"]["overall"]["strict"] for m in data["methods"]}
    print(json.dumps(summary))


def one(name: str, options: argparse.Namespace, settings: ShapesSettings) -> dict:
    """Train and judge the variants of one ablation."""
    variants = ABLATIONS[name]
    runs = {trained_as(run): run for run in variants.values()}
    folders = train_all(runs, options.budget_seconds, options.seeds, "ablations")
    judged = [
        judge_run(folder, read_run(folder)[0], variant, settings)
        for folder, variant in zip(folders, list(variants) * options.seeds, strict=True)
    ]
    return comparison(judged, settings) | provenance()


def trained_as(run: Run) -> str:
    """The first variant of all ablations that is this run."""
    named = ((f"{name}/{key}", variant) for name, of_name in ABLATIONS.items() for key, variant in of_name.items())
    return next(path for path, variant in named if variant == run)


if __name__ == "__main__":
    main()
