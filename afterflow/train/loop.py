"""The training loop.  It descends the losses of an algorithm and knows none by name."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..algorithms.base import Algorithm, Models, Rows
from ..sampling.conditioning import move_rows
from ..system.errors import TrainingStopped
from .checkpoint import WeightState
from .clock import Clock
from .distributed import Processes
from .explore import Iteration

_log = logging.getLogger(__name__)

MAX_SKIPPED = 20
"""Number of updates in a row that may be left out."""


@dataclass(frozen=True)
class TrainOptions:
    """How an optimizer descends."""

    learning_rate: Callable[[int], float]
    """Learning rate of an iteration."""
    max_grad_norm: float
    """Norm that longer gradients are shortened to."""
    skip_nonfinite: bool = False
    """Whether updates whose loss or gradient is not finite are left out and counted; else they stop training."""


class SkipPolicy:
    """Decides which updates are left out, and stops training where they are too many in a row."""

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self.in_a_row = 0

    def accept(self, step: int, problem: str | None, overflow: bool) -> bool:
        """Return whether an update of iteration `step` counts; it does where there is no problem.

        TrainingStopped is raised for a problem that is neither to be skipped nor an overflow of a gradient scaler.
        """
        self.in_a_row = 0 if problem is None else self.in_a_row + 1
        if self.in_a_row > (MAX_SKIPPED if self.skip or overflow else 0):
            raise TrainingStopped(f"step {step}: {problem}")
        if problem is not None and self.skip:
            _log.warning(f"step {step}: an update is left out, because {problem}")
        return problem is None


@dataclass(frozen=True)
class Trainer:
    """Descends the updates of iterations."""

    algorithm: Algorithm
    models: Models
    weights: WeightState
    clock: Clock
    options: TrainOptions

    def train(self, iterations: Iterable[Iteration]) -> Iterator[tuple[int, dict[str, float]]]:
        """Descend each iteration's updates; yield its number and its metrics when it is done.

        What happens between iterations (logs, pictures, checkpoints) is the caller's, who may stop at any yield.
        TrainingStopped is raised where a loss or a gradient is not finite, if such updates are not to be skipped.
        """
        policy = SkipPolicy(self.options.skip_nonfinite)
        for iteration in iterations:
            rate = self.options.learning_rate(iteration.step)
            for group in self.weights.optimizer.param_groups:
                group["lr"] = rate
            history: defaultdict[str, list[float]] = defaultdict(list)
            for update in iteration.updates:
                measured, problem, overflow = self._update(iteration, update)
                accepted = policy.accept(iteration.step, problem, overflow)
                for name, value in measured.items() if accepted else ():
                    history[name].append(value)
                if self.options.skip_nonfinite:
                    history["skipped"].append(float(not accepted))
            means = {name: max(v) if name.endswith("_max") else sum(v) / len(v) for name, v in history.items()}
            yield iteration.step, {**iteration.metrics, **means, "learning_rate": rate, **self.clock.read()}
            del iteration  # its rows need not be in memory while the next are explored

    def _update(
        self, iteration: Iteration, update: Sequence[Sequence[Tensor]]
    ) -> tuple[dict[str, float], str | None, bool]:
        """Make one update where loss and gradient are finite.

        Returns what was measured, what is not finite, and whether that is an overflow of a gradient scaler.
        """
        weights, processes = self.weights, self.weights.processes
        with self.clock("update"):
            parameters, overflow = list(weights.parameters.values()), False
            measured, problem = gradients(self.algorithm, self.models, iteration, update, parameters, processes)
            if problem is None:
                norm = processes.clip(parameters, self.options.max_grad_norm)
                measured["grad_norm"] = norm.item()
                if not norm.isfinite():
                    problem = f"the gradient norm is {norm.item()}; lower the learning rate"
                # A gradient scaler looks for its scale by overflowing now and then, and leaves such updates out.
                overflow = problem is not None and processes.accelerator.scaler is not None
                if problem is None or overflow:
                    weights.optimizer.step()
            if problem is None and weights.ema is not None:
                weights.ema.update(weights.parameters)
            weights.optimizer.zero_grad()
        return measured, problem, overflow


@dataclass(frozen=True)
class Microbatch:
    """The rows of one forward pass."""

    rows: Rows
    share: float
    """Their share of the mass of an update, over all processes, by which what is measured is averaged."""
    loss_share: float
    """Their share of all steps that the loss is averaged over, those without pull included."""
    ends_partition: bool = False
    """Whether gradients are moved into the fp64 sums after it."""


def microbatches(
    iteration: Iteration, update: Sequence[Sequence[Tensor]], processes: Processes
) -> Iterator[Microbatch]:
    """Yield the microbatches of an update on this process.

    Where weights are sharded, every process must make as many passes; one with fewer rows adds idle ones.
    """
    masses = [[iteration.rows.mass(rows) for rows in partition] for partition in update]
    local = [mass for partition in masses for mass in partition]
    gathered = processes.all_gather_objects([sum(local), len(local)])
    total, passes = sum(mass for mass, _ in gathered), max(count for _, count in gathered)
    for partition, partition_masses in zip(update, masses):
        for n, (rows, mass) in enumerate(zip(partition, partition_masses), 1):
            ends = len(update) > 1 and n == len(partition)
            yield Microbatch(iteration.rows[rows], mass / total, iteration.share * (mass / total), ends)
    if processes.sharded:
        assert iteration.idle is not None
        yield from [Microbatch(iteration.idle, 0.0, 0.0)] * (passes - len(local))


def gradients(
    algorithm: Algorithm,
    models: Models,
    iteration: Iteration,
    update: Sequence[Sequence[Tensor]],
    parameters: Sequence[nn.Parameter],
    processes: Processes,
) -> tuple[dict[str, float], str | None]:
    """Compute the gradients of the mean loss over the microbatches of an update, each counting by its mass.

    The mean is over all steps that a rollout trains, also over those on which nothing pulls and which are no rows.
    What is measured is averaged over rows.

    Returns what was measured, over all processes, and what is not finite about the loss; then gradients are
    unfinished.

    Args:
        algorithm: The algorithm whose losses are descended.
        models: The velocity fields that it may call.
        iteration: The iteration whose rows are trained on.
        update: The rows of each microbatch, partition by partition.
        parameters: What is trained.
        processes: The processes of the run.
    """
    sums: dict[nn.Parameter, Tensor] = {}
    measured: list[tuple[str, float, Tensor]] = []
    problem = None
    for microbatch in microbatches(iteration, update, processes):
        not_finite = _backward(algorithm, models, microbatch, processes, measured)
        problem = problem or not_finite
        if problem is not None and not processes.sharded:
            break
        if microbatch.ends_partition:
            _move_gradients(parameters, sums)
    # Numbers are read when all is queued: to ask for one is to wait for it.
    means = _merge({name: (1.0 if name.endswith("_max") else share) * value.item()} for name, share, value in measured)
    gathered = processes.all_gather_objects([means, problem])
    problem = next((problem for _, problem in gathered if problem is not None), None)
    if problem is None:
        processes.add_gradients(parameters, sums)
    return _merge(means for means, _ in gathered), problem


def _backward(
    algorithm: Algorithm,
    models: Models,
    microbatch: Microbatch,
    processes: Processes,
    measured: list[tuple[str, float, Tensor]],
) -> str | None:
    """Add the gradients of a microbatch, and its metrics with their share to `measured`.

    Returns what is not finite about a loss.  Where weights are sharded the others wait for this pass, so that it goes
    on; else it ends there.
    """
    rows, share, problem = move_rows(microbatch.rows, processes.accelerator.device), microbatch.share, None
    for loss, metrics in algorithm.losses(models, rows):
        if problem is None and not bool(loss.isfinite()):
            prompts = sorted({record["prompt"] for record in rows.cond.records()})
            problem = f"the loss is {loss.item()} for {len(prompts)} prompts, first {prompts[0]!r}"
            if not processes.sharded:
                break
        # The backward pass of shards takes the mean over processes.
        processes.accelerator.backward(loss * microbatch.loss_share * (processes.count if processes.sharded else 1))
        measured += [(name, share, value) for name, value in metrics.items() if share]
    return problem


def _move_gradients(parameters: Sequence[nn.Parameter], sums: dict[nn.Parameter, Tensor]) -> None:
    """Move the gradients of a partition into the sums, fp64."""
    for p in parameters:
        if p.grad is not None:
            sums[p] = p.grad.double() if p not in sums else sums[p].add_(p.grad)
            p.grad = None


def _merge(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the sum of each number, and the highest of those whose name ends in _max."""
    merged: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            before = merged.get(name, value if name.endswith("_max") else 0.0)
            merged[name] = max(before, value) if name.endswith("_max") else before + value
    return merged
