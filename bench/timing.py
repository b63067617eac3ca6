"""Iterations to time: real ones with rewards that cost nothing, and the bare passes that they consist of."""

import argparse
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from harness import seconds_of

from afterflow.algorithms.base import Models, Scores
from afterflow.data.prompts import batch_rows
from afterflow.experiment.metrics_file import MetricsFile
from afterflow.models.pipeline import no_progress_bars
from afterflow.train.checkpoint import WeightState
from afterflow.train.clock import Clock
from afterflow.train.distributed import Processes
from afterflow.train.ema import Ema
from afterflow.train.explore import ExploreOptions, Explorer, Iteration
from afterflow.train.loop import Trainer, TrainOptions
from afterflow.train.one_pass import iterations


def timing_options(parser: argparse.ArgumentParser, rounds: int, prompts: int, chunk: int) -> argparse.Namespace:
    """Read the options of a benchmark that times iterations, with these defaults, and set torch's threads."""
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--prompts", type=int, default=prompts)
    parser.add_argument("--chunk", type=int, default=chunk)
    parser.add_argument("--retained-rows", type=int, default=0, help="rows whose graphs may wait; 0: two passes")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    no_progress_bars()
    return options


def setting(options: argparse.Namespace) -> dict:
    """Return what was timed and how often, for the result."""
    about = {name: getattr(options, name) for name in ("chunk", "rounds", "threads")}
    return about | {"torch": torch.__version__}


def rl_iterations(options, algorithm, model, parameters, velocity, prompts) -> Iterator[dict[str, float]]:
    """Explore and train with random rewards, which cost nothing; yield the metrics of every iteration."""
    rewards = torch.Generator().manual_seed(0)
    score = lambda leaves, *context: Scores({"reward": torch.rand(leaves.shape[:2], generator=rewards)})
    batch = lambda step: prompts[batch_rows(len(prompts), step, options.prompts, 0)]
    return explored_iterations(options, algorithm, model, parameters, Models(velocity), batch, score)


def explored_iterations(options, algorithm, model, parameters, models, batch, score) -> Iterator[dict[str, float]]:
    """Explore the prompts that `batch` gives and train on them; yield the metrics of every iteration."""
    clock, exploring = Clock(), ExploreOptions(0, model.latent_shape, options.chunk)
    explorer = Explorer(algorithm, models, batch, score, exploring, Processes(Accelerator(cpu=True)), clock)
    source = iterations(explorer, range(1000), options.retained_rows)
    return trained_iterations(algorithm, models, parameters, source, clock)


def trained_iterations(
    algorithm, models: Models, parameters: Mapping, source: Iterable[Iteration], clock: Clock
) -> Iterator[dict[str, float]]:
    """Train with optimizer, EMA and metrics file at a tiny learning rate; yield the metrics of every iteration."""
    optimizer, processes = torch.optim.AdamW(parameters.values(), 1e-6, fused=True), Processes(Accelerator(cpu=True))
    weights = WeightState(parameters, optimizer, Ema(parameters, 0.9), processes=processes)
    options = TrainOptions(lambda step: 1e-6, max_grad_norm=1.0)
    with tempfile.TemporaryDirectory() as folder:
        log = MetricsFile(Path(folder) / "metrics.jsonl", 0)
        for step, metrics in Trainer(algorithm, models, weights, clock, options).train(source):
            log.write(step, metrics)
            yield metrics


def pass_seconds(forward: Callable[[], torch.Tensor], module: torch.nn.Module, count: int) -> tuple[float, float]:
    """Return the seconds of `count` forward passes without gradients, and of as many with their backward passes."""

    def forwards():
        with torch.no_grad():
            for _ in range(count):
                forward()

    def both():
        for _ in range(count):
            forward().sum().backward()
        module.zero_grad()

    return seconds_of(forwards), seconds_of(both)


def bare_forward(options: argparse.Namespace, model, velocity, prompts) -> Callable[[], torch.Tensor]:
    """Return a forward pass on random states of a chunk."""
    x, t = torch.randn(options.chunk, *model.latent_shape), torch.rand(options.chunk)
    cond = prompts[torch.arange(options.chunk) % len(prompts)]
    return lambda: velocity(x, t, cond)
