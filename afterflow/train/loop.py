"""The training loop.  It descends `algorithm.loss` and knows no algorithm by name."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import nn

from ..algorithms.base import Models, OnPolicy, Rows, Supervised
from ..seeds import generator
from .clock import Clock
from .ema import Ema
from .explore import Iteration, Stopped


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
    trained = list(parameters.values())
    for iteration in source:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(iteration.step)
        history: defaultdict[str, list[float]] = defaultdict(list)
        with clock("update"):
            for k, batches in enumerate(iteration.updates):
                draws = generator(seed, iteration.step, "update", k)
                metrics = accumulate(algorithm, models, batches, accelerator, draws, iteration.step)
                norm = accelerator.clip_grad_norm_(trained, max_grad_norm)
                assert norm is not None
                if accelerator.scaler is None and not bool(norm.isfinite()):
                    raise Stopped(f"step {iteration.step}: the gradient norm is {norm.item()}; lower the learning rate")
                optimizer.step()
                optimizer.zero_grad()
                if ema is not None:
                    ema.update(parameters)
                for name, value in {**metrics, "grad_norm": norm}.items():
                    history[name].append(float(value))
        means = {
            name: max(values) if name.endswith("_max") else sum(values) / len(values)
            for name, values in history.items()
        }
        lr = {"learning_rate": learning_rate(iteration.step)}
        yield iteration.step, {**iteration.metrics, **means, **lr, **clock.read()}


def accumulate(
    algorithm: Supervised | OnPolicy,
    models: Models,
    batches: Sequence[Rows],
    accelerator: Accelerator,
    draws: torch.Generator,
    step: int,
) -> dict[str, torch.Tensor]:
    """Gradients of the mean loss over all microbatches of an update, each counting by its mass."""
    total = sum(batch.mass for batch in batches)
    sums: dict[str, torch.Tensor] = {}
    for batch in batches:
        if isinstance(algorithm, Supervised):
            loss, metrics = algorithm.loss(models, batch, draws)  # type: ignore[arg-type]
        else:
            loss, metrics = algorithm.loss(models, batch)
        share = batch.mass / total
        if not bool(loss.isfinite()):
            prompts = sorted({record["prompt"] for record in batch.cond.records()})
            raise Stopped(f"step {step}: the loss is {loss.item()} for {len(prompts)} prompts, first {prompts[0]!r}")
        accelerator.backward(loss * share)
        for name, value in metrics.items():
            old = sums.get(name)
            if name.endswith("_max"):
                sums[name] = value if old is None else torch.maximum(old, value)
            else:
                sums[name] = value * share + (0 if old is None else old)
    return sums
