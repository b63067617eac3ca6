"""What the policy-gradient methods share: which edges are trained, their ratios, and the clipped loss."""

import torch
from torch import Tensor

from ..objectives.losses import clipped_surrogate, guard_log_ratio
from ..sampling.conditioning import Velocity
from ..sampling.kernels import Gaussian, Kernel, log_prob
from ..sampling.rollout import Transitions
from .base import Metrics
from .checks import require


def untied(advantage: Tensor) -> Tensor:
    """(..., R) with NaN where nothing would pull on a step, so that no forward pass is spent on it."""
    return torch.where((advantage == 0).all(-1, keepdim=True), torch.nan, advantage)


def share_of_steps(steps: int, fraction: float) -> int:
    """How many of the steps before the last `fraction` is; ValueError where that is none."""
    count = int((steps - 1) * fraction)
    holds = 0 < fraction <= 1 and count >= 1
    require(holds, f"fraction = {fraction}: a share of the {steps - 1} steps before the last, at least one of them")
    return count


def random_steps(advantage: Tensor, steps: int, keep: int, generator: torch.Generator) -> list[Tensor]:
    """For each of `steps`, (P, G, 1) bool: whether an image trains it; each trains `keep` of them."""
    order = torch.rand(*advantage.shape[:2], steps, generator=generator).argsort(-1).argsort(-1)
    return list((order < keep).to(advantage.device)[..., None].unbind(2))


def step(velocity: Velocity, kernel: Kernel, batch: Transitions) -> Gaussian:
    """The Gaussian from which `velocity` would have drawn the children of batch.x: M rows."""
    return kernel(batch.x, velocity(batch.x, batch.t, batch.cond), batch.t, batch.s, batch.eta)


def per_child(p: Gaussian, batch: Transitions) -> Gaussian:
    """A Gaussian of M parents → one row for each of their K children."""
    return p if len(batch.log_prob) == len(batch) else Gaussian(*(a[batch.parent] for a in p))


def log_ratio(p: Gaussian, batch: Transitions) -> Tensor:
    """log ρ = log p(x_s | x_t) - log p_old(x_s | x_t) of the policy's kernels p (M, ...): (K,)."""
    return log_prob(per_child(p, batch), batch.x_next) - batch.log_prob


def guarded_log_ratio(p: Gaussian, batch: Transitions) -> Tensor:
    """GRPO-Guard's, (K,), for kernels p (M, ...)."""
    new, old = per_child(p, batch), per_child(Gaussian(batch.mean, p.std), batch)
    return guard_log_ratio(new, old, batch.x_next)


def policy_loss(
    log_ratio: Tensor, batch: Transitions, clip: float, step_weight: Tensor | None = None
) -> tuple[Tensor, Metrics]:
    """PPO's clipped surrogate, summed over rewards, averaged over children; log_ratio (K,), step_weight (M,)."""
    surrogate = clipped_surrogate(log_ratio[:, None], batch.advantage, clip).sum(-1)
    loss = (surrogate if step_weight is None else surrogate * step_weight[batch.parent]).mean()
    ratio = log_ratio.detach().exp()
    return loss, {
        "policy_loss": loss.detach(),
        "ratio_mean": ratio.mean(),
        "ratio_max": ratio.max(),
        "clip_fraction": ((ratio - 1).abs() > clip).float().mean(),
    }
