"""Pruning takes edges of BranchGRPO's tree out of training (arXiv:2509.06040)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..objectives.tree_credit import best_children, extremes, widths
from .base import require


@dataclass(frozen=True)
class Pruning:
    """The edges of a tree that are not trained, by width and by depth."""

    width: Literal["none", "parent_top1", "extreme"] = "none"
    """Leaves that are trained after the last split: all, the best child of each parent, or the b best and b worst."""
    extreme: int = 4
    """b, the number of best and of worst leaves."""
    depth: int = 0
    """Number of consecutive steps, from the last split on, that are not trained (published: 4)."""
    every: int = 30
    """Number of iterations after which those steps move by one."""
    towards: Literal["later", "earlier"] = "later"
    """Direction in which they move: later and round again (the paper), or earlier to the first split (the code)."""

    def check(self, steps: int, splits: Sequence[int], leaves: int) -> None:
        """Raise ValueError where a tree of that shape cannot be pruned so."""
        require(self.extreme >= 1, f"prune.extreme = {self.extreme}: at least 1")
        require(self.every >= 1, f"prune.every = {self.every}: at least 1 iteration")
        fits = self.width != "extreme" or 1 <= self.extreme <= leaves // 2
        require(fits, f"prune.extreme = {self.extreme}: 1 to {leaves // 2} best and as many worst of {leaves} leaves")
        room = steps - 1 - splits[-1]
        # Before the first split there is nothing to compare with, so those steps train nothing.
        fits = 0 <= self.depth <= room and self.depth < steps - 1 - splits[0]
        require(fits, f"prune.depth = {self.depth}: at most the {room} steps from the last split on, and not all")

    def steps(self, iteration: int, steps: int, splits: Sequence[int]) -> range:
        """Return the steps that are not trained."""
        moved, first = iteration // self.every, splits[-1]
        if self.towards == "earlier":
            first = max(splits[0], first - moved)
        else:
            first += moved % (steps - first - self.depth)
        return range(first, first + self.depth)

    def share(self, steps: int, splits: Sequence[int], children: int) -> float:
        """Return the share of the tree's edges that rewards take out of training."""
        leaves = children ** len(splits)
        trained = {"none": leaves, "parent_top1": leaves // children, "extreme": 2 * self.extreme}[self.width]
        states = widths(steps, splits, children)[:-2]  # parents of all edges but the last step's
        pruned = sum(width - trained for k, width in enumerate(states) if k > splits[-1])
        return pruned / sum(states)

    def trained(self, reward: Tensor, children: int) -> Tensor:
        """Return which leaves are trained after the last split: rewards (P, G), NaN unknown → (P, G) bool."""
        if self.width == "none":
            return torch.ones_like(reward, dtype=torch.bool)
        return best_children(reward, children) if self.width == "parent_top1" else extremes(reward, self.extreme)
