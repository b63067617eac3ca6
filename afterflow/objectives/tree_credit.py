"""Credit in trees of denoising states (BranchGRPO, arXiv:2509.06040).

Levels are those of a rollout: (P, W_k) nodes after k steps, G leaves.  The leaves of a node stand side by side.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def widths(steps: int, splits: Sequence[int], children: int) -> tuple[int, ...]:
    """Return steps + 1 numbers of nodes, from one root; a split multiplies them by `children`."""
    sizes = [1]
    for k in range(steps):
        sizes.append(sizes[-1] * (children if k in splits else 1))
    return tuple(sizes)


def path_log_prob(log_prob: Sequence[Tensor], level: int, leaves: int) -> Tensor:
    """Return the log-probability of the path to each leaf from its node of `level`, (P, G): the sum over its steps."""
    below = [step.repeat_interleave(leaves // step.shape[1], 1) for step in log_prob[level:]]
    return torch.stack(below).sum(0) if below else log_prob[-1].new_zeros(len(log_prob[-1]), leaves)


def fuse(reward: Tensor, log_path: Tensor, width: int, beta: float) -> Tensor:
    """Return the mean of the leaf rewards (P, G) under each node, (P, width), weighted by softmax(β log_path).

    β = 0 weighs leaves alike.  A leaf without a reward (NaN) leaves the mean; a node without any gets NaN.
    """
    # Above the tree's lowest, so that nodes of equal leaves are equal to the last bit whatever their weights.
    lowest = reward.nan_to_num(torch.inf).amin(1, keepdim=True)
    value, path = (reward - lowest).unflatten(1, (width, -1)), beta * log_path.unflatten(1, (width, -1))
    weight = path.masked_fill(value.isnan(), -torch.inf).softmax(-1)  # NaN where no leaf is known
    return lowest + (weight * value.nan_to_num()).sum(-1)


def best_children(reward: Tensor, children: int) -> Tensor:
    """Return the best of every `children` leaves that stand side by side (Parent-Top1): (P, G) → (P, G) bool.

    A leaf without a reward (NaN) is not the best of others.
    """
    brood = reward.nan_to_num(-torch.inf).unflatten(1, (-1, children))
    return torch.zeros_like(brood, dtype=torch.bool).scatter(2, brood.argmax(2, keepdim=True), True).flatten(1)


def extremes(reward: Tensor, b: int) -> Tensor:
    """Return the b best and the b worst leaves of each tree (Extreme-b): rewards (P, G) → (P, G) bool.

    A leaf without a reward (NaN) is neither, and takes no other leaf's rank.
    """
    rank = reward.argsort(dim=1, stable=True).argsort(1)  # NaN comes last
    known = (~reward.isnan()).sum(1, keepdim=True)
    return (rank < known) & ((rank < b) | (rank >= known - b))
