"""DanceGRPO (arXiv:2505.07818).

plan    G images of each prompt from one noise by the SDE dx = (...) dt + η dw; the last step is the ODE's, so
        the image is the x̂_0 it predicts
credit  A_i = (r_i - mean r) / std r over the group, for each reward apart
        best of n: only the n/2 best and the n/2 worst images are kept, by statistics of the whole group
        of each image's steps a random 60 % are trained
loss    Σ_rewards -min(ρA, clip(ρ) A)

The last step is drawn without noise: the authors draw it, drop it from training and decode x̂_0, which is the same.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..objectives.advantages import Blend
from ..objectives.tree_credit import extremes
from ..sampling.kernels import KernelName
from ..sampling.rollout import Levels, Plan, Transitions, chain
from ..sampling.schedules import LinearShift, ScheduleOption, grid
from .base import Metrics, Models, Requirements, Scores, require
from .policy_gradient import GroupRelative, compares_prompts, group_advantages, random_steps, share_of_steps
from .ratios import density_loss, step


@dataclass(frozen=True)
class DanceGRPO(GroupRelative):
    """DanceGRPO (arXiv:2505.07818)."""

    steps: int = 16
    schedule: ScheduleOption = LinearShift()
    kernel: KernelName = "dance_sde"
    eta: float = 0.3
    blend: Blend = Blend("separate")
    fraction: float = 0.6
    """Share of the steps before the last that an image trains, drawn anew for each image."""
    best_of: int | None = None
    """Number of images of a group that are trained, half of them its best, half its worst (published: 8 of 24)."""

    def __post_init__(self) -> None:
        self.check_group()
        share_of_steps(self.steps, self.fraction)
        n = self.best_of
        fits = n is None or (n >= 2 and n % 2 == 0 and n <= self.group)
        require(fits, f"best_of = {n}: an even number, from 2 to the group's {self.group}")

    @property
    def requirements(self) -> Requirements:
        """Return the rewards."""
        whole_batch = compares_prompts(self.normalize, self.blend)
        pruned = 0.0 if self.best_of is None else 1 - self.best_of / self.group
        return Requirements(self.weights, self.blend, whole_batch=whole_batch, pruned=pruned)

    def plan(self, step: int, generator: torch.Generator) -> Plan:
        """Return rollouts whose steps but the last are stochastic."""
        return chain(grid(self.schedule, self.steps), self.group, self.eta, range(self.steps - 1), self.shared_noise)

    def select(self, plan: Plan, prompts: int, generator: torch.Generator) -> Levels:
        """Return a random share of each image's steps."""
        return random_steps(prompts, self.group, self.steps, self.fraction, generator)

    def credit(self, plan: Plan, log_prob: Levels, scores: Scores) -> Levels:
        """Return the advantages of the images that are trained."""
        advantage = group_advantages(self, scores.rewards)
        if self.best_of is not None:
            trained = extremes(advantage.sum(-1), self.best_of // 2)
            advantage = advantage.where(trained[..., None], torch.nan)
        return [advantage] * self.steps

    def loss(self, models: Models, batch: Transitions) -> tuple[Tensor, Metrics]:
        """Return the clipped loss, summed over the rewards."""
        return density_loss(step(models.policy, self.step_kernel, batch), batch, self.clip, self.divergence)
