"""Training data as iterations: supervised pairs, or on-policy steps.  To the trainer they are one thing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..advantages import combine
from ..algorithms.base import Models, OnPolicy, Rows
from ..cond import Cond, Pairs
from ..rollout import Rollout, draw, sample
from ..seeds import generator
from .clock import Clock


class Stopped(RuntimeError):
    """Training cannot go on; the message says at which step, why, and at which prompt."""


@dataclass(frozen=True)
class Iteration:
    """Rows, which of them make each microbatch of each optimizer update, and what was measured on the way."""

    step: int
    rows: Rows
    updates: Sequence[Sequence[Tensor]]
    metrics: dict[str, float] = field(default_factory=dict)


# Finished latents (P, G, ...) and their P records → named rewards (P, G), NaN where one failed.
Score = Callable[[Tensor, Sequence[dict], Clock], Mapping[str, Tensor]]


def supervised(pairs: Callable[[int], Pairs], first: int, last: int, chunk: int) -> Iterator[Iteration]:
    """One update per iteration, over the batch that `pairs` gives for it."""
    for step in range(first, last):
        batch = pairs(step)
        yield Iteration(step, batch, [torch.arange(len(batch), device=batch.x0.device).split(chunk)])


def explore(
    algorithm: OnPolicy,
    models: Models,
    prompts: Callable[[int], Cond],
    score: Score,
    shape: Sequence[int],
    first: int,
    last: int,
    *,
    seed: int,
    updates: int,
    chunk: int,
    clock: Clock,
) -> Iterator[Iteration]:
    """prompts → plan → rollout → rewards → credit → shuffled microbatches, for iterations first .. last - 1."""
    for step in range(first, last):
        cond = prompts(step)
        plan = algorithm.plan(step, generator(seed, step, "plan"))
        sources = [generator(seed, step, "noise", p) for p in range(len(cond))]
        roots = 1 if plan.shared_noise else plan.widths[0]
        device = cond.index.device
        noise = draw(sources, roots, torch.empty(len(cond), 1, *shape, device=device))
        with clock("rollout"):
            rollout = sample(
                models.policy,
                algorithm.step_kernel,
                plan,
                cond,
                noise.expand(-1, plan.widths[0], *[-1] * len(shape)),
                sources,
            )
        rewards = score(rollout.leaves, cond.records(), clock)
        check_rewards(rewards, rollout, step)
        rows = algorithm.credit(models, rollout, rewards, generator(seed, step, "credit"))
        order = torch.randperm(len(rows), generator=generator(seed, step, "shuffle")).to(device)
        metrics = reward_metrics(rewards, algorithm.weights) | {"rows": float(len(rows))}
        del rollout  # the rows are all that the updates need
        yield Iteration(step, rows, [part.split(chunk) for part in order.tensor_split(updates) if len(part)], metrics)
        del rows  # nor need they be in memory while the next are explored


def check_rewards(rewards: Mapping[str, Tensor], rollout: Rollout, step: int) -> None:
    """Stopped when a reward failed: an advantage without it would be a guess."""
    for name, value in rewards.items():
        failed = (~value.isfinite()).any(1).nonzero().flatten().tolist()
        if failed:
            prompt = rollout.cond.records()[failed[0]].get("prompt")
            raise Stopped(f"step {step}: reward {name} is not finite for {len(failed)} prompts, first {prompt!r}")


def reward_metrics(rewards: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, float]:
    """Mean and std within groups of each reward, and the share of groups that teach nothing."""
    metrics = {}
    for name, value in rewards.items():
        metrics[f"reward/{name}"] = value.mean().item()
        metrics[f"reward_std/{name}"] = value.std(1).mean().item()
    total = combine(rewards, weights)
    metrics["reward"] = total.mean().item()
    metrics["zero_std_groups"] = (total.std(1) == 0).float().mean().item()
    return metrics
