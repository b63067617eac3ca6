"""DDPO (arXiv:2305.13301) on flow models: the ancestor.  Policy gradients on the steps of an SDE, and no groups.

plan    images of each prompt by the SDE, every step but the last trained
credit  A = (r - mean r) / std r over the whole batch                                   (history = 0)
        or over the last `history` images of the same prompt, once there are enough of them
loss    -min(ρA, clip(ρ) A)

DDPO was written for DDIM at η = 1; a rectified flow has Flow-SDE instead (arXiv:2505.05470), and its last step,
which DDIM trains, has no width worth training on.  The authors' code truncates advantages to integers where the
rewards are integers; here they are floats.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..objectives.advantages import Blend, Normalize, combine, gated, normalize, per_prompt_history
from ..sampling.kernels import KernelName
from ..sampling.rollout import Plan, Rollout, Transitions, chain, transitions
from ..sampling.schedules import DynamicShift, LinearShift, SD3Grid, grid
from .base import Metrics, Models, OnPolicy, Requirements, Scores, pointwise
from .checks import check_policy_gradient, require
from .policy_gradient import log_ratio, policy_loss, step, untied


@dataclass(frozen=True)
class DDPO(OnPolicy[Transitions]):
    weights: Mapping[str, float] = field(default_factory=dict)
    """Rewards and how much each counts in the sum whose advantage is trained on."""
    steps: int = 10
    """Denoising steps of a rollout."""
    schedule: SD3Grid | LinearShift | DynamicShift | None = SD3Grid()
    """Where the steps stop between noise and image. None: the grid of the model's own pipeline."""
    group: int = 1
    """Images per prompt and iteration; credit does not compare them."""
    kernel: KernelName = "flow_sde"
    """What draws a step."""
    eta: float = 0.7
    """Noise level of the steps."""
    history: int = 0
    """Images of a prompt that its mean and std are taken over, across iterations (published: 32); 0: the batch's."""
    least: int = 16
    """Below this many images a prompt still takes the mean and std of the batch."""
    blend: Blend = Blend()
    """How several rewards become one advantage: raw_sum, with or without gates."""
    max_advantage: float = 5.0
    """Advantages are clamped to ± this."""
    clip: float = 1e-4
    """ε of the clipped ratio."""

    def __post_init__(self) -> None:
        check_policy_gradient(self.steps, self.kernel, self.eta, self.clip, self.max_advantage)
        require(self.group >= 1, f"group = {self.group}: at least 1")
        fits = self.least >= 2 and (self.history == 0 or self.least <= self.history)
        require(fits, f"least = {self.least}, history = {self.history}: take 2 <= least <= history, or history = 0")
        gates = not self.blend.gate or (self.group >= 2 and self.history == 0)
        require(gates, "blend.gate: an image that fails gets the least of its group; take group >= 2 and history = 0")
        plain = self.blend.how == "raw_sum" and not self.blend.again
        require(plain, "blend: DDPO has one sum and one advantage; take raw_sum without again")

    @property
    def requirements(self) -> Requirements:
        return Requirements(pointwise(self.weights, self.blend), self.blend, history=self.history)

    def plan(self, step: int, generator: torch.Generator) -> Plan:
        return chain(grid(self.schedule, self.steps), self.group, self.eta, range(self.steps - 1))

    def credit(self, models: Models, rollout: Rollout, scores: Scores, generator: torch.Generator) -> Transitions:
        reward = combine(gated(scores.rewards, self.blend.gate), self.weights)
        if self.history:
            past = combine(scores.past, self.weights)
            advantage = per_prompt_history(reward, past, self.history, self.least, eps=1e-6)
        else:
            advantage = normalize(reward, Normalize("batch", "batch", ddof=0, eps=1e-8))
        advantage = advantage.clamp(-self.max_advantage, self.max_advantage)
        return transitions(rollout, [untied(advantage[..., None])] * self.steps)

    def loss(self, models: Models, batch: Transitions) -> tuple[Tensor, Metrics]:
        return policy_loss(log_ratio(step(models.policy, self.step_kernel, batch), batch), batch, self.clip)
