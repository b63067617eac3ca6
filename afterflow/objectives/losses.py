"""Losses are functions of tensors with one row per example."""

import torch
from torch import Tensor

from ..sampling.kernels import Gaussian


def flow_matching(v: Tensor, target: Tensor) -> Tensor:
    """Return ‖v - target‖² per coordinate, fp32, (B, ...) → (B,)."""
    return ((v.float() - target.float()) ** 2).flatten(1).mean(1)


def preference_logit(winner: Tensor, loser: Tensor, beta: float) -> Tensor:
    """Return the log-odds that the winner is preferred, (B,), by Diffusion-DPO (arXiv:2311.12908).

    Args:
        winner: How much larger the policy's error is than the reference's on the preferred image, (B,).
        loser: The same on the other image, (B,).
        beta: How much a difference of errors counts.
    """
    return -beta / 2 * (winner - loser)


def preference_loss(logit: Tensor) -> Tensor:
    """Return -log σ(logit), (B,); log 2 where the policy is the reference."""
    return -torch.nn.functional.logsigmoid(logit)


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Return -min(ρA, clip(ρ, 1 ± clip) A) with ρ = e^log_ratio; shapes broadcast (PPO, arXiv:1707.06347, eq. 7)."""
    ratio = log_ratio.exp()
    return -torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def masked_surrogate(log_ratio: Tensor, advantage: Tensor, masked: Tensor) -> Tensor:
    """Return -ρA with ρ = e^log_ratio, without a gradient where `masked` is true; shapes broadcast."""
    return -torch.where(masked, log_ratio.detach(), log_ratio).exp() * advantage


def divergence_mask(log_ratio: Tensor, advantage: Tensor, divergence: Tensor, limit: float) -> Tensor:
    """Return where Flow-DPPO stops a step, bool; shapes broadcast (arXiv:2606.11025).

    It is where the policy has left the one that sampled by more than the limit, and A would move ρ further from 1.
    """
    away = ((advantage > 0) & (log_ratio > 0)) | ((advantage < 0) & (log_ratio < 0))
    return away & (divergence > limit)


def guard_log_ratio(p: Gaussian, old: Gaussian, x: Tensor) -> Tensor:
    """Return GRPO-Guard's normalised log-ratio, in closed form, (B, ...) → (B,) (arXiv:2510.22319).

    (log π - log π_old + ‖μ - μ_old‖²/2σ²) σ = mean(ε ⊙ (μ - μ_old)) with ε the noise of the step: the
    quadratic terms cancel, so the ratio has mean 1 at every noise level and nothing large is subtracted
    from anything large.  (The released code averages ‖μ - μ_old‖² over the batch as well; the paper does not.)
    """
    noise = (x.float() - old.mean) / old.std
    return (noise * (p.mean - old.mean)).flatten(1).mean(1)
