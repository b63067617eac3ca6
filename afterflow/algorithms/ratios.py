"""The ratio of the policy's steps now to the steps that it took, and the clipped and masked losses of that ratio."""

from typing import Literal

import torch
from torch import Tensor

from ..objectives.losses import clipped_surrogate, divergence_mask, guard_log_ratio, masked_surrogate
from ..sampling.conditioning import Velocity
from ..sampling.kernels import Gaussian, Kernel, kl, log_prob, variance_free
from ..sampling.rollout import Transitions
from .base import Metrics


def step(velocity: Velocity, kernel: Kernel, batch: Transitions) -> Gaussian:
    """Return the Gaussian from which `velocity` would have drawn the children of batch.x: M rows."""
    return kernel(batch.x, velocity(batch.x, batch.t, batch.cond), batch.t, batch.s, batch.eta)


def per_child(p: Gaussian, batch: Transitions) -> Gaussian:
    """Repeat a Gaussian of M parents to one row for each of their K children."""
    return p if len(batch.log_prob) == len(batch) else Gaussian(*(a[batch.parent] for a in p))


def log_ratio(p: Gaussian, batch: Transitions) -> Tensor:
    """Return log ρ = log p(x_s | x_t) - log p_old(x_s | x_t), (K,), of the policy's kernels p (M, ...)."""
    return log_prob(per_child(p, batch), batch.x_next) - batch.log_prob


def guarded_log_ratio(p: Gaussian, batch: Transitions) -> Tensor:
    """Return GRPO-Guard's log-ratio, (K,), of the policy's kernels p (M, ...)."""
    new, old = per_child(p, batch), per_child(Gaussian(batch.mean, p.std), batch)
    return guard_log_ratio(new, old, batch.x_next)


def variance_free_log_ratio(p: Gaussian, batch: Transitions) -> Tensor:
    """Return the difference of flow_grpo's log-probabilities of CPS, (K,), for the policy's kernels p (M, ...)."""
    new, old = per_child(p, batch), per_child(Gaussian(batch.mean, p.std), batch)
    return variance_free(new, batch.x_next) - variance_free(old, batch.x_next)


LogDensity = Literal["true", "variance_free"]
LOG_RATIOS = {"true": log_ratio, "variance_free": variance_free_log_ratio}


def density_loss(
    p: Gaussian, batch: Transitions, clip: float, divergence: float | None = None, density: LogDensity = "true"
) -> tuple[Tensor, Metrics]:
    """Return the clipped loss of the true ratio, or the masked one, and what to log.

    Args:
        p: The policy's kernels, (M, ...).
        batch: The steps that the policy took.
        clip: ε of the clipped ratio.
        divergence: δ of Flow-DPPO's mask, which replaces the clip; None: the clip.
        density: The density that the ratio is of.
    """
    log_ratio = LOG_RATIOS[density](p, batch)
    return policy_loss(log_ratio, batch, clip) if divergence is None else masked_loss(log_ratio, p, batch, divergence)


def guarded_loss(p: Gaussian, batch: Transitions, clip: float) -> tuple[Tensor, Metrics]:
    """Return the clipped loss with GRPO-Guard's ratio, divided by Δt (arXiv:2510.22319), and what to log."""
    return policy_loss(guarded_log_ratio(p, batch), batch, clip, 1 / (batch.t - batch.s))


def policy_loss(
    log_ratio: Tensor, batch: Transitions, clip: float, step_weight: Tensor | None = None
) -> tuple[Tensor, Metrics]:
    """Return PPO's clipped surrogate, summed over rewards and averaged over children, and what to log.

    log_ratio (K,) is of children, step_weight (M,) of parents.
    """
    surrogate = clipped_surrogate(log_ratio[:, None], batch.advantage, clip).sum(-1)
    loss = (surrogate if step_weight is None else surrogate * step_weight[batch.parent]).mean()
    ratio = log_ratio.detach().exp()
    return loss, {**ratio_metrics(loss, ratio), "clip_fraction": ((ratio - 1).abs() > clip).float().mean()}


def masked_loss(log_ratio: Tensor, p: Gaussian, batch: Transitions, limit: float) -> tuple[Tensor, Metrics]:
    """Return Flow-DPPO's loss -ρA (arXiv:2606.11025), summed over rewards and averaged over children, and what to log.

    A step has no gradient where KL(π_θ ‖ π_old), a mean over coordinates, is above the limit and would grow.

    Args:
        log_ratio: log ρ of each child, (K,).
        p: The policy's kernels, (M, ...).
        batch: The steps that the policy took, with the means that it had then.
        limit: The paper's δ.
    """
    divergence = kl(Gaussian(p.mean.detach(), p.std), Gaussian(batch.mean, p.std))[batch.parent]
    masked = divergence_mask(log_ratio[:, None], batch.advantage, divergence[:, None], limit)
    loss = masked_surrogate(log_ratio[:, None], batch.advantage, masked).sum(-1).mean()
    measured = {"masked_fraction": masked.float().mean(), "divergence": divergence.mean()}
    return loss, {**ratio_metrics(loss, log_ratio.detach().exp()), **measured}


def ratio_metrics(loss: Tensor, ratio: Tensor) -> Metrics:
    """Return what is logged of a loss and the ratios (K,) that it is of."""
    return {"policy_loss": loss.detach(), "ratio_mean": ratio.mean(), "ratio_max": ratio.max()}


def distance_to_reference(
    reference: Velocity | None, kernel: Kernel, batch: Transitions, p: Gaussian, scale: Literal["exact", "legacy"]
) -> Tensor:
    """Return the mean KL(π_θ ‖ π_ref) of the children, of the policy's kernels p (M, ...).

    Args:
        reference: The velocity of the reference.
        kernel: The Gaussian of each step.
        batch: The steps that the policy took.
        p: The policy's kernels.
        scale: legacy multiplies the KL by Δt, as flow_grpo's code does.
    """
    assert reference is not None
    with torch.no_grad():
        q = step(reference, kernel, batch)
    distance = kl(p, q) * (batch.t - batch.s if scale == "legacy" else 1)
    return distance[batch.parent].mean()
