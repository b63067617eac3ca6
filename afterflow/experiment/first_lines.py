"""The first lines of a run: where it is, what it trains on what, what is measured, and how long it will take."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..algorithms.base import explores
from ..data.images import ImageSource, image_noun
from ..data.pairs import SampledPairs
from ..models.adapters import LoRA
from ..sampling.conditioning import Conditioning
from ..system.input_pictures import content_key
from ..system.running_time import running_seconds
from .cost_estimate import count_rows
from .passes import Passes, trial_pass
from .run_folder import duration
from .setup import TrainingSetup

BACKWARD = 2
"""Seconds of a backward pass, in those of a forward pass."""
TIMED_AGAIN = 10.0
"""Seconds below which a pass is timed three times."""


def describe_run(setup: TrainingSetup, recipe: str, records: Sequence[dict], held_out: Sequence[dict]) -> list[str]:
    """Return the lines that are known before data are encoded.

    Args:
        setup: The run, loaded.
        recipe: The name of its recipe.
        records: The prompts to explore; none where images come with theirs.
        held_out: The held-out prompts.
    """
    run = setup.run
    begins = f", goes on at iteration {setup.first}" if setup.first else ""
    return [
        f"{run.folder}: {type(run.algorithm).__name__}, recipe {recipe}, seed {run.seed}{begins}",
        f"  model     {run.model.path} ({type(run.model).__name__}), {device_words(setup)}",
        f"  trains    {trained_words(setup)}",
        f"  data      {data_words(setup, records)}",
        f"  held out  {held_out_words(setup, records, held_out)}",
        *(f"  note      {remark}" for remark in run.algorithm.remarks),
    ]


def device_words(setup: TrainingSetup) -> str:
    """Return the precision, the device and the number of processes."""
    run, device, count = setup.run, setup.processes.accelerator.device, setup.processes.count
    gpu = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    mixed, quantize = run.optimization.mixed_precision, run.model.quantize
    precision = run.model.dtype + (f" in {quantize}" if quantize is not None else "")
    precision += f", passes in {mixed}" if mixed != "no" else ""
    return f"{precision}, on {device}{gpu}" + (f" and {count - 1} more processes" if count > 1 else "")


def trained_words(setup: TrainingSetup) -> str:
    """Return what is trained, with the number of its weights and of all."""
    tune, trained = setup.run.tune, sum(parameter.numel() for parameter in setup.weights.parameters.values())
    total = sum(parameter.numel() for parameter in setup.model.module.parameters())
    what = f"a LoRA of rank {tune.rank}" if isinstance(tune, LoRA) else "all weights of the transformer"
    return f"{what}: {trained:,} of {total:,} parameters, learning rate {setup.run.optimization.learning_rate:g}"


def data_words(setup: TrainingSetup, records: Sequence[dict]) -> str:
    """Return how many prompts there are, what an iteration takes of them, and what rewards them."""
    run, kind = setup.run, type(setup.run.data).__name__
    source = getattr(run.data, "path", getattr(run.data, "dataset", None))
    origin = kind if source is None else f"{kind} {source}"
    if isinstance(run.data, ImageSource):
        if isinstance(run.data, SampledPairs):
            drawn = f"{run.data.per_prompt} images of each of {len(records)} prompts"
            return f"pairs of {drawn}, which are drawn first; {run.batches.batch} an iteration"
        return f"{image_noun(run.data)} of {origin}, which are read first; {run.batches.batch} an iteration"
    weights = ", ".join(f"{weight:g} {name}" for name, weight in run.algorithm.requirements.weights.items())
    group = getattr(run.algorithm, "group", None)
    images = f" with {group} images each" if group else ""
    rewards = f"; rewards {weights}" if weights else ""
    return f"{len(records)} prompts of {origin}; {run.batches.batch} an iteration{images}{rewards}"


def held_out_words(setup: TrainingSetup, records: Sequence[dict], held_out: Sequence[dict]) -> str:
    """Return what is measured on which held-out prompts, and what chooses best/; or that nothing is."""
    run = setup.run
    share = run.evaluation.held_out_share
    if not held_out:
        why = f" (a share of {share:g} of so few prompts is less than one)" if share else ""
        return f"none{why}: nothing is evaluated and there is no best/; --held-out-prompts FILE names some"
    origin = "of the run's own" if share else f"of {type(run.evaluation.held_out).__name__}"
    trained = {content_key(record) for record in records}
    seen = sum(content_key(record) in trained for record in held_out)
    overlap = f", {seen} of which are trained on as well" if seen else ", none of which is trained on"
    rewards = ", ".join([f"{name} (not trained)" if name in run.hidden else name for name in run.watched])
    rewards += " and the win rate over the untrained model" if run.held_out_judge is not None else ""
    best = f"best/ by {run.best_reward}" if run.best_reward is not None else "no best/"
    measured = rewards or "the spread of images alone"
    every = f"every {run.evaluation.eval_every} iterations"
    return f"{len(held_out)} prompts {origin}{overlap if records else ''}; {every} {measured}; {best}"


def expected_words(setup: TrainingSetup, seconds_per_pass: float, passes: Passes) -> str:
    """Return how long the run will take, from the seconds of a forward pass."""
    run, chunk = setup.run, setup.run.batches.chunk
    rows = count_rows(run.with_options(algorithm=setup.algorithm))
    update = BACKWARD if passes.retained_rows else 1 + BACKWARD
    cost = sum(count * (update if name == "update" else 1) for name, count in rows.items())
    iteration = seconds_per_pass * cost / chunk / setup.processes.count
    left, budget = (run.batches.iterations - setup.first) * iteration, run.batches.budget_seconds
    if budget is not None and budget < left:
        return f"  takes     {duration(budget)} at the most, which is its budget, without evaluation and pictures"
    beside = "rewards, evaluation and pictures" if explores(run.algorithm) else "evaluation and pictures"
    count = run.batches.iterations - setup.first
    return f"  takes     about {duration(left)} for {count} iterations, without {beside}; first guess from one pass"


def wait_for(computed: Tensor) -> None:
    """Wait until an accelerator has computed a tensor, which it only queues."""
    if computed.device.type != "cpu":
        torch.get_device_module(computed.device).synchronize()


def pass_seconds(setup: TrainingSetup, prompts: Conditioning) -> float:
    """Return the seconds of one forward pass of a chunk, on the slowest process: of short ones the shortest of three.

    Whatever else the machine does can stretch a pass to many times its length.
    """
    make = trial_pass(setup, prompts)

    def timed() -> float:
        start = running_seconds()
        wait_for(make())
        return max(setup.processes.all_gather_objects(running_seconds() - start))

    with torch.no_grad():
        wait_for(make())  # the first pass also warms up
        seconds = timed()
        return min(seconds, timed(), timed()) if seconds < TIMED_AGAIN else seconds
