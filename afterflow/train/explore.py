"""Training data as iterations: supervised pairs, or on-policy steps.  To the trainer they are one thing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..algorithms.base import Models, OnPolicy, Rows, Scores, Steps, Supervised
from ..objectives.advantages import combine, nanstd
from ..objectives.preferences import consistency, win_rates
from ..sampling.conditioning import Conditioning, Pairs
from ..sampling.rollout import Plan, Rollout, concatenate, prompt_noise, sample, transitions
from ..sampling.seeds import generator
from ..system.errors import TrainingStopped
from .clock import Clock
from .distributed import Processes
from .reward_history import RewardHistory


@dataclass(frozen=True)
class Iteration:
    """Rows, which of them make each microbatch of each lane of each optimizer update, and what was measured."""

    step: int
    rows: Rows
    updates: Sequence[Sequence[Sequence[Tensor]]]
    metrics: dict[str, float] = field(default_factory=dict)
    first: int = 0
    """Examples of the iteration that processes before this one have."""
    idle: Rows | None = None
    """One row for forward passes that others wait for while this process has none left; it counts nothing."""


# Finished latents (P, G, ...), their P records and as many generators → what is said about them, NaN where a score
# failed.
Score = Callable[[Tensor, Sequence[dict], Sequence[torch.Generator], Clock], Scores]


def supervised(
    algorithm: Supervised,
    pairs: Callable[[int], Pairs],
    first: int,
    last: int,
    chunk: int,
    processes: Processes,
) -> Iterator[Iteration]:
    """One update per iteration, over the batch that `pairs` gives for it."""
    for step in range(first, last):
        batch = pairs(step)
        lanes = [lane.to(batch.x0.device) for lane in processes.partition_rows(len(batch))]
        before, batch = int(lanes[0][0]), batch[torch.cat(lanes)]
        update = [(lane - before).split(chunk) for lane in lanes]
        yield Iteration(step, batch, [update], {"nfe/update": algorithm.evaluations}, before, batch[update[0][0][:1]])


def explore(
    algorithm: OnPolicy,
    models: Models,
    prompts: Callable[[int], Conditioning],
    score: Score,
    shape: Sequence[int],
    first: int,
    last: int,
    *,
    seed: int,
    updates: int,
    chunk: int,
    clock: Clock,
    processes: Processes,
    memory: RewardHistory | None = None,
    keep: torch.device | str | None = None,
    invalid: float = 0.0,
    overlap: bool = False,
) -> Iterator[Iteration]:
    """prompts → plan → rollout → rewards → credit → shuffled microbatches, for iterations first .. last - 1.

    keep: the device where states wait for the update; None: where they are made.  invalid: the share of images
    that may lack a reward; they are not trained on.  overlap: score the first prompts' images while the next are drawn.

    A prompt's group is drawn, scored and trained on by one process.  Scores and credit are of all prompts on each, so
    that neither depends on how many processes there are.
    """
    for step in range(first, last):
        cond = prompts(step)
        plan = algorithm.plan(step, generator(seed, step, "plan"))
        lanes = processes.partition_rows(len(cond))
        records, mine = cond.records(), torch.cat(lanes)
        own = share_of(cond, mine, seed, step)
        drawn = partial(of_prompts, algorithm, models, plan, own, shape, keep)
        rollout, scores = explored(drawn, partial(of_images, score, own), own, plan, chunk, overlap, clock, processes)
        check_scores(scores, records, step, invalid)
        if memory is not None:
            scores = replace(scores, past=memory.recall(list(scores.rewards), records))
            memory.add(scores.rewards, records)
        density = [processes.all_gather_rows(level, len(cond)) for level in rollout.log_prob]
        rollout = replace(rollout, mine=mine, log_prob=density)
        with clock("credit"):
            rows = algorithm.credit(models, rollout, scores, generator(seed, step, "credit"))
        order = torch.randperm(rows.total, generator=generator(seed, step, "shuffle"))
        parts = [in_lanes(rows, part, lanes, chunk) for part in order.tensor_split(updates) if len(part)]
        work = evaluations(algorithm, models, plan, rows.total / (len(cond) * plan.widths[-1]))
        metrics = {**score_metrics(scores, algorithm.weights), **work}
        idle = a_row(rollout, rows) if processes.sharded else None
        del rollout  # the rows are all that the updates need
        yield Iteration(step, rows, parts, metrics, idle=idle)
        del rows, idle  # nor need they be in memory while the next are explored


@dataclass(frozen=True)
class Share:
    """The prompts that a process explores."""

    cond: Conditioning
    noise: Sequence[torch.Generator]
    judge: Sequence[torch.Generator]

    def __len__(self) -> int:
        return len(self.cond)

    def __getitem__(self, rows: Tensor) -> "Share":
        of = lambda sources: [sources[p] for p in rows.tolist()]
        return Share(self.cond[rows], of(self.noise), of(self.judge))


def share_of(cond: Conditioning, mine: Tensor, seed: int, step: int) -> Share:
    """What a process has of an iteration's prompts; their random numbers are theirs, whoever explores them."""
    own = lambda what: [generator(seed, step, what, p) for p in mine.tolist()]
    return Share(cond[mine], own("noise"), own("judge"))


def explored(
    drawn: Callable[[Tensor], Rollout],
    judged: Callable[[Clock, Rollout, Tensor], Scores],
    own: Share,
    plan: Plan,
    chunk: int,
    overlap: bool,
    clock: Clock,
    processes: Processes,
) -> tuple[Rollout, Scores]:
    """The rollout of this process's prompts, and what is said about the images of all processes."""
    made: list[Rollout] = []
    everything = torch.arange(len(own))

    def roll() -> None:
        with clock("rollout"):
            made.append(drawn(everything))

    def said() -> dict[str, Any]:
        if overlap:
            parts = everything.split(max(1, chunk // plan.widths[-1]))
            rollout, scores = side_by_side(drawn, partial(judged, Clock()), parts, clock)
            made.append(rollout)
            return as_lists(scores)
        if not made:
            roll()
        return as_lists(judged(clock, made[0], everything))

    # Where weights are sharded, others wait in the middle of a pass for whoever fails in one, and hear nothing.
    if processes.sharded and not overlap:
        roll()
    scores = of_parts([from_lists(each) for each in processes.run_on_all(said)])
    return made[0], scores


def in_lanes(rows: Steps, places: Tensor, lanes: Sequence[Tensor], chunk: int) -> list[Sequence[Tensor]]:
    """Microbatches, lane by lane, of this process's rows that have these places among all, in their order."""
    index = torch.full((rows.total,), -1, device=rows.place.device)
    index[rows.place] = torch.arange(len(rows), device=index.device)
    chosen = index[places.to(index.device)]
    chosen = chosen[chosen >= 0]
    prompt = rows.prompt[chosen]
    each = [chosen[(prompt >= lane[0].item()) & (prompt <= lane[-1].item())] for lane in lanes]
    return [lane.split(chunk) if len(lane) else () for lane in each]


def a_row(rollout: Rollout, rows: Steps) -> Steps:
    """One row of this process, of any step where its groups teach nothing."""
    some = rows if len(rows) else transitions(rollout, [torch.ones(*level.shape, 1) for level in rollout.log_prob])
    return some[torch.zeros(1, dtype=torch.long)]


def as_lists(scores: Scores) -> dict[str, Any]:
    """For JSON; float32 comes back as it was."""
    lists = lambda values: {name: value.tolist() for name, value in values.items()}
    return {kind: lists(getattr(scores, kind)) for kind in ("rewards", "judged", "parts")} | {
        "failures": {name: list(why) for name, why in scores.failures.items()}
    }


def from_lists(said: Mapping[str, Any]) -> Scores:
    tensors = lambda values: {name: torch.tensor(value) for name, value in values.items()}
    return Scores(
        tensors(said["rewards"]), tensors(said["judged"]), parts=tensors(said["parts"]), failures=said["failures"]
    )


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
    # A thread begins on the first accelerator, whichever is this process's.
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    with ThreadPoolExecutor(1, initializer=go_to, initargs=(device,)) as beside:
        for rows in parts:
            with clock("rollout"):
                made.append(drawn(rows))
            said.append(beside.submit(judged, made[-1], rows))
        with clock("reward"):  # what is left to wait for
            scores = [each.result() for each in said]
    return concatenate(made), of_parts(scores)


def go_to(device: int | None) -> None:
    if device is not None:
        torch.cuda.set_device(device)


def of_prompts(
    algorithm: OnPolicy,
    models: Models,
    plan: Plan,
    own: Share,
    shape: Sequence[int],
    keep: torch.device | str | None,
    rows: Tensor,
) -> Rollout:
    """The rollouts of some prompts."""
    chosen = own[rows]
    like = torch.empty(len(chosen), 1, *shape, device=chosen.cond.index.device)
    noise = prompt_noise(chosen.noise, plan.widths[0], like)
    return sample(models.policy, algorithm.step_kernel, plan, chosen.cond, noise, chosen.noise, keep)


def of_images(score: Score, own: Share, clock: Clock, made: Rollout, rows: Tensor) -> Scores:
    """What is said about the images of some prompts."""
    chosen = own[rows]
    return score(made.leaves, chosen.cond.records(), chosen.judge, clock)


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
    """Say which images have no score, and which pairs no verdict; TrainingStopped when they are more than a share of `most`."""
    for name, value in scores.rewards.items():
        failed = (~value.isfinite()).nonzero().tolist()
        if not failed:
            continue
        told = scores.failures.get(name, [f"{records[p]['prompt']!r}: it is not a finite number" for p, _ in failed])
        said = f"step {step}: {len(failed)} of {value.numel()} images have no {name}; {'; '.join(told[:3])}"
        if len(failed) > most * value.numel():
            raise TrainingStopped(said)
        print(said)
    for name, judged in scores.judged.items():
        told = scores.failures.get(name, ())
        shown = int(judged.isfinite().sum()) + len(told)
        said = f"step {step}: {len(told)} of {shown} comparisons have no verdict; {'; '.join(told[:3])}"
        if len(told) > most * shown:
            raise TrainingStopped(said)
        if told:
            print(said)


def evaluations(algorithm: OnPolicy, models: Models, plan: Plan, rows: float) -> dict[str, float]:
    """Evaluations of a network per image, of which `rows` are of the update."""
    asked = {
        "reference": algorithm.requirements.reference or models.anchor is not None,
        "teacher": bool(models.teachers),
    }
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
