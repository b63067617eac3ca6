"""Seconds per iteration of each method beside DanceGRPO, and what counting forwards and backwards predicts.

    python bench/iteration_time.py --json -

Iterations are real ones (rollout, credit, loss, optimizer, EMA, metrics file) on the shipped pipeline with LoRA; decode
and rewards, which are the same for all, are left out.  Every round times each method once, in turn; a ratio is of
the sums over all rounds, because windows move and iterations differ in length.

    predicted = (nfe_old + nfe_new (1 + b)) / (the same of DanceGRPO)          in two passes
    predicted = (nfe_old + nfe_new b) / (the same of DanceGRPO)                in one pass, with --retained-rows

nfe_old: velocity evaluations per image of the rollout; nfe_new: those per image that are also differentiated, where
children of one state share one; b: seconds of a backward pass over those of a forward pass, measured on the bare
network in the same run.  Both are means over the iterations timed.
"""

import argparse
import statistics
from dataclasses import replace

from harness import make_parser, provenance, seconds_of, write_json
from timing import bare_forward, pass_seconds, rl_iterations, setting, timing_options

from afterflow.algorithms.branch_grpo import BranchGRPO
from afterflow.algorithms.dance_grpo import DanceGRPO
from afterflow.algorithms.mix_grpo import MixGRPO
from afterflow.algorithms.pruning import Pruning
from afterflow.algorithms.windows import SlidingWindow
from afterflow.data.prompts import ShapesPrompts
from afterflow.models.adapters import LoRA, attach
from afterflow.models.generate import encode_records
from afterflow.models.sd3 import SD3
from afterflow.models.wrappers import in_chunks

T = 20
REWARD = {"reward": 1.0}
DANCE = DanceGRPO(REWARD, steps=T, group=16, fraction=1.0)
# Windows move every iteration, so that a few iterations see many of their places.
MIX = MixGRPO(REWARD, steps=T, group=16, window=SlidingWindow(every=1, order="random"))
BRANCH = BranchGRPO(REWARD, steps=T)
METHODS = {
    "dance_grpo": DANCE,
    "dance_grpo_60": replace(DANCE, fraction=0.6),
    "mix_grpo": MIX,
    "mix_grpo_flash": replace(MIX, flash=0.4),
    "mix_grpo_flash_star": replace(MIX, flash=0.2, window=SlidingWindow(order="frozen")),
    "branch_grpo": BRANCH,
    "branch_grpo_pruned": replace(BRANCH, prune=Pruning("parent_top1")),
    "branch_grpo_mix": replace(BRANCH, mix=SlidingWindow(every=1, order="random", idle=1)),
}


def main() -> None:
    options = timing_options(make_parser(__doc__), rounds=5, prompts=16, chunk=16)
    write_json(measure(options), options.json)


def measure(options: argparse.Namespace) -> dict:
    model = SD3(options.model).load()
    parameters = attach(model, LoRA())
    prompts = encode_records(model, ShapesPrompts(count=64).records(0))
    velocity = in_chunks(model.velocity(model.module), options.chunk)
    runs = {
        name: rl_iterations(options, algorithm, model, parameters, velocity, prompts)
        for name, algorithm in METHODS.items()
    }
    for iterations in runs.values():
        next(iterations)
    seconds, nfe, forward, both = {name: [] for name in runs}, {name: [] for name in runs}, [], []
    for _ in range(options.rounds):
        for name, iterations in runs.items():
            metrics = {}
            seconds[name].append(seconds_of(lambda run=iterations, metrics=metrics: metrics.update(next(run))))
            nfe[name].append((metrics["nfe/rollout"], metrics["nfe/update"]))
        f, b = pass_seconds(bare_forward(options, model, velocity, prompts), model.module, 20)
        forward.append(f), both.append(b)
    backward_over_forward = statistics.median(b / f for b, f in zip(both, forward)) - 1
    counted = {name: [sum(column) / len(pairs) for column in zip(*pairs)] for name, pairs in nfe.items()}
    again = 0 if options.retained_rows else 1
    cost = {name: old + new * (again + backward_over_forward) for name, (old, new) in counted.items()}
    over = lambda name, other: sum(seconds[name]) / sum(seconds[other])
    return {
        "methods": {
            name: {
                "ratio": round(over(name, "dance_grpo"), 4),
                "vs_dance_60": round(over(name, "dance_grpo_60"), 4),
                "predicted": round(cost[name] / cost["dance_grpo"], 4),
                "predicted_vs_dance_60": round(cost[name] / cost["dance_grpo_60"], 4),
                "nfe_old": round(counted[name][0], 4),
                "nfe_new": round(counted[name][1], 4),
                "seconds": round(statistics.median(seconds[name]), 3),
            }
            for name in METHODS
        },
        "backward_over_forward": round(backward_over_forward, 4),
        "T": T,
        "images": options.prompts * 16,
        "retained_rows": options.retained_rows,
        **setting(options),
        **provenance(),
    }


if __name__ == "__main__":
    main()
