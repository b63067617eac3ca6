"""One pass: the steps of a rollout keep their graphs until their rewards are known, and nothing is computed again.

Where an iteration has one update, the policy that took a step is the policy that is trained on it.  The velocity of the
rollout is then also that of the loss, and the ratio is 1 by construction.  LeanGRPO's Retain is the same idea.  Prompts
are explored part by part, so that no more graphs wait than memory has room for.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from ..algorithms.base import Scores
from ..sampling.conditioning import Conditioning
from ..sampling.device_copies import to_device
from ..sampling.rollout import Levels, Plan, Retain, Rollout, trained_children, transitions
from ..sampling.seeds import generator
from .clock import Clock
from .explore import Explorer, Iteration, scoring_thread
from .gradients import Measured, Microbatch, backward, finish, move_gradients
from .local_rows import LocalPrompts, count_children, credited, local_prompts, pulling
from .scores import check_scores, concatenate_scores, gather_scores, score_metrics


@dataclass(frozen=True)
class Part:
    """Some prompts of this process, explored with graphs."""

    prompts: LocalPrompts
    rollout: Rollout
    scores: Callable[[], Scores]
    """Returns the scores of the images, and waits for them where a thread computes them."""
    ends_partition: bool


@dataclass
class Totals:
    """What the parts of an iteration add up to on this process."""

    parameters: Sequence[nn.Parameter]
    expected: int
    """Number of states of all prompts that are selected for training."""
    sums: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    measured: Measured = field(default_factory=list)
    problem: str | None = None
    counts: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.double))
    """Rows, their mass, the states that pull on the policy, and the states that the loss is averaged over."""


@dataclass(frozen=True)
class OnePass:
    """An iteration whose only update is computed while its images are explored."""

    explorer: Explorer
    step: int
    retained_rows: int
    """Rows of the policy whose graphs may wait for their rewards."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What was measured; empty before the gradients are computed."""

    def gradients(self, parameters: Sequence[nn.Parameter]) -> Iterator[tuple[dict[str, float], str | None]]:
        """Explore, and leave the gradients of the mean loss over all steps that are trained, if any has one.

        Yields what was measured, over all processes, and what is not finite about the loss; then gradients are
        unfinished.  TrainingStopped is raised where too many images have no score, or where another process failed.
        """
        e, processes, seed = self.explorer, self.explorer.processes, self.explorer.options.seed
        cond = e.prompts(self.step).on_device()
        plan = e.algorithm.plan(self.step, generator(seed, self.step, "plan"))
        selected = e.algorithm.select(plan, len(cond), generator(seed, self.step, "credit"))
        selected = [level & plan.trained(k) for k, level in enumerate(selected)]
        totals = Totals(parameters, sum(int(level.sum()) for level in selected))
        parts = self._parts(cond, plan, selected)
        waiting, scores = gather_scores(partial(self._explore, plan, parts, selected, totals), processes)
        check_scores(scores, cond.records(), self.step, e.options.max_missing)
        if waiting:
            if e.history is not None:
                scores = e.history.attach(scores, cond.records())
            self._credit_together(plan, waiting, scores, selected, totals)
        gathered = torch.tensor(processes.all_gather_objects(totals.counts.tolist()), dtype=torch.double)
        rows, mass, pulling_states, averaged = gathered.sum(0).tolist()
        images = len(cond) * plan.widths[-1]
        self.metrics.update(score_metrics(scores, e.algorithm.weights), **e.evaluations(plan, rows / images))
        if mass == 0:
            return
        with e.clock("update"):
            measured = [(name, share / mass, value) for name, share, value in totals.measured]
            made = finish(measured, totals.problem, parameters, totals.sums, processes)
            _scale(parameters, totals.expected * pulling_states / averaged / mass)
        yield made

    def _parts(self, cond: Conditioning, plan: Plan, selected: Levels) -> Iterator[Part]:
        """Explore the prompts of this process; with overlap a thread scores each part while the next is drawn."""
        e = self.explorer
        retain = Retain.parents(plan, selected, e.options.chunk)
        partitions = e.processes.partition_rows(len(cond))
        prompts, size = local_prompts(cond, torch.cat(partitions), e.options.seed, self.step), self._size(plan, retain)
        with ExitStack() as stack:
            thread = stack.enter_context(scoring_thread()) if e.options.overlap else None
            waiting: deque[Part] = deque()
            for partition in partitions:
                for rows in (partition - prompts.index[0]).split(size):
                    part, last = prompts[rows], bool(prompts.index[rows[-1]] == partition[-1])
                    rollout = e.rollout(plan, part, retain[part.index])
                    if thread is None:
                        scores = partial(e.scores, rollout, part, e.clock)
                    else:
                        scores = partial(self._wait, thread.submit(e.scores, rollout, part, Clock()).result)
                    waiting.append(Part(part, rollout, scores, last))
                    del rollout, scores  # else their graphs stay while the next are made
                    if thread is None or len(waiting) > 1:
                        yield waiting.popleft()
            yield from waiting

    def _wait(self, result: Callable[[], Scores]) -> Scores:
        """Return scores of a thread, and count the seconds until they come."""
        with self.explorer.clock("reward"):
            return result()

    def _size(self, plan: Plan, retain: Retain) -> int:
        """Return how many prompts are explored at once."""
        e = self.explorer
        per_prompt = torch.stack([level.sum(1) for level in retain.states]).sum(0).max().item()
        # With overlap a second part is explored while the first waits.
        size = max(1, self.retained_rows // (1 + e.options.overlap) // max(1, int(per_prompt)))
        full = full_prompts(e.options.chunk, plan.widths[-1])
        return size - size % full if size > full else size

    def _explore(
        self, plan: Plan, parts: Iterator[Part], selected: Levels, totals: Totals
    ) -> tuple[list[Part], Scores]:
        """Explore all parts, and differentiate each where its credit needs no other prompt.

        Returns the parts that still wait for credit, and the scores of all.
        """
        algorithm, waiting, scores = self.explorer.algorithm, [], []
        for part in parts:
            scores.append(part.scores())
            if algorithm.requirements.waits_for_batch:
                waiting.append(part)
            else:
                chosen = [level[part.prompts.index] for level in selected]
                with self.explorer.clock("credit"):
                    advantages = credited(algorithm, plan, part.rollout.log_prob, scores[-1], chosen)
                self._differentiate(part, advantages, totals)
            del part
        return waiting, concatenate_scores(scores)

    def _credit_together(
        self, plan: Plan, waiting: list[Part], scores: Scores, selected: Levels, totals: Totals
    ) -> None:
        """Differentiate parts whose credit needs the scores of all prompts."""
        e, count = self.explorer, len(selected[0])
        levels = [torch.cat(level) for level in zip(*(part.rollout.log_prob for part in waiting))]
        log_prob = [e.processes.all_gather_rows(level, count) for level in levels]
        with e.clock("credit"):
            advantages = credited(e.algorithm, plan, log_prob, scores, selected)
        while waiting:
            part = waiting.pop(0)
            self._differentiate(part, [level[part.prompts.index] for level in advantages], totals)

    def _differentiate(self, part: Part, advantages: Levels, totals: Totals) -> None:
        """Add the gradients of a part, with its advantages, N of (P, W_{k+1}, R)."""
        e, plan = self.explorer, part.rollout.plan
        with e.clock("update"):
            totals.counts[3] += count_children(plan, advantages)
            advantages = advantages if e.algorithm.requirements.all_rows else pulling(advantages)
            totals.counts[2] += count_children(plan, advantages)
            rows, first = e.algorithm.rows(e.models, transitions(part.rollout, advantages)), 0
            for k, trained in trained_children(plan, advantages):
                parents = trained.unflatten(1, (plan.widths[k], -1)).any(2)
                chosen = torch.arange(first, first + int(parents.sum()))
                first += len(chosen)
                retained = part.rollout.retained[k]
                if totals.problem is not None or retained is None or not len(chosen):
                    continue
                velocity = retained.velocity[to_device(retained.row[parents], retained.velocity.device)]
                mass = rows.mass(chosen)
                totals.counts[:2] += torch.tensor([len(chosen), mass])
                models = replace(e.models, policy=lambda x, t, cond, velocity=velocity: velocity)
                microbatch = Microbatch(rows[chosen], mass, mass / totals.expected)
                totals.problem = backward(e.algorithm, models, microbatch, e.processes, totals.measured)
            if e.processes.local_partitions > 1 and part.ends_partition:
                move_gradients(totals.parameters, totals.sums)


def iterations(explorer: Explorer, steps: range, retained_rows: int) -> Iterator[Iteration | OnePass]:
    """Yield the iterations of these numbers, in one pass where rows may wait, in two where retained_rows = 0."""
    if not retained_rows:
        return explorer.iterations(steps)
    return (OnePass(explorer, step, retained_rows) for step in steps)


def full_prompts(chunk: int, width: int) -> int:
    """Return the least number of prompts, of `width` images each, that fill whole forward passes of `chunk` rows."""
    return chunk // math.gcd(chunk, width)


@torch.no_grad()
def _scale(parameters: Sequence[nn.Parameter], factor: float) -> None:
    """Multiply all gradients by a factor."""
    for p in parameters:
        if p.grad is not None and factor != 1:
            p.grad.mul_(factor)
