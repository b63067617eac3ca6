"""DDPO (arXiv:2305.13301) on flow models: the ancestor.  Policy gradients on the steps of an SDE, and no groups.

plan    images of each prompt by the SDE, every step but the last trained
credit  A = (r - mean r) / std r over the whole batch                                   (history = 0)
        or over the last `history` images of the same prompt, once there are enough of them: those of earlier
        iterations and all of this one, in however many rows the prompt stands
loss    -min(ρA, clip(ρ) A)

DDPO was written for DDIM at η = 1; a rectified flow has Flow-SDE instead (arXiv:2505.05470), and its last step,
which DDIM trains, has no width worth training on.  The authors' code truncates advantages to integers where the
rewards are integers; here they are floats.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..objectives.advantages import Normalize, combine, gated, normalize, per_prompt_history
from ..sampling.rollout import Levels, Plan, Transitions, chain
from ..sampling.schedules import grid
from .base import Metrics, Models, Requirements, Scores, require
from .policy_gradient import PolicyGradient
from .ratios import density_loss, step


@dataclass(frozen=True)
class DDPO(PolicyGradient):
    """DDPO (arXiv:2305.13301) on flow models."""

    group: int = 1
    """Number of images per prompt and iteration; credit does not compare them."""
    history: int = 0
    """Number of images of a prompt, across iterations, that its mean and std are taken over (published: 32); 0 takes
    the batch's."""
    min_count: int = 16
    """A prompt with fewer images in its history takes the mean and std of the batch."""

    def __post_init__(self) -> None:
        self.check_policy_gradient()
        require(self.group >= 1, f"group = {self.group}: at least 1")
        n, h = self.min_count, self.history
        fits = n >= 2 and (h == 0 or n <= h)
        require(fits, f"min_count = {n}, history = {h}: take 2 <= min_count <= history, or history = 0")
        gates = not self.blend.gate or (self.group >= 2 and self.history == 0)
        require(gates, "blend.gate: an image that fails gets the least of its group; take group >= 2 and history = 0")
        plain = self.blend.how == "raw_sum" and not self.blend.again
        require(plain, "blend: DDPO has one sum and one advantage; take raw_sum without again")

    def unused(self) -> dict[str, tuple[str, ...]]:
        """Add the count of a history that is not kept."""
        return super().unused() | ({"with history = 0": ("min_count",)} if self.history == 0 else {})

    @property
    def requirements(self) -> Requirements:
        """Return the rewards, and their history if it counts."""
        return Requirements(self.weights, self.blend, history=self.history, whole_batch=True)

    def plan(self, step: int, generator: torch.Generator) -> Plan:
        """Return rollouts whose steps but the last are stochastic and trained."""
        return chain(grid(self.schedule, self.steps), self.group, self.eta, range(self.steps - 1))

    def credit(self, plan: Plan, log_prob: Levels, scores: Scores) -> Levels:
        """Return the normalised reward of an image at each of its steps."""
        reward = combine(gated(scores.rewards, self.blend.gate), self.weights)
        if self.history:
            past = combine(scores.past, self.weights)
            advantage = per_prompt_history(reward, past, self.history, self.min_count, 1e-6, scores.prompt)
        else:
            advantage = normalize(reward, Normalize("batch", "batch", ddof=0, eps=1e-8))
        advantage = advantage.clamp(-self.max_advantage, self.max_advantage)
        return [advantage[..., None]] * self.steps

    def loss(self, models: Models, batch: Transitions) -> tuple[Tensor, Metrics]:
        """Return the clipped loss."""
        return density_loss(step(models.policy, self.step_kernel, batch), batch, self.clip, self.divergence)
