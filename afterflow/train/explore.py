"""Training data as iterations: supervised pairs, or on-policy steps.  To the trainer they are the same."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from ..algorithms.base import Algorithm, Models, OnPolicy, Rows, Scores, Supervised
from ..algorithms.forward_process import OLD, learns_from_finished
from ..sampling.conditioning import Conditioning, Pairs
from ..sampling.device_copies import to_device
from ..sampling.noised import NoisedImages
from ..sampling.rollout import Plan, Retain, Rollout, concatenate, prompt_noise, sample, transitions
from ..sampling.seeds import generator, number
from .clock import Clock
from .distributed import Processes
from .local_rows import LocalPrompts, LocalRows, credited, local_noised_rows, local_prompts, local_rows
from .reward_history import RewardHistory
from .scores import Score, check_scores, concatenate_scores, gather_scores, score_metrics


@dataclass(frozen=True)
class Iteration:
    """The rows of an iteration, the optimizer updates that are made of them, and what was measured."""

    step: int
    rows: Rows
    updates: Sequence[Sequence[Sequence[Tensor]]]
    """The rows of each microbatch, for each partition of each optimizer update."""
    metrics: dict[str, float] = field(default_factory=dict)
    idle: Rows | None = None
    """One row for forward passes without weight, while other processes still have rows and this one has none."""
    share: float = 1.0
    """Share that the rows are of all steps in the mean of the loss.  On the others nothing pulls, because their group
    is tied: they are averaged as zeros and cost no forward pass."""


def supervised(
    algorithm: Algorithm,
    pairs: Callable[[int], Pairs],
    iterations: range,
    *,
    seed: int,
    chunk: int,
    processes: Processes,
) -> Iterator[Iteration]:
    """Yield iterations of one update each, over the batch of that iteration.

    Args:
        algorithm: An algorithm that learns from pairs.
        pairs: The batch of an iteration, the same on every process.
        iterations: The iterations to yield.
        seed: The seed of the run; the random numbers of a row depend on it, the iteration and the row's index.
        chunk: Rows of a microbatch.
        processes: The processes of the run, of which each has a share of the batch.
    """
    assert isinstance(algorithm, Supervised)
    required = algorithm.requirements
    metrics = {"nfe/update": required.evaluations}
    metrics |= {"nfe/reference": required.evaluations} if required.reference is not None else {}
    for step in iterations:
        batch = pairs(step)
        partitions = processes.partition_rows(len(batch))
        index = torch.cat(partitions)
        seeds = torch.tensor([number(seed, step, "update", 0, row) for row in index.tolist()])
        rows = replace(batch[index], seeds=seeds)
        rows = replace(rows, masses=algorithm.masses(rows))
        update = [(part - index[0]).split(chunk) for part in partitions]
        yield Iteration(step, rows, [update], dict(metrics), rows[update[0][0][:1]])


@dataclass(frozen=True)
class ExploreOptions:
    """How iterations of exploration are made."""

    seed: int
    latent_shape: Sequence[int]
    """Shape of the latents of one image."""
    chunk: int
    """Rows of a microbatch."""
    updates: int = 1
    """Number of optimizer updates that an iteration is split into."""
    states_device: torch.device | str | None = None
    """Device where states wait for the update; None leaves them where they are made."""
    max_missing: float = 0.0
    """Share of the images that may lack a reward; they are not trained on."""
    overlap: bool = False
    """Whether the first prompts' images are scored while the next are drawn."""
    low_noise: Callable[[Tensor], Tensor] | None = None
    """Says by times (M,) which rows the second of two networks computes, (M,) bool.  None: there is one network."""


@dataclass(frozen=True)
class Explorer:
    """Makes iterations: prompts → plan → rollout → scores → credit → shuffled microbatches.

    A prompt's group is drawn, scored and trained on by one process.  Scores and credit are of all prompts on every
    process, so that neither depends on how many processes there are.
    """

    algorithm: OnPolicy
    models: Models
    prompts: Callable[[int], Conditioning]
    """The prompts of an iteration, the same on every process."""
    score: Score
    options: ExploreOptions
    processes: Processes
    clock: Clock
    history: RewardHistory | None = None
    """The earlier rewards of prompts, where the algorithm needs them."""

    def iterations(self, steps: range) -> Iterator[Iteration]:
        """Yield the iterations of these numbers; nothing of them stays in memory here."""
        for step in steps:
            yield self.iteration(step)

    def iteration(self, step: int) -> Iteration:
        """Return iteration `step`.

        TrainingStopped is raised where too many images have no score, or where another process failed.
        """
        seed, processes, cond = self.options.seed, self.processes, self.prompts(step).on_device()
        plan = self.algorithm.plan(step, generator(seed, step, "plan"))
        partitions = processes.partition_rows(len(cond))
        prompts = local_prompts(cond, torch.cat(partitions), seed, step)
        rollout, scores = self._sample_and_score(plan, prompts)
        check_scores(scores, cond.records(), step, self.options.max_missing)
        if self.history is not None:
            scores = self.history.attach(scores, cond.records())
        log_prob = [processes.all_gather_rows(level, len(cond)) for level in rollout.log_prob]
        with self.clock("credit"):
            selected = self.algorithm.select(plan, len(cond), generator(seed, step, "credit"))
            advantages = credited(self.algorithm, plan, log_prob, scores, selected)
            local = self._local_rows(rollout, advantages, prompts, step)
            rows = self.algorithm.rows(self.models, cast(Any, local.examples))
        order = torch.randperm(local.global_count, generator=generator(seed, step, "shuffle"))
        low_noise = None if self.options.low_noise is None else self.options.low_noise(local.examples.t)
        updates = [
            local.microbatches(part, partitions, self.options.chunk, low_noise)
            for part in order.tensor_split(self.options.updates)
            if len(part)
        ]
        count = local.global_count if local.sizes is None else sum(processes.all_gather_objects(len(rows)))
        work = self.evaluations(plan, count / (len(cond) * plan.widths[-1]))
        metrics = {**score_metrics(scores, self.algorithm.weights), **work}
        idle = self._idle_row(rollout, rows) if processes.sharded else None
        if self.remembers_before:
            with self.clock("credit"):
                rows, idle = self._with_before(rows, updates, cast(Any, idle))
        return Iteration(step, rows, updates, metrics, idle, local.share)

    @property
    def remembers_before(self) -> bool:
        """Whether the loss compares with the policy before the first of several updates."""
        return learns_from_finished(self.algorithm) and self.algorithm.has_ratio and self.options.updates > 1

    def _with_before(
        self, rows: NoisedImages, updates: Sequence[Sequence[Sequence[Tensor]]], idle: NoisedImages | None
    ) -> tuple[NoisedImages, NoisedImages | None]:
        """Return the rows and the idle one with the policy's log-likelihoods, in the passes that updates will make.

        Where weights are sharded, every process makes as many passes.
        """
        assert learns_from_finished(self.algorithm)
        parts = [part for update in updates for partition in update for part in partition]
        missing = 0 if idle is None else self.processes.all_max(len(parts)) - len(parts)
        likelihoods = [self.algorithm.log_likelihoods(self.models, rows[part]) for part in parts]
        if likelihoods:
            values = torch.cat(likelihoods)
            before = torch.empty_like(values).index_copy_(0, to_device(torch.cat(parts), values.device), values)
            rows = replace(rows, before=before)
        others = [self.algorithm.log_likelihoods(self.models, cast(Any, idle)) for _ in range(missing)]
        if idle is not None and likelihoods:
            idle = rows[torch.zeros(1, dtype=torch.long)]
        elif idle is not None and others:
            idle = replace(idle, before=others[0])
        return rows, idle

    def _local_rows(
        self, rollout: Rollout, advantages: Sequence[Tensor], prompts: LocalPrompts, step: int
    ) -> LocalRows:
        """Return the rows of this process: steps of its rollout, or its finished images noised again."""
        algorithm = self.algorithm
        if learns_from_finished(algorithm):
            return local_noised_rows(algorithm, rollout, advantages[0][..., 0], prompts, self.options.seed, step)
        return local_rows(rollout, advantages, prompts.index, algorithm.requirements.all_rows)

    def _sample_and_score(self, plan: Plan, prompts: LocalPrompts) -> tuple[Rollout, Scores]:
        """Return the rollout of this process's prompts, and the scores of all prompts."""
        work = self._overlapped if self.options.overlap else self._in_turn
        if self.processes.sharded:
            # A process that fails in a pass leaves the others waiting in it, so they could not be told here.
            rollout = self.rollout(plan, prompts)
            return gather_scores(lambda: (rollout, self.scores(rollout, prompts, self.clock)), self.processes)
        return gather_scores(lambda: work(plan, prompts), self.processes)

    def _in_turn(self, plan: Plan, prompts: LocalPrompts) -> tuple[Rollout, Scores]:
        """Draw all images, then score them."""
        rollout = self.rollout(plan, prompts)
        return rollout, self.scores(rollout, prompts, self.clock)

    def _overlapped(self, plan: Plan, prompts: LocalPrompts) -> tuple[Rollout, Scores]:
        """Draw images part by part; a thread scores each part while the next is drawn.

        A part is as many prompts as fill a forward pass, so that latents are what they would be without parts; a
        decoder may round otherwise in a batch of another size.
        """
        rollouts, pending = [], []
        with scoring_thread() as executor:
            for rows in torch.arange(len(prompts)).split(max(1, self.options.chunk // plan.widths[-1])):
                part = prompts[rows]
                rollouts.append(self.rollout(plan, part))
                pending.append(executor.submit(self.scores, rollouts[-1], part, Clock()))
            with self.clock("reward"):  # what is left to wait for
                scores = [future.result() for future in pending]
        return concatenate(rollouts), concatenate_scores(scores)

    def rollout(self, plan: Plan, prompts: LocalPrompts, retain: Retain | None = None) -> Rollout:
        """Return the rollout of these prompts, with the graphs of the states to retain."""
        like = torch.empty(len(prompts), 1, *self.options.latent_shape, device=prompts.cond.device)
        with self.clock("rollout"):
            noise = prompt_noise(prompts.noise, plan.widths[0], like)
            kernel, device = self.algorithm.step_kernel, self.options.states_device
            return sample(self.models.draws, kernel, plan, prompts.cond, noise, prompts.noise, device, retain)

    def scores(self, rollout: Rollout, prompts: LocalPrompts, clock: Clock) -> Scores:
        """Return the scores of the images of these prompts."""
        return self.score(rollout.leaves, prompts.cond.records(), prompts.judge, clock)

    def evaluations(self, plan: Plan, rows: float) -> dict[str, float]:
        """Return the evaluations of networks per image, of which `rows` are of the update."""
        beside = {
            "reference": self.algorithm.requirements.reference is not None or self.models.anchor is not None,
            "teacher": bool(self.models.teachers),
            "old policy": OLD in self.models.lagged,
            "before": self.remembers_before,
        }
        updates = {f"nfe/{name}": rows for name, present in beside.items() if present}
        return {"nfe/rollout": plan.evaluations, "nfe/update": rows, **updates}

    def _idle_row(self, rollout: Rollout, rows: Rows) -> Rows:
        """Return one row of this process, of any step where its groups teach nothing."""
        if not len(rows):
            if learns_from_finished(self.algorithm):
                spread = torch.arange(rollout.leaves.shape[1]).expand(rollout.leaves.shape[:2]).float()
                sources = [torch.Generator()] * len(spread)
                return self.algorithm.noised(rollout, spread, sources, 0)[0][torch.zeros(1, dtype=torch.long)]
            ones = [torch.ones(*level.shape, 1) for level in rollout.log_prob]
            rows = self.algorithm.rows(self.models, transitions(rollout, ones))
        return rows[torch.zeros(1, dtype=torch.long)]


def scoring_thread() -> ThreadPoolExecutor:
    """Return an executor of one thread, on the accelerator of this process and not on the first."""
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    return ThreadPoolExecutor(1, initializer=_set_device, initargs=(device,))


def _set_device(device: int | None) -> None:
    if device is not None:
        torch.cuda.set_device(device)
