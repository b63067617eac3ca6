"""DanceGRPO (arXiv:2505.07818).

plan    G images of each prompt from one noise by the SDE dx = (...) dt + η dw; the last step is the ODE's, so
        the image is the x̂_0 it predicts
credit  A_i = (r_i - mean r) / std r over the group, for each reward apart
        best of n: only the n/2 best and the n/2 worst images are kept, by statistics of the whole group
        of each image's steps a random 60 % are trained
loss    Σ_rewards -min(ρA, clip(ρ) A)

The last step is drawn without noise: the authors draw it, drop it from training and decode x̂_0, which is the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..objectives.advantages import Blend, Normalize, advantages, gated
from ..objectives.tree_credit import extremes
from ..sampling.kernels import KernelName
from ..sampling.rollout import Plan, Rollout, Transitions, chain, transitions
from ..sampling.schedules import DynamicShift, LinearShift, SD3Grid, grid
from .base import Metrics, Models, OnPolicy, Requirements, Scores, pointwise
from .checks import check_group, check_policy_gradient, require
from .policy_gradient import log_ratio, policy_loss, random_steps, share_of_steps, step, untied


@dataclass(frozen=True)
class DanceGRPO(OnPolicy[Transitions]):
    weights: Mapping[str, float] = field(default_factory=dict)
    """Rewards and how much the loss of each counts."""
    steps: int = 16
    """Denoising steps of a rollout."""
    schedule: SD3Grid | LinearShift | DynamicShift | None = LinearShift()
    """Where the steps stop between noise and image. None: the grid of the model's own pipeline."""
    group: int = 12
    """Images per prompt."""
    kernel: KernelName = "dance_sde"
    """What draws a step."""
    eta: float = 0.3
    """Noise level of the steps."""
    fraction: float = 0.6
    """Share of the steps before the last that an image trains, drawn anew for each image."""
    best_of: int | None = None
    """Images of a group that are trained: half of them its best, half its worst (published: 8 of 24)."""
    shared_noise: bool = True
    """All images of a prompt start from one noise."""
    normalize: Normalize = Normalize(ddof=1, eps=1e-8)
    """How rewards become advantages."""
    blend: Blend = Blend("separate")
    """How several rewards become one advantage, or keep losses of their own."""
    max_advantage: float = 5.0
    """Advantages are clamped to ± this."""
    clip: float = 1e-4
    """ε of the clipped ratio."""

    def __post_init__(self) -> None:
        check_group(self.group)
        check_policy_gradient(self.steps, self.kernel, self.eta, self.clip, self.max_advantage)
        share_of_steps(self.steps, self.fraction)
        n = self.best_of
        fits = n is None or (n >= 2 and n % 2 == 0 and n <= self.group)
        require(fits, f"best_of = {n}: an even number, from 2 to the group's {self.group}")

    @property
    def requirements(self) -> Requirements:
        return Requirements(pointwise(self.weights, self.blend), self.blend)

    def plan(self, step: int, generator: torch.Generator) -> Plan:
        times = grid(self.schedule, self.steps)
        return chain(times, self.group, self.eta, range(self.steps - 1), self.shared_noise)

    def credit(self, models: Models, rollout: Rollout, scores: Scores, generator: torch.Generator) -> Transitions:
        rewards = gated(scores.rewards, self.blend.gate)
        advantage = untied(advantages(rewards, self.weights, self.normalize, self.blend, self.max_advantage))
        if self.best_of is not None:
            kept = extremes(advantage.sum(-1).nan_to_num(), self.best_of // 2)
            advantage = advantage.where(kept[..., None], torch.nan)
        count = share_of_steps(self.steps, self.fraction)
        chosen = random_steps(advantage, self.steps - 1, count, generator)
        return transitions(rollout, [*(advantage.where(mask, torch.nan) for mask in chosen), advantage])

    def loss(self, models: Models, batch: Transitions) -> tuple[Tensor, Metrics]:
        return policy_loss(log_ratio(step(models.policy, self.step_kernel, batch), batch), batch, self.clip)
