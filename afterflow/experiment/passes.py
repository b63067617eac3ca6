"""Whether an iteration takes one pass or two: may the graphs of a rollout wait for their rewards?"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..algorithms.base import OnPolicy
from ..algorithms.forward_process import learns_from_finished
from ..models.adapters import Full
from ..sampling.conditioning import Conditioning
from ..sampling.rollout import Retain
from ..sampling.seeds import generator
from ..train.one_pass import full_prompts
from .config import Run

if TYPE_CHECKING:
    from .setup import TrainingSetup

CPU_BYTES = 2 * 10**9
"""Bytes that waiting graphs may take on a CPU."""
GPU_SHARE = 0.7
"""Share of an accelerator's memory for weights, their optimizer and waiting graphs; the rest is for all else."""
MOST_PRUNED = 0.4
"""Share of the selected steps out of training beyond which two passes cost less: a backward pass costs 1.2 forward
passes, and one pass differentiates the steps that rewards take out as well."""


@dataclass(frozen=True)
class Passes:
    """How the velocities of an iteration are computed."""

    retained_rows: int
    """Rows of the policy whose graphs may wait for their rewards.  0: the update computes every row again."""
    words: str
    """The choice and its reason, for the first lines of a run."""


NO_ROLLOUT = Passes(0, "")
"""The passes of a run that images teach."""


def choose_passes(run: Run, algorithm: OnPolicy, row_bytes: float, limit: float) -> Passes:
    """Return one pass where the run allows it and its graphs fit into the memory, else two.

    Args:
        run: The run.
        algorithm: Its algorithm, on the model's own schedule.
        row_bytes: Bytes of the graph of one row, guidance included.
        limit: Bytes that all waiting graphs may take.
    """
    reason = two_pass_reason(run, algorithm)
    if reason is not None:
        return Passes(0, f"two: {reason}")
    rows, batches = run.batches.retained_rows, run.batches
    whole_batch = algorithm.requirements.waits_for_batch
    allowed = int(limit / row_bytes) if rows is None else rows
    everything, width = retained_rows(run, algorithm), algorithm.plan(0, generator(run.seed, 0, "plan")).widths[-1]
    # Fewer prompts than fill a forward pass would be padded to one.
    prompts = min(batches.batch, full_prompts(batches.chunk, width) * (1 + batches.overlap))
    needed = everything if whole_batch else -(-everything // batches.batch) * prompts
    size = lambda rows: f"{rows} rows ({rows * row_bytes / 10**9:.2f} GB)"
    if needed > allowed:
        of = "the batch, whose rewards are compared," if whole_batch else f"{prompts} prompts, which fill a pass,"
        return Passes(0, f"two: the graphs of {of} are {size(needed)}, and {size(allowed)} may wait (retained_rows)")
    most = min(allowed, everything)
    return Passes(most, f"one: the graphs of at most {size(most)} wait for their rewards")


def two_pass_reason(run: Run, algorithm: OnPolicy) -> str | None:
    """Return why a run takes two passes whatever the size of its graphs; None where that decides."""
    updates, pruned = run.batches.updates, algorithm.requirements.pruned
    reasons = {
        "its images are noised again, so that no step of a rollout is trained": learns_from_finished(algorithm),
        "retained_rows = 0": run.batches.retained_rows == 0,
        f"updates = {updates}, and the rollout is of the policy before the first": updates > 1,
        f"shard = {run.distribution.shard}": run.distribution.shard != "none",
        f"rewards take {pruned:.0%} of the steps out of training": pruned > MOST_PRUNED,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def retained_rows(run: Run, algorithm: OnPolicy) -> int:
    """Return the rows of the policy that an iteration trains, over all processes."""
    plan = algorithm.plan(0, generator(run.seed, 0, "plan"))
    selected = algorithm.select(plan, run.batches.batch, generator(run.seed, 0, "credit"))
    states = Retain.parents(plan, [level & plan.trained(k) for k, level in enumerate(selected)], 1).states
    return sum(int(level.sum()) for level in states)


def graph_memory(run: Run, device: torch.device, weights: int, trained: int) -> float:
    """Return the bytes that waiting graphs may take on a device.

    Args:
        run: The run.
        device: The device it trains on.
        weights: Bytes of the network that is trained, with its adapters.
        trained: Number of its weights that are trained.
    """
    if device.type == "cpu":
        return CPU_BYTES
    # Of what is there when training begins, and not of what is free: a resumed run must choose the same.
    total = torch.get_device_module(device).get_device_properties(device).total_memory
    copies = weights * copied_networks(run)
    return max(0.0, GPU_SHARE * total - weights - copies - 16 * trained)


def copied_networks(run: Run) -> int:
    """Return how many copies of the network lie beside the policy: none beside a LoRA."""
    requirements = run.algorithm.requirements
    if not isinstance(run.tune, Full):
        return 0
    frozen = requirements.reference is not None and requirements.reference.model != "average"
    return frozen + len(requirements.lagged) + len(run.teachers) + (requirements.anchor == "base")


def setup_passes(setup: "TrainingSetup", prompts: Conditioning) -> Passes:
    """Return the passes of a run that is loaded; the size of a graph is measured on one pass, where it decides."""
    run, network = setup.run, setup.model.module
    assert isinstance(setup.algorithm, OnPolicy)
    if two_pass_reason(run, setup.algorithm) is not None:
        return choose_passes(run, setup.algorithm, math.inf, 0.0)
    trained = sum(parameter.numel() for parameter in setup.weights.parameters.values())
    limit = graph_memory(run, setup.processes.accelerator.device, tensor_bytes(network.parameters()), trained)
    row_bytes = graph_bytes(trial_pass(setup, prompts), network) / run.batches.chunk
    # Processes on cards of different kinds must choose the same, or they would wait for each other for ever.
    measured = setup.processes.all_gather_objects([row_bytes, limit])
    return choose_passes(run, setup.algorithm, max(size for size, _ in measured), min(room for _, room in measured))


def trial_pass(setup: "TrainingSetup", prompts: Conditioning) -> Callable[[], Tensor]:
    """Return a forward pass of the policy on a chunk of blank states, (chunk, ...)."""
    chunk = setup.run.batches.chunk
    rows = prompts[torch.arange(chunk) % len(prompts)]
    x = torch.zeros(chunk, *setup.model.latent_shape, device=prompts.device)
    return lambda: setup.models.policy(x, x.new_ones(chunk), rows)


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def graph_bytes(make: Callable[[], Tensor], network: nn.Module) -> int:
    """Return the bytes that autograd saves while `make` computes a tensor, weights of the network not counted."""
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    sizes: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        made = make()
    del made  # until here, so that no storage was freed and its address counted for another
    return sum(sizes.values())
