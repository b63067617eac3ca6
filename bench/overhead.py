"""How much slower is a Flow-GRPO iteration than the bare model calls it is made of?

    python bench/overhead.py --json -

The iteration is the real one (rollout, credit, loss, optimizer, EMA, metrics file); decode and rewards are left
out.  The bare side runs the same network, forwards and backwards, on synthetic tensors of the same rows and
shapes.  Both are timed in turn; the ratio is the median over the pairs.
"""

import argparse
import json
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator

from afterflow.algorithms.base import Models, Scores
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.data.prompts import ShapesPrompts, batch_rows
from afterflow.experiment.run_folder import MetricsFile
from afterflow.models.adapters import LoRA, attach
from afterflow.models.generate import encode_records
from afterflow.models.sd3 import SD3
from afterflow.models.wrappers import in_chunks, in_context
from afterflow.train.checkpoint import WeightState
from afterflow.train.clock import Clock
from afterflow.train.distributed import Processes
from afterflow.train.ema import Ema
from afterflow.train.explore import ExploreOptions, Explorer
from afterflow.train.loop import Trainer, TrainOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", default="-", help="file, or - for standard output")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = measure(options)
    line = json.dumps(result)
    if options.json != "-":
        Path(options.json).write_text(line + "\n")
    print(line)


def measure(options: argparse.Namespace) -> dict:
    """The ratio, and the seconds of every pair."""
    model = SD3(options.model).load()
    parameters = attach(model, LoRA())
    algorithm = FlowGRPO(weights={"reward": 1.0}, group=16, steps=10, window=4, window_range=(0, 4), beta=0.0)
    prompts = encode_records(model, ShapesPrompts(count=64).records(0))
    velocity = in_chunks(in_context(model.velocity(model.module), nullcontext), options.chunk)
    iterations = ours(options, algorithm, model, parameters, velocity, prompts)
    bare = bare_calls(options, algorithm, model, velocity, prompts)
    next(iterations), bare()
    seconds = [(clocked(lambda: next(iterations)), clocked(bare)) for _ in range(options.pairs)]
    ratios = [ours / bare for ours, bare in seconds]
    return {
        "ratio": round(statistics.median(ratios), 4),
        "ratios": [round(r, 4) for r in ratios],
        "iteration_seconds": [round(a, 4) for a, _ in seconds],
        "bare_seconds": [round(b, 4) for _, b in seconds],
        "rows": options.prompts * algorithm.group,
        "chunk": options.chunk,
        "threads": options.threads,
        "torch": torch.__version__,
    }


def ours(options, algorithm, model, parameters, velocity, prompts):
    """The real iterations, with rewards that cost nothing."""
    draws = torch.Generator().manual_seed(0)
    score = lambda leaves, *asked: Scores({"reward": torch.rand(leaves.shape[:2], generator=draws)})
    clock, models = Clock(), Models(velocity)
    batch = lambda step: prompts[batch_rows(len(prompts), step, options.prompts, 0)]
    exploring = ExploreOptions(0, model.latent_shape, options.chunk)
    source = Explorer(algorithm, models, batch, score, exploring, Processes(), clock).iterations(range(1000))
    return carried_out(algorithm, models, parameters, source, clock)


def carried_out(algorithm, models, parameters, source, clock):
    """The metrics of each iteration of a source, with optimizer, EMA and metrics file; the rate is almost nothing."""
    optimizer, processes = torch.optim.AdamW(parameters.values(), 1e-6, fused=True), Processes(Accelerator(cpu=True))
    weights = WeightState(parameters, optimizer, Ema(parameters, 0.9), processes=processes)
    options = TrainOptions(lambda step: 1e-6, max_grad_norm=1.0)
    steps = Trainer(algorithm, models, weights, clock, options).train(source)
    with tempfile.TemporaryDirectory() as folder:
        log = MetricsFile(Path(folder) / "metrics.jsonl", 0)
        for step, metrics in steps:
            log.write(step, metrics)
            yield metrics


def bare_calls(options, algorithm, model, velocity, prompts):
    """The network alone, as often and on as many rows as an iteration calls it."""
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


def clocked(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
