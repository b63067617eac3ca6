"""Does an iteration cost in proportion to its work?  Group, prompts and steps once, twice and four times; LoRA rank.

    python bench/linear_costs.py --json bench/results/linear_costs.json

Iterations of Flow-GRPO are real ones (rollout, credit, loss, optimizer, EMA, metrics file) on the shipped pipeline;
decode and rewards are left out.  Variants take turns, each in seconds of this process's CPU time.  For group, prompts
and steps `per_evaluation` is the cost of a velocity evaluation over that of the smallest variant: 1 is in proportion.
For the rank `ratio` is that of whole iterations: below the ratio of the ranks is less than in proportion.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace

from harness import make_parser, provenance, write_json
from timing import rl_iterations, setting, timing_options

from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.data.prompts import ShapesPrompts
from afterflow.models.adapters import LoRA, attach
from afterflow.models.generate import encode_records
from afterflow.models.sd3 import SD3
from afterflow.models.wrappers import in_chunks

ALGORITHM = FlowGRPO({"reward": 1.0}, steps=6, group=8, beta=0.0)
RANKS = (8, 32, 128)
RANK = RANKS[1]
"""Of the variants whose rank is not varied."""
TIMES = (1, 2, 4)


def main() -> None:
    options = timing_options(make_parser(__doc__), rounds=5, prompts=4, chunk=32)
    images, steps = options.prompts * ALGORITHM.group, ALGORITHM.steps
    # Evaluations of an iteration: those of the rollout, and a forward and backward pass (as three) of trained steps.
    cost = lambda count, steps: count * (steps + 3 * (steps - 1))
    variants: dict[str, tuple[FlowGRPO, int, int, float]] = {}
    for n in TIMES:
        variants |= {
            f"group x{n}": (
                replace(ALGORITHM, group=ALGORITHM.group * n),
                options.prompts,
                RANK,
                cost(images * n, steps),
            ),
            f"prompts x{n}": (ALGORITHM, options.prompts * n, RANK, cost(images * n, steps)),
            f"steps x{n}": (replace(ALGORITHM, steps=steps * n), options.prompts, RANK, cost(images, steps * n)),
        }
    variants |= {f"rank {rank}": (ALGORITHM, options.prompts, rank, cost(images, steps)) for rank in RANKS}
    runs = {name: variant(options, *about[:3]) for name, about in variants.items()}
    seconds = {name: [] for name in runs}
    for step in range(options.rounds + 1):
        for name, iterations in runs.items():
            began = time.process_time()
            next(iterations)
            if step:  # the first warms up
                seconds[name].append(time.process_time() - began)
    total = {name: sum(values) for name, values in seconds.items()}
    costs = {name: about[3] for name, about in variants.items()}
    result = {
        name: per_evaluation(name, total, costs) if "x" in name else {"ratio": round(total[name] / total["rank 8"], 4)}
        for name in runs
    }
    write_json({"variants": result, **setting(options), **provenance()}, options.json, indent=1)


def variant(options: argparse.Namespace, algorithm: FlowGRPO, prompts: int, rank: int) -> Iterator[dict[str, float]]:
    """Iterations of a model of its own."""
    model = SD3(options.model).load()
    parameters = attach(model, LoRA(rank=rank, alpha=rank))
    encoded = encode_records(model, ShapesPrompts(count=64).records(0))
    velocity = in_chunks(model.velocity(model.module), options.chunk)
    about = argparse.Namespace(**vars(options) | {"prompts": prompts})
    return rl_iterations(about, algorithm, model, parameters, velocity, encoded)


def per_evaluation(name: str, total: dict[str, float], costs: dict[str, float]) -> dict[str, float]:
    """The seconds of an evaluation over those of the variant with once as much."""
    smallest = f"{name.split(' x')[0]} x1"
    value = total[name] / costs[name] / (total[smallest] / costs[smallest])
    return {"per_evaluation": round(value, 4), "seconds": round(total[name], 2)}


if __name__ == "__main__":
    main()
