"""Training data as iterations: supervised pairs, or on-policy steps.  To the trainer they are one thing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ..advantages import combine, nanstd
from ..algorithms.base import Models, OnPolicy, Rows, Scores, Supervised
from ..cond import Cond, Pairs
from ..preferences import consistency, win_rates
from ..rollout import Plan, Rollout, draw, sample, together
from ..seeds import generator
from .clock import Clock
from .memory import Memory


class Stopped(RuntimeError):
    """Training cannot go on; the message says at which step, why, and at which prompt."""


@dataclass(frozen=True)
class Iteration:
    """Rows, which of them make each microbatch of each optimizer update, and what was measured on the way."""

    step: int
    rows: Rows
    updates: Sequence[Sequence[Tensor]]
    metrics: dict[str, float] = field(default_factory=dict)


# Finished latents (P, G, ...) and their P records → what is said about them, NaN where a score failed.
Score = Callable[[Tensor, Sequence[dict], torch.Generator, Clock], Scores]


def supervised(
    algorithm: Supervised, pairs: Callable[[int], Pairs], first: int, last: int, chunk: int
) -> Iterator[Iteration]:
    """One update per iteration, over the batch that `pairs` gives for it."""
    for step in range(first, last):
        batch = pairs(step)
        rows = torch.arange(len(batch), device=batch.x0.device)
        yield Iteration(step, batch, [rows.split(chunk)], {"nfe/update": algorithm.evaluations})


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
    memory: Memory | None = None,
    keep: torch.device | str | None = None,
    invalid: float = 0.0,
    overlap: bool = False,
) -> Iterator[Iteration]:
    """prompts → plan → rollout → rewards → credit → shuffled microbatches, for iterations first .. last - 1.

    keep: the device where states wait for the update; None: where they are made.  invalid: the share of images
    that may lack a reward; they are not trained on.  overlap: score the first prompts' images while the next are drawn.
    """
    for step in range(first, last):
        cond = prompts(step)
        plan = algorithm.plan(step, generator(seed, step, "plan"))
        sources = [generator(seed, step, "noise", p) for p in range(len(cond))]
        noise = draw(sources, plan.widths[0], torch.empty(len(cond), 1, *shape, device=cond.index.device))
        records = cond.records()
        drawn = partial(of_prompts, algorithm, models, plan, cond, noise, sources, keep)
        if overlap:
            parts = torch.arange(len(cond)).split(max(1, chunk // plan.widths[-1]))
            rollout, scores = side_by_side(drawn, partial(score_part, score, records, seed, step), parts, clock)
        else:
            with clock("rollout"):
                rollout = drawn(torch.arange(len(cond)))
            scores = score(rollout.leaves, records, generator(seed, step, "judge"), clock)
        check_scores(scores, records, step, invalid)
        if memory is not None:
            scores = replace(scores, past=memory.recall(list(scores.rewards), records))
            memory.add(scores.rewards, records)
        rows = algorithm.credit(models, rollout, scores, generator(seed, step, "credit"))
        held = noise.device if keep is None else keep
        order = torch.randperm(len(rows), generator=generator(seed, step, "shuffle")).to(held)
        work = evaluations(algorithm, models, plan, len(rows) / (len(cond) * plan.widths[-1]))
        metrics = {**score_metrics(scores, algorithm.weights), **work}
        del rollout  # the rows are all that the updates need
        yield Iteration(step, rows, [part.split(chunk) for part in order.tensor_split(updates) if len(part)], metrics)
        del rows  # nor need they be in memory while the next are explored


def side_by_side(
    drawn: Callable[[Tensor], Rollout],
    judged: Callable[[Rollout, Tensor], Scores],
    parts: Sequence[Tensor],
    clock: Clock,
) -> tuple[Rollout, Scores]:
    """Rollouts part by part, each scored by a thread while the next are drawn; both as of all prompts at once.

    A part is as many prompts as fill a forward pass, so that latents are what they would be without parts; a decoder
    may round otherwise in a batch of another size.
    """
    made, said = [], []
    with ThreadPoolExecutor(1) as beside:
        for rows in parts:
            with clock("rollout"):
                made.append(drawn(rows))
            said.append(beside.submit(judged, made[-1], rows))
        with clock("reward"):  # what is left to wait for
            scores = [each.result() for each in said]
    return together(made), of_parts(scores)


def of_prompts(
    algorithm: OnPolicy,
    models: Models,
    plan: Plan,
    cond: Cond,
    noise: Tensor,
    sources: Sequence[torch.Generator],
    keep: torch.device | str | None,
    rows: Tensor,
) -> Rollout:
    """The rollouts of some prompts."""
    chosen = [sources[p] for p in rows.tolist()]
    return sample(models.policy, algorithm.step_kernel, plan, cond[rows], noise[rows.to(noise.device)], chosen, keep)


def score_part(score: Score, records: Sequence[dict], seed: int, step: int, made: Rollout, rows: Tensor) -> Scores:
    """What is said about the images of some prompts."""
    chosen = rows.tolist()
    draws = generator(seed, step, "judge", chosen[0])
    return score(made.leaves, [records[p] for p in chosen], draws, Clock())


def of_parts(scores: Sequence[Scores]) -> Scores:
    """Of some prompts after another, as of all."""
    names = lambda kind: dict.fromkeys(name for each in scores for name in getattr(each, kind))
    joined = lambda kind: {name: torch.cat([getattr(each, kind)[name] for each in scores]) for name in names(kind)}
    failures = {name: [why for each in scores for why in each.failures[name]] for name in names("failures")}
    # Where every image of a part failed, it has no parts.
    like = [next(iter(each.rewards.values())) for each in scores] if names("parts") else []
    part = lambda name: torch.cat([each.parts.get(name, of * torch.nan) for each, of in zip(scores, like)])
    parts = {name: part(name) for name in names("parts")}
    return Scores(joined("rewards"), joined("judged"), parts=parts, failures=failures)


def check_scores(scores: Scores, records: Sequence[dict], step: int, most: float) -> None:
    """Say which images have no score, and which pairs no verdict; Stopped when they are more than a share of `most`."""
    for name, value in scores.rewards.items():
        failed = (~value.isfinite()).nonzero().tolist()
        if not failed:
            continue
        told = scores.failures.get(name, [f"{records[p]['prompt']!r}: it is not a finite number" for p, _ in failed])
        said = f"step {step}: {len(failed)} of {value.numel()} images have no {name}; {'; '.join(told[:3])}"
        if len(failed) > most * value.numel():
            raise Stopped(said)
        print(said)
    for name, judged in scores.judged.items():
        told = scores.failures.get(name, ())
        shown = int(judged.isfinite().sum()) + len(told)
        said = f"step {step}: {len(told)} of {shown} comparisons have no verdict; {'; '.join(told[:3])}"
        if len(told) > most * shown:
            raise Stopped(said)
        if told:
            print(said)


def evaluations(algorithm: OnPolicy, models: Models, plan: Plan, rows: float) -> dict[str, float]:
    """Evaluations of a network per image, of which `rows` are of the update."""
    asked = {"reference": algorithm.asks.reference or models.anchor is not None, "teacher": bool(models.teachers)}
    return {
        "nfe/rollout": plan.evaluations,
        "nfe/update": rows,
        **{f"nfe/{who}": rows for who, it_is in asked.items() if it_is},
    }


def score_metrics(scores: Scores, weights: Mapping[str, float]) -> dict[str, float]:
    """Mean and std within groups of each reward, and the share of groups that teach nothing."""
    metrics, values = {}, dict(scores.rewards)
    for name, judged in scores.judged.items():
        values[name] = win_rates(judged)
        metrics[f"consistency/{name}"] = consistency(judged).mean().item()
    for name, value in values.items():
        metrics[f"reward/{name}"] = value.nanmean().item()
        metrics[f"reward_std/{name}"] = nanstd(value, 0).mean().item()
        if value.isnan().any():
            metrics[f"invalid/{name}"] = value.isnan().float().mean().item()
    for name, value in scores.parts.items():
        metrics[f"part/{name}"] = value.nanmean().item()
    if not weights:
        return metrics
    total = combine(values, weights)
    metrics["reward"] = total.nanmean().item()
    if total.shape[1] > 1:
        metrics["zero_std_groups"] = (nanstd(total, 0) == 0).float().mean().item()
    return metrics
