"""The training loop.  It descends `algorithm.loss` and knows no algorithm by name."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..algorithms.base import Models, OnPolicy, Rows, Supervised
from ..cond import moved
from ..seeds import generator
from .clock import Clock
from .ema import Ema
from .explore import Iteration, Stopped

MOST_SKIPPED = 20
"""Updates in a row that a gradient scaler may skip."""


def train(
    algorithm: Supervised | OnPolicy,
    models: Models,
    source: Iterable[Iteration],
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    *,
    max_grad_norm: float,
    learning_rate: Callable[[int], float],
    ema: Ema | None,
    seed: int,
    clock: Clock,
) -> Iterator[tuple[int, dict[str, float]]]:
    """Descend each iteration's updates; yield its number and its metrics when it is done.

    What happens between iterations (logs, pictures, checkpoints) is the caller's, who may stop at any yield.
    """
    skipped = 0
    for iteration in source:
        rate = learning_rate(iteration.step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        history: defaultdict[str, list[float]] = defaultdict(list)
        for k, microbatches in enumerate(iteration.updates):
            draws = generator(seed, iteration.step, "update", k)
            with clock("update"):
                measured = accumulate(
                    algorithm, models, iteration.rows, microbatches, accelerator, draws, iteration.step
                )
                norm = accelerator.clip_grad_norm_(list(parameters.values()), max_grad_norm)
                assert norm is not None
                finite = bool(norm.isfinite())
                skipped = 0 if finite else skipped + 1
                # A gradient scaler looks for its scale by overflowing now and then; for anyone else it is an error.
                if skipped > (0 if accelerator.scaler is None else MOST_SKIPPED):
                    raise Stopped(f"step {iteration.step}: the gradient norm is {norm.item()}; lower the learning rate")
                optimizer.step()
                optimizer.zero_grad()
                if ema is not None and finite:
                    ema.update(parameters)
            for name, value in (measured | {"grad_norm": norm} if finite else measured).items():
                history[name].append(float(value))
        means = {
            name: max(values) if name.endswith("_max") else sum(values) / len(values)
            for name, values in history.items()
        }
        yield iteration.step, {**iteration.metrics, **means, "learning_rate": rate, **clock.read()}
        del iteration  # its rows need not be in memory while the next are explored


def accumulate(
    algorithm: Supervised | OnPolicy,
    models: Models,
    rows: Rows,
    microbatches: Sequence[Tensor],
    accelerator: Accelerator,
    draws: torch.Generator,
    step: int,
) -> dict[str, torch.Tensor]:
    """Gradients of the mean loss over all microbatches of an update, each counting by its mass."""
    masses = [rows.mass(chosen) for chosen in microbatches]
    sums: dict[str, torch.Tensor] = {}
    for chosen, mass in zip(microbatches, masses):
        batch = moved(rows[chosen], accelerator.device)
        share = mass / sum(masses)
        if isinstance(algorithm, Supervised):
            losses = algorithm.losses(models, batch, draws)  # type: ignore[arg-type]
        else:
            losses = [algorithm.loss(models, batch)]
        for loss, metrics in losses:
            if not bool(loss.isfinite()):
                prompts = sorted({record["prompt"] for record in batch.cond.records()})
                about = f"{len(prompts)} prompts, first {prompts[0]!r}"
                raise Stopped(f"step {step}: the loss is {loss.item()} for {about}")
            accelerator.backward(loss * share)
            for name, value in metrics.items():
                old = sums.get(name)
                if name.endswith("_max"):
                    sums[name] = value if old is None else torch.maximum(old, value)
                else:
                    sums[name] = value * share + (0 if old is None else old)
    return sums
