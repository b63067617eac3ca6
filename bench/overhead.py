"""How much slower is a Flow-GRPO iteration than the bare model calls it is made of?

    python bench/overhead.py --json -

The iteration is the real one (rollout, credit, loss, optimizer, EMA, metrics file); decode and rewards are left
out.  The bare side runs the same network, forwards and backwards, on synthetic tensors of the same rows and
shapes.  Both are timed in turn; the ratio is the median over the pairs.
"""

import argparse
import statistics
from contextlib import nullcontext

import torch
from harness import seconds_of, write_json
from timing import rl_iterations, setting, timing_options

from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.data.prompts import ShapesPrompts
from afterflow.models.adapters import LoRA, attach
from afterflow.models.generate import encode_records
from afterflow.models.sd3 import SD3
from afterflow.models.wrappers import in_chunks, in_context


def main() -> None:
    options = timing_options(__doc__, rounds=7, prompts=8, chunk=64)
    write_json(measure(options), options.json)


def measure(options: argparse.Namespace) -> dict:
    """Return the ratio, and the seconds of every pair."""
    model = SD3(options.model).load()
    parameters = attach(model, LoRA())
    algorithm = FlowGRPO(weights={"reward": 1.0}, group=16, steps=10, window=4, window_range=(0, 4), beta=0.0)
    prompts = encode_records(model, ShapesPrompts(count=64).records(0))
    velocity = in_chunks(in_context(model.velocity(model.module), nullcontext), options.chunk)
    iterations = rl_iterations(options, algorithm, model, parameters, velocity, prompts)
    bare = bare_calls(options, algorithm, model, velocity, prompts)
    next(iterations), bare()
    seconds = [(seconds_of(lambda: next(iterations)), seconds_of(bare)) for _ in range(options.rounds)]
    ratios = [iteration / calls for iteration, calls in seconds]
    return {
        "ratio": round(statistics.median(ratios), 4),
        "ratios": [round(r, 4) for r in ratios],
        "iteration_seconds": [round(a, 4) for a, _ in seconds],
        "bare_seconds": [round(b, 4) for _, b in seconds],
        "rows": options.prompts * algorithm.group,
        **setting(options),
    }


def bare_calls(options, algorithm, model, velocity, prompts):
    """Return a function that calls the network alone, as often and on as many rows as an iteration does."""
    rows = options.prompts * algorithm.group
    x, t = torch.randn(options.chunk, *model.latent_shape), torch.rand(options.chunk)
    embedding = prompts[torch.arange(options.chunk) % len(prompts)].embedding()

    def forward():
        return model.module(
            hidden_states=x,
            timestep=1000 * t,
            encoder_hidden_states=embedding.sequence,
            pooled_projections=embedding.pooled,
            return_dict=False,
        )[0]

    def calls():
        with torch.no_grad():
            for _ in range(algorithm.steps * rows // options.chunk):
                forward()
        for _ in range(algorithm.window * rows // options.chunk):
            forward().sum().backward()
        model.module.zero_grad()

    return calls


if __name__ == "__main__":
    main()
