"""The gradients of an update: a sum over microbatches, partitions and processes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..algorithms.base import Algorithm, Models, Rows
from ..sampling.conditioning import move_rows
from .distributed import Processes
from .explore import Iteration

Measured = list[tuple[str, float, Tensor]]
"""Name, share and value of what was measured on each microbatch."""


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
    measured: Measured = []
    problem = None
    for microbatch in microbatches(iteration, update, processes):
        not_finite = backward(algorithm, models, microbatch, processes, measured)
        problem = problem or not_finite
        if problem is not None and not processes.sharded:
            break
        if microbatch.ends_partition:
            move_gradients(parameters, sums)
    return finish(measured, problem, parameters, sums, processes)


def finish(
    measured: Measured,
    problem: str | None,
    parameters: Sequence[nn.Parameter],
    sums: dict[nn.Parameter, Tensor],
    processes: Processes,
) -> tuple[dict[str, float], str | None]:
    """Add up the gradients of all processes; return what was measured and what is not finite, over all of them.

    Args:
        measured: What was measured on this process.
        problem: What is not finite on this process.
        parameters: What is trained.
        sums: The fp64 sums over this process's partitions, where it has several.
        processes: The processes of the run.
    """
    # Numbers are read when all is queued, and together: to ask for one is to wait for it.
    values = read_scalars([value for _, _, value in measured])
    means = _merge(
        {name: (1.0 if name.endswith("_max") else share) * value} for (name, share, _), value in zip(measured, values)
    )
    gathered = processes.all_gather_objects([means, problem])
    problem = next((problem for _, problem in gathered if problem is not None), None)
    if problem is None:
        processes.add_gradients(parameters, sums)
    return _merge(means for means, _ in gathered), problem


def backward(
    algorithm: Algorithm,
    models: Models,
    microbatch: Microbatch,
    processes: Processes,
    measured: Measured,
) -> str | None:
    """Add the gradients of a microbatch, and its metrics with their share to `measured`.

    Returns what is not finite about a loss.  Where weights are sharded the others wait for this pass, so that it goes
    on; else it ends there.

    Args:
        algorithm: The algorithm whose losses are descended.
        models: The velocity fields that it may call.
        microbatch: The rows, and how much they count.
        processes: The processes of the run.
        measured: What was measured so far, which is added to.
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


def move_gradients(parameters: Sequence[nn.Parameter], sums: dict[nn.Parameter, Tensor]) -> None:
    """Move the gradients of a partition into the sums, fp64."""
    for p in parameters:
        if p.grad is not None:
            sums[p] = p.grad.double() if p not in sums else sums[p].add_(p.grad)
            p.grad = None


def read_scalars(scalars: Sequence[Tensor]) -> list[float]:
    """Return the numbers that tensors () hold; the host waits once for all of a kind."""
    kinds: dict[tuple, list[int]] = {}
    for i, scalar in enumerate(scalars):
        kinds.setdefault((scalar.dtype, scalar.device), []).append(i)
    numbers: dict[int, float] = {}
    for indices in kinds.values():
        numbers |= zip(indices, torch.stack([scalars[i] for i in indices]).tolist())
    return [numbers[i] for i in range(len(scalars))]


def _merge(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the sum of each number, and the highest of those whose name ends in _max."""
    merged: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            before = merged.get(name, value if name.endswith("_max") else 0.0)
            merged[name] = max(before, value) if name.endswith("_max") else before + value
    return merged
