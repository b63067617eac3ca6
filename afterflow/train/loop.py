"""The training loop.  It descends `algorithm.loss` and knows no algorithm by name."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate as accumulated

import torch
from torch import Tensor, nn

from ..algorithms.base import Models, OnPolicy, Supervised
from ..sampling.conditioning import move_rows
from ..sampling.row_random import RowRandom
from ..sampling.seeds import generator
from ..system.errors import TrainingStopped
from .clock import Clock
from .distributed import Processes
from .ema import Ema
from .explore import Iteration

MOST_SKIPPED = 20
"""Updates in a row that may be left out."""


def train(
    algorithm: Supervised | OnPolicy,
    models: Models,
    source: Iterable[Iteration],
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    processes: Processes,
    *,
    max_grad_norm: float,
    learning_rate: Callable[[int], float],
    ema: Ema | None,
    seed: int,
    clock: Clock,
    skip: bool = False,
) -> Iterator[tuple[int, dict[str, float]]]:
    """Descend each iteration's updates; yield its number and its metrics when it is done.

    What happens between iterations (logs, pictures, checkpoints) is the caller's, who may stop at any yield.  skip:
    leave out updates whose loss or gradient is not finite, and count them; else they raise TrainingStopped.
    """
    accelerator, trained, in_a_row = processes.accelerator, list(parameters.values()), 0
    for iteration in source:
        rate = learning_rate(iteration.step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        history: defaultdict[str, list[float]] = defaultdict(list)
        for k in range(len(iteration.updates)):
            excused = False
            with clock("update"):
                measured, wrong = accumulate(algorithm, models, iteration, k, trained, processes, seed)
                if wrong is None:
                    norm = processes.clip(trained, max_grad_norm)
                    measured["grad_norm"] = norm.item()
                    wrong = None if norm.isfinite() else f"the gradient norm is {norm.item()}; lower the learning rate"
                    # A gradient scaler looks for its scale by overflowing now and then, and leaves such updates out.
                    excused = accelerator.scaler is not None
                    if wrong is None or excused:
                        optimizer.step()
                if wrong is None and ema is not None:
                    ema.update(parameters)
                optimizer.zero_grad()
            in_a_row = 0 if wrong is None else in_a_row + 1
            if in_a_row > (MOST_SKIPPED if skip or excused else 0):
                raise TrainingStopped(f"step {iteration.step}: {wrong}")
            if wrong is not None and skip:
                print(f"step {iteration.step}: an update is left out, because {wrong}")
            for name, value in measured.items():
                if wrong is None:
                    history[name].append(value)
            if skip:
                history["skipped"].append(float(wrong is not None))
        means = {
            name: max(values) if name.endswith("_max") else sum(values) / len(values)
            for name, values in history.items()
        }
        yield iteration.step, {**iteration.metrics, **means, "learning_rate": rate, **clock.read()}
        del iteration  # its rows need not be in memory while the next are explored


def accumulate(
    algorithm: Supervised | OnPolicy,
    models: Models,
    iteration: Iteration,
    update: int,
    parameters: Sequence[nn.Parameter],
    processes: Processes,
    seed: int,
) -> tuple[dict[str, float], str | None]:
    """Gradients of the mean loss over all microbatches of update number `update`, each counting by its mass.

    What was measured, of all processes, and what is wrong with the loss, if anything; then gradients are unfinished.
    """
    lanes = iteration.updates[update]
    microbatches = [chosen for lane in lanes for chosen in lane]
    ends = set(accumulated(len(lane) for lane in lanes)) if len(lanes) > 1 else set()
    in_double: dict[nn.Parameter, Tensor] = {}
    masses = [iteration.rows.mass(chosen) for chosen in microbatches]
    everyones = processes.all_gather_objects([sum(masses), len(masses)])
    total, most = sum(mass for mass, _ in everyones), max(passes for _, passes in everyones)
    seen: list[tuple[str, float, Tensor]] = []
    wrong = None
    for n in range(most if processes.sharded else len(microbatches)):
        if n < len(microbatches):
            chosen, rows, share = microbatches[n], iteration.rows[microbatches[n]], masses[n] / total
        else:
            assert iteration.idle is not None
            chosen, rows, share = torch.zeros(1, dtype=torch.long), iteration.idle, 0.0
        batch = move_rows(rows, processes.accelerator.device)
        if isinstance(algorithm, Supervised):
            places = (iteration.first + chosen).tolist()
            draws = RowRandom([generator(seed, iteration.step, "update", update, place) for place in places])
            losses = algorithm.losses(models, batch, draws)  # type: ignore[arg-type]
        else:
            losses = [algorithm.loss(models, batch)]
        for loss, metrics in losses:
            if wrong is None and not bool(loss.isfinite()):
                prompts = sorted({record["prompt"] for record in batch.cond.records()})
                wrong = f"the loss is {loss.item()} for {len(prompts)} prompts, first {prompts[0]!r}"
                if not processes.sharded:
                    return of_all(processes.all_gather_objects([{}, wrong]))
            # The backward pass of shards takes the mean over processes.
            processes.accelerator.backward(loss * share * (processes.count if processes.sharded else 1))
            # Numbers are read when all is queued: to ask for one is to wait for it.
            seen += [(name, share, value) for name, value in metrics.items() if share]
        if n + 1 in ends:
            add_up(parameters, in_double)
    measured, wrong = of_all(processes.all_gather_objects([summed(seen), wrong]))
    if wrong is None:
        processes.add_gradients(parameters, in_double)
    return measured, wrong


def add_up(parameters: Sequence[nn.Parameter], sums: dict[nn.Parameter, Tensor]) -> None:
    """Move the gradients of a lane into the sums, fp64."""
    for p in parameters:
        if p.grad is not None:
            sums[p] = p.grad.double() if p not in sums else sums[p].add_(p.grad)
            p.grad = None


def summed(seen: Sequence[tuple[str, float, Tensor]]) -> dict[str, float]:
    """What was measured in each pass and the share it has, as means; the highest of maxima."""
    return merged({name: (1.0 if name.endswith("_max") else share) * value.item()} for name, share, value in seen)


def of_all(told: Sequence[tuple[dict[str, float], str | None]]) -> tuple[dict[str, float], str | None]:
    """Sums over processes, and maxima; the first thing that is wrong."""
    return merged(sums for sums, _ in told), next((wrong for _, wrong in told if wrong is not None), None)


def merged(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The sum of each number, the highest of maxima."""
    found: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            found[name] = max(found.get(name, value), value) if name.endswith("_max") else found.get(name, 0.0) + value
    return found
