"""The prompts of an iteration that this process explores, and its rows among those of all processes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..algorithms.base import OnPolicy, Scores
from ..algorithms.forward_process import ForwardProcess
from ..sampling.conditioning import Conditioning
from ..sampling.noised import NoisedImages, trainable_images
from ..sampling.rollout import Levels, Plan, Rollout, Transitions, trained_children, transitions
from ..sampling.seeds import generator, number


@dataclass(frozen=True)
class LocalPrompts:
    """The prompts that this process explores; their random numbers do not depend on which process that is."""

    cond: Conditioning
    index: Tensor  # (P,) long: which of the iteration's prompts they are
    noise: Sequence[torch.Generator]
    judge: Sequence[torch.Generator]

    def __len__(self) -> int:
        return len(self.cond)

    def __getitem__(self, rows: Tensor) -> "LocalPrompts":
        noise, judge = ([sources[p] for p in rows.tolist()] for sources in (self.noise, self.judge))
        return LocalPrompts(self.cond[rows], self.index[rows], noise, judge)


def local_prompts(cond: Conditioning, index: Tensor, seed: int, step: int) -> LocalPrompts:
    """Return the prompts of iteration `step` that have these indices, with a generator each for noise and judge."""
    noise, judge = ([generator(seed, step, name, p) for p in index.tolist()] for name in ("noise", "judge"))
    return LocalPrompts(cond[index], index, noise, judge)


@dataclass(frozen=True)
class LocalRows:
    """The rows that this process trains, among those of all processes, in U units that microbatches do not cut."""

    examples: Transitions | NoisedImages
    """The rows, those of a unit one after another."""
    global_index: Tensor  # (U,) long: position among the units of all processes
    global_count: int  # number of the units of all processes
    share: float  # of all rows in the mean of the loss, that the rows of all processes are; the others have no pull
    prompt: Tensor  # (U,) long: index among the iteration's prompts
    sizes: Tensor | None = None  # (U,) long: rows of each unit; None: one
    unit_rows: int = 1  # rows of a whole unit, on every process

    def microbatches(
        self, chosen: Tensor, partitions: Sequence[Tensor], chunk: int, low_noise: Tensor | None = None
    ) -> list[Sequence[Tensor]]:
        """Return the local rows of `chosen`, which are global indices of units, in their order.

        They are split by the partition of prompts that they belong to, and then into chunks of at most so many rows, or
        of one unit where that has more.

        Args:
            chosen: Global indices of units, (n,) long.
            partitions: The prompts of each partition of this process.
            chunk: Largest number of rows of a microbatch.
            low_noise: Rows that the second of two networks computes, (M,) bool.  A microbatch then has rows of one
                network, where units are rows.  A replay is so a pass of the same shape as the rollout's.
        """
        local = torch.full((self.global_count,), -1)
        local[self.global_index] = torch.arange(len(self.global_index))
        units = local[chosen]
        units = units[units >= 0]
        prompt = self.prompt[units]
        parts = [units[(prompt >= prompts[0].item()) & (prompt <= prompts[-1].item())] for prompts in partitions]
        if self.sizes is None:
            return [chunks(part, chunk, low_noise) for part in parts]
        whole = max(1, chunk // self.unit_rows)
        return [[self._rows(some) for some in part.split(whole)] if len(part) else () for part in parts]

    def _rows(self, units: Tensor) -> Tensor:
        """Return the rows of units, in their order."""
        assert self.sizes is not None
        first, sizes = self.sizes.cumsum(0) - self.sizes, self.sizes[units]
        within = torch.arange(int(sizes.sum())) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        return first[units].repeat_interleave(sizes) + within


def chunks(rows: Tensor, chunk: int, low_noise: Tensor | None) -> Sequence[Tensor]:
    """Split rows (n,) into chunks of at most so many, of one network each where there are two.

    low_noise: rows that the second network computes, (M,) bool.
    """
    sides = [rows]
    if low_noise is not None:
        second = low_noise.cpu()[rows]
        sides = [rows[~second], rows[second]]
    return tuple(part for side in sides if len(side) for part in side.split(chunk))


def credited(algorithm: OnPolicy, plan: Plan, log_prob: Levels, scores: Scores, selected: Levels) -> list[Tensor]:
    """Return the advantages of each step, N of (P, W_{k+1}, R), NaN where a state is not selected for training.

    Args:
        algorithm: The method, which credits the steps.
        plan: The plan of the rollouts.
        log_prob: The log-probability of each step, N of (P, W_{k+1}).
        scores: The scores of the finished images.
        selected: The states that may be trained, N of (P, W_{k+1}) bool.
    """
    levels = algorithm.credit(plan, log_prob, scores)
    return [level.where(chosen[..., None], torch.nan) for level, chosen in zip(levels, selected)]


def pulling(advantages: Levels) -> list[Tensor]:
    """Put NaN into each (..., R) where no advantage pulls on a step, so that no forward pass is spent on it."""
    return [level.where((level != 0).any(-1, keepdim=True), torch.nan) for level in advantages]


def count_children(plan: Plan, advantages: Levels) -> int:
    """Return the number of states of all prompts that are trained on."""
    return sum(int(trained.sum()) for _, trained in trained_children(plan, advantages))


def local_rows(rollout: Rollout, advantages: Levels, prompts: Tensor, all_rows: bool = False) -> LocalRows:
    """Return the steps of a rollout as rows among those of all processes.

    Args:
        rollout: The rollout of the prompts of this process.
        advantages: The advantages of all prompts, N of (P, W_{k+1}, R); NaN takes a state out of training.
        prompts: Which of all prompts this process has, long.
        all_rows: Whether a state of advantage 0 becomes a row as well; else it only counts in the mean of the loss.
    """
    averaged = count_children(rollout.plan, advantages)
    advantages = advantages if all_rows else pulling(advantages)
    share = count_children(rollout.plan, advantages) / max(1, averaged)
    positions, owners, count = [], [], 0
    for k, trained in trained_children(rollout.plan, advantages):
        parents = trained.unflatten(1, (rollout.plan.widths[k], -1)).any(2)  # (P, W_k)
        position = count + parents.flatten().cumsum(0).view_as(parents) - 1
        local = parents[prompts]
        positions.append(position[prompts][local])
        owners.append(prompts[:, None].expand_as(local)[local])
        count += int(parents.sum())
    steps = transitions(rollout, [level[prompts] for level in advantages])
    return LocalRows(steps, torch.cat(positions), count, share, torch.cat(owners))


def local_noised_rows(
    algorithm: ForwardProcess, rollout: Rollout, advantage: Tensor, prompts: LocalPrompts, seed: int, step: int
) -> LocalRows:
    """Return the finished images of a rollout, noised again, as rows among those of all processes.

    Args:
        algorithm: The method, which says to which times and with what noise.
        rollout: The rollout of the prompts of this process.
        advantage: The advantages of all prompts, (P, G); NaN takes an image out.
        prompts: The prompts of this process.
        seed: The seed of the run.
        step: The iteration.
    """
    sources = [generator(seed, step, "noised", p) for p in prompts.index.tolist()]
    rows, group, sizes = algorithm.noised(rollout, advantage[prompts.index], sources, number(seed, step, "times"))
    used, units = trainable_images(advantage), algorithm.units(advantage)
    first = units.cumsum(0) - units
    owner = prompts.index[group]
    local = units[prompts.index]
    rank = torch.arange(len(group)) - (local.cumsum(0) - local)[group]
    share = int(used.sum()) / max(1, int(advantage.isfinite().sum()))
    whole = None if algorithm.together == "row" else sizes
    return LocalRows(rows, first[owner] + rank, int(units.sum()), share, owner, whole, algorithm.unit_rows)
