"""Credit: from rewards of finished images to advantages of steps.  P prompts, G images of each.

A NaN is a reward that could not be had.  It leaves the statistics of its group and stays NaN, and the
step it would have credited is not trained on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
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

    def __post_init__(self) -> None:
        if self.ddof not in (0, 1):
            raise ValueError(f"normalize.ddof = {self.ddof}: take 0 or 1")
        if not self.eps > 0:
            raise ValueError(f"normalize.eps = {self.eps}: it must be positive, or equal rewards divide by 0")


def normalize(reward: Tensor, how: Normalize) -> Tensor:
    """(P, G) → (P, G): how much better than its siblings, in standard deviations."""
    # fp64 as in the authors' code: rewards of a group may differ in the fifth digit.
    r = reward.double()
    centred = r - (r.nanmean(1, keepdim=True) if how.centre == "prompt" else r.nanmean())
    if how.scale == "none":
        return centred.to(reward.dtype)
    std = nanstd(r, how.ddof) if how.scale == "prompt" else nanstd(r.reshape(1, -1), how.ddof)
    return (centred / (std + how.eps)).to(reward.dtype)


def per_prompt_history(reward: Tensor, past: Tensor, buffer: int, least: int, eps: float) -> Tensor:
    """(P, G) → (P, G), by mean and std of each prompt's last `buffer` rewards, these included (DDPO).

    past (P, H) ends with the newest and is padded with NaN.  A prompt with fewer than `least` rewards takes the mean
    and std of the batch.
    """
    r = reward.double()
    seen = torch.cat([past.to(r), r], 1)[:, -buffer:]
    enough = (~seen.isnan()).sum(1, keepdim=True) >= least
    centre = torch.where(enough, seen.nanmean(1, keepdim=True), r.nanmean())
    std = torch.where(enough, nanstd(seen, 0), nanstd(r.reshape(1, -1), 0))
    return ((r - centre) / (std + eps)).to(reward.dtype)


def nanstd(r: Tensor, ddof: int) -> Tensor:
    """(P, G) → (P, 1) over what is not NaN; 0 where too few are left to have a spread."""
    n = (~r.isnan()).sum(1, keepdim=True)
    squares = (r - r.nanmean(1, keepdim=True)).square().nansum(1, keepdim=True)
    return torch.where(n > ddof, squares / (n - ddof).clamp(min=1), 0.0).sqrt()


@dataclass(frozen=True)
class Blend:
    """How several rewards become one advantage, or keep advantages of their own."""

    how: Literal["raw_sum", "z_sum", "separate"] = "raw_sum"
    """raw_sum: the weighted sum is normalised (Flow-GRPO); z_sum: each reward is, then averaged by weight
    (MixGRPO, Pref-GRPO); separate: each is, and has a clipped loss of its own (DanceGRPO)."""
    again: bool = False
    """GDPO: advantages are standardised once more over the batch."""
    gate: Mapping[str, float] = field(default_factory=dict)
    """Rewards that an image must reach: below, it gets the least of its group in every reward."""

    def __post_init__(self) -> None:
        if self.again and self.how == "separate":
            raise ValueError("again = True standardises one advantage; take how = raw_sum or z_sum")


def advantages(
    rewards: Mapping[str, Tensor], weights: Mapping[str, float], how: Normalize, blend: Blend, limit: float
) -> Tensor:
    """Named rewards, each (P, G) → (P, G, R), clamped to ± limit; R is 1 unless rewards stay separate."""
    if blend.how == "raw_sum":
        total = normalize(combine(rewards, weights), how)
    else:
        scores = {name: normalize(rewards[name], how) for name in weights}
        if blend.how == "separate":
            return torch.stack([weights[name] * score.clamp(-limit, limit) for name, score in scores.items()], -1)
        total = combine(scores, weights) / sum(weights.values())
    if blend.again:
        # Rounding leaves the batch a mean beside 0; what was tied stays so.
        total = normalize(total, Normalize("batch", "batch", ddof=1, eps=1e-8)).where(total != 0, 0.0)
    return total.clamp(-limit, limit)[..., None]


def gated(rewards: Mapping[str, Tensor], gate: Mapping[str, float]) -> dict[str, Tensor]:
    """Rewards (P, G) of which an image that fails a gate gets the least of its group."""
    passes = [rewards[name] >= least for name, least in gate.items()]
    if not passes:
        return dict(rewards)
    good = torch.stack(passes).all(0)
    # Whether an image passes may be unknown, and then so is what it is worth.
    unknown = torch.stack([rewards[name].isnan() for name in gate]).any(0)
    lowest = {name: value.nan_to_num(torch.inf).amin(1, keepdim=True) for name, value in rewards.items()}
    kept = {name: torch.where(good | value.isnan(), value, lowest[name]) for name, value in rewards.items()}
    return {name: value.masked_fill(unknown, torch.nan) for name, value in kept.items()}


def combine(rewards: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Weighted sum of named rewards, each (P, G); NaN where any of them is."""
    return torch.stack([weights[name] * rewards[name] for name in weights]).sum(0)
