"""Credit leads from rewards of finished images to advantages of steps.  P prompts, G images of each.

A NaN is a reward that is missing.  It leaves the statistics of its group and stays NaN, and the step it would have
credited is not trained on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalize:
    """Rewards become advantages as (r - centre) / (scale + eps)."""

    centre: Literal["prompt", "batch"] = "prompt"
    """The mean that is subtracted: of the prompt's group, or of the whole batch (DDPO)."""
    scale: Literal["prompt", "batch", "none"] = "prompt"
    """The standard deviation that divides: of the group, of the whole batch (flow_grpo's `global_std`), or none."""
    ddof: int = 0
    """Sums of squares are divided by n with 0 (Flow-GRPO), by n - 1 with 1 (DanceGRPO and its descendants)."""
    eps: float = 1e-4
    """Number added to the std, so that a group of equal rewards gets advantage 0."""

    def __post_init__(self) -> None:
        if self.ddof not in (0, 1):
            raise ValueError(f"normalize.ddof = {self.ddof}: take 0 or 1")
        if not self.eps > 0:
            raise ValueError(f"normalize.eps = {self.eps}: it must be positive, or equal rewards divide by 0")


def normalize(reward: Tensor, how: Normalize) -> Tensor:
    """Return how much better each image is than its siblings, in standard deviations: (P, G) → (P, G)."""
    # fp64 as in the authors' code: rewards of a group may differ in the fifth digit.
    r = reward.double()
    centred = r - (r.nanmean(1, keepdim=True) if how.centre == "prompt" else r.nanmean())
    if how.scale == "none":
        return centred.to(reward.dtype)
    std = nanstd(r, how.ddof) if how.scale == "prompt" else nanstd(r.reshape(1, -1), how.ddof)
    return (centred / (std + how.eps)).to(reward.dtype)


def per_prompt_history(
    reward: Tensor, past: Tensor, buffer: int, min_count: int, eps: float, prompt: Tensor | None = None
) -> Tensor:
    """Normalise rewards (P, G) by mean and std of each prompt's last `buffer` rewards, these included (DDPO).

    All rows of a prompt are normalised alike, and a missing reward takes no place among the last.

    Args:
        reward: The rewards of this iteration, (P, G).
        past: Earlier rewards of the same prompts, (P, H), the newest last, padded with NaN.
        buffer: Number of rewards of a prompt that its statistics are taken over.
        min_count: A prompt with fewer rewards takes the mean and std of the batch.
        eps: Number added to the std.
        prompt: A number for the prompt of each row, (P,); None where no two rows have the same.
    """
    r = reward.double()
    prompt = torch.arange(len(r)) if prompt is None else prompt
    recent = torch.stack(
        [_newest(torch.cat([past[p].to(r), r[prompt == prompt[p]].flatten()]), buffer) for p in range(len(r))]
    )
    enough = (~recent.isnan()).sum(1, keepdim=True) >= min_count
    centre = torch.where(enough, recent.nanmean(1, keepdim=True), r.nanmean())
    std = torch.where(enough, nanstd(recent, 0), nanstd(r.reshape(1, -1), 0))
    return ((r - centre) / (std + eps)).to(reward.dtype)


def _newest(values: Tensor, count: int) -> Tensor:
    """Return the last `count` of the values that are not NaN, (n,) → (count,), padded with NaN on the left."""
    known = values[~values.isnan()][-count:]
    return torch.nn.functional.pad(known, (count - len(known), 0), value=torch.nan)


def nanstd(r: Tensor, ddof: int) -> Tensor:
    """Return the std of each row over what is not NaN, (P, G) → (P, 1); 0 where too few numbers are left."""
    n = (~r.isnan()).sum(1, keepdim=True)
    squares = (r - r.nanmean(1, keepdim=True)).square().nansum(1, keepdim=True)
    return torch.where(n > ddof, squares / (n - ddof).clamp(min=1), 0.0).sqrt()


@dataclass(frozen=True)
class Blend:
    """Several rewards become one advantage, or keep advantages of their own."""

    how: Literal["raw_sum", "z_sum", "separate"] = "raw_sum"
    """raw_sum normalises the weighted sum (Flow-GRPO).  z_sum normalises every reward and averages them by weight
    (MixGRPO, Pref-GRPO).  separate normalises every reward and gives it a clipped loss of its own (DanceGRPO)."""
    again: bool = False
    """Whether advantages are standardised once more over the batch (GDPO)."""
    gate: Mapping[str, float] = field(default_factory=dict)
    """Rewards that an image must reach; one that does not gets the lowest of its group in every reward."""

    def __post_init__(self) -> None:
        if self.again and self.how == "separate":
            raise ValueError("again = True standardises one advantage; take how = raw_sum or z_sum")


def advantages(
    rewards: Mapping[str, Tensor], weights: Mapping[str, float], how: Normalize, blend: Blend, limit: float
) -> Tensor:
    """Return advantages (P, G, R) of named rewards, (P, G) each; R is 1 unless rewards stay separate.

    Args:
        rewards: Rewards by name, (P, G) each; NaN where one is missing.
        weights: The weight of each reward.
        how: How a reward is normalised.
        blend: How several rewards become one advantage.
        limit: Advantages are clamped to ± this.
    """
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
    """Give images that fail a gate the lowest rewards of their group; rewards are (P, G) each."""
    passes = [rewards[name] >= threshold for name, threshold in gate.items()]
    if not passes:
        return dict(rewards)
    good = torch.stack(passes).all(0)
    # Whether an image passes may be unknown, and then so is what it is worth.
    unknown = torch.stack([rewards[name].isnan() for name in gate]).any(0)
    known = {name: value.masked_fill(unknown, torch.nan) for name, value in rewards.items()}
    lowest = {name: value.nan_to_num(torch.inf).amin(1, keepdim=True) for name, value in known.items()}
    return {name: torch.where(good | value.isnan(), value, lowest[name]) for name, value in known.items()}


def combine(rewards: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the weighted sum of named rewards, (P, G) each; NaN where any of them is."""
    return torch.stack([weights[name] * rewards[name] for name in weights]).sum(0)
