"""Losses of methods that learn from finished images noised again: no SDE, no log-probability of a step.

Letters: x_0 an image of a rollout, ε noise, x_t = (1 - t) x_0 + t ε, v a velocity at x_t, A an advantage.
"""

import torch
from torch import Tensor

from ..sampling.flow import expand, predict_x0
from ..sampling.noised import mean_of_units


def image_error(v: Tensor, x: Tensor, t: Tensor, x0: Tensor) -> Tensor:
    """Return S(v), how far the predicted image is from x_0, over its own detached mean error, fp64, (B,).

    S = mean((x̂ - x_0)²) / sg max(mean|x̂ - x_0|, 1e-5) with x̂ = x_t - t v, so that near and far states pull alike
    (DiffusionNFT, arXiv:2509.16117, eq. 12).  fp32 loses what is left near the image.

    Args:
        v: Velocities, (B, ...).
        x: States, (B, ...).
        t: Their times, (B,).
        x0: The images, (B, ...).
    """
    error = (predict_x0(x.double(), v.double(), t.double()) - x0.double()).flatten(1)
    return error.square().mean(1) / error.detach().abs().mean(1).clamp(min=1e-5)


def negative_aware(v: Tensor, old: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return the velocities of the implicit good and bad policies, β v + (1 - β) v_old and (1 + β) v_old - β v.

    They mirror each other about the old policy (DiffusionNFT, arXiv:2509.16117, eq. 9), all of (B, ...).
    """
    return beta * v + (1 - beta) * old, (1 + beta) * old - beta * v


def optimality(advantage: Tensor, limit: float) -> Tensor:
    """Return r = clip(A, ±c) / 2c + 1/2, the probability that an image is good, in [0, 1] (arXiv:2509.16117)."""
    return (advantage.clamp(-limit, limit) / (2 * limit) + 0.5).clamp(0, 1)


def weighted_log_likelihood(error: Tensor, t: Tensor, power: float) -> Tensor:
    """Return -(t / p) ((ℓ + 1e-10)^p - (1e-10)^p) of errors ℓ of velocities, fp64, (B,) (AWM, arXiv:2509.25050).

    p = 1 is the squared error weighted by t; 1/4, as released, weighs near and far states more alike.
    """
    return -(t.double() / power) * ((error.double() + 1e-10) ** power - 1e-10**power)


def displaced_target(v_line: Tensor, old: Tensor, advantage: Tensor) -> Tensor:
    """Return v_old + A (v* - v_old): the old policy, moved towards a good image or away from a bad one, (B, ...).

    v_line is v* = ε - x_0 (FlowAWR, arXiv:2606.30376).
    """
    return old + expand(advantage, old) * (v_line - old)


def softmax_advantages(reward: Tensor) -> Tensor:
    """Return A_i = n softmax_i(R / γ) - 1 within each group of n known rewards, (P, G) → (P, G).

    γ is the standard deviation of all rewards of the iteration, and at least 1e-6 (FlowAWR, arXiv:2606.30376).
    A NaN stays one and has no share.
    """
    r = reward.double()
    known = r.isfinite()
    spread = r[known].std(correction=0) if bool(known.any()) else r.new_tensor(0.0)
    shares = (r / spread.clamp(min=1e-6)).masked_fill(~known, -torch.inf).softmax(1)
    return (known.sum(1, keepdim=True) * shares - 1).masked_fill(~known, torch.nan).to(reward.dtype)


def group_weight(advantage: Tensor, gain: Tensor, unit: Tensor, beta: float) -> Tensor:
    """Return w = σ(β mean_i A_i (d_i - d_ref,i)) of each group, at each of its rows, detached (DGPO, arXiv:2510.08425).

    Args:
        advantage: A_i, (B,).
        gain: d_i - d_ref,i, the error of the policy less that of the reference, (B,).
        unit: Equal for the rows of a group, (B,) long.
        beta: How sharply groups that the policy already ranks right are let go.
    """
    return (beta * mean_of_units((advantage * gain).detach(), unit)).sigmoid()


def centred(values: Tensor, unit: Tensor) -> Tensor:
    """Return values (B,) less the mean of their group's."""
    return values - mean_of_units(values, unit)
