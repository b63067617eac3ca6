"""Credit: from rewards of finished images to advantages of steps.  P prompts, G images of each.

A NaN is a reward that could not be had.  It leaves the statistics of its group and stays NaN, and the
step it would have credited is not trained on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalize:
    """How rewards become advantages: (r - centre) / (scale + eps)."""

    centre: Literal["prompt", "batch"] = "prompt"
    """Subtract the mean of the prompt's group, or of the whole batch (DDPO)."""
    scale: Literal["prompt", "batch", "none"] = "prompt"
    """Divide by the std of the group, of the whole batch (flow_grpo's `global_std`), or not at all."""
    ddof: int = 0
    """0 divides sums of squares by n (Flow-GRPO), 1 by n - 1 (DanceGRPO and its descendants)."""
    eps: float = 1e-4
    """Added to the std, so that a group of equal rewards gets advantage 0."""


def normalize(reward: Tensor, how: Normalize) -> Tensor:
    """(P, G) → (P, G): how much better than its siblings, in standard deviations."""
    # fp64 as in the authors' code: rewards of a group may differ in the fifth digit.
    r = reward.double()
    centred = r - (r.nanmean(1, keepdim=True) if how.centre == "prompt" else r.nanmean())
    if how.scale == "none":
        return centred.to(reward.dtype)
    std = _nanstd(r, how.ddof) if how.scale == "prompt" else _nanstd(r.reshape(1, -1), how.ddof)
    return (centred / (std + how.eps)).to(reward.dtype)


def _nanstd(r: Tensor, ddof: int) -> Tensor:
    """(P, G) → (P, 1) over what is not NaN; 0 where too few are left to have a spread."""
    n = (~r.isnan()).sum(1, keepdim=True)
    squares = (r - r.nanmean(1, keepdim=True)).square().nansum(1, keepdim=True)
    return torch.where(n > ddof, squares / (n - ddof).clamp(min=1), 0.0).sqrt()


def combine(rewards: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Weighted sum of named rewards, each (P, G); NaN where any of them is."""
    return torch.stack([weights[name] * rewards[name] for name in weights]).sum(0)
