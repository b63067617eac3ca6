"""Pref-GRPO (arXiv:2508.20751).

plan    G images of each prompt from one noise by the SDE; the last step is the ODE's
credit  a judge compares the images of a group pair by pair; an image's reward is its win rate
        A_i = (w_i - mean w) / std w over the group, averaged with those of other rewards by weight
        of each image's steps a random 60 % are trained
loss    -min(ρA, clip(ρ) A) / Δt with GRPO-Guard's ρ

Pairs are shown in both orders, and a contradiction counts as a tie; the released code shows each once, in order of
index, so that a judge with a preference for the first image ranks them by index.  A win rate removes the
amplification of small margins, not that of noise: a coin for a judge still gives advantages of full size, hence
`min_consistency`.  Its mean over a group is 0.5 whatever the policy does: watch the win rate against the base.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..objectives.advantages import Blend
from ..objectives.preferences import consistency, win_rates
from ..sampling.rollout import Levels, Plan, Transitions, chain
from ..sampling.schedules import LinearShift, ScheduleOption, grid
from .base import WIN_RATE, Comparisons, Metrics, Models, Requirements, Scores, require
from .policy_gradient import (
    GroupRelative,
    check_unguarded,
    compares_prompts,
    group_advantages,
    random_steps,
    share_of_steps,
)
from .ratios import density_loss, guarded_loss, step


@dataclass(frozen=True)
class PrefGRPO(GroupRelative):
    """Pref-GRPO (arXiv:2508.20751)."""

    weights: Mapping[str, float] = field(default_factory=lambda: {WIN_RATE: 1.0})
    """Weights of win_rate and, if wanted, of rewards of single images."""
    steps: int = 25
    schedule: ScheduleOption = LinearShift()
    group: int = 8
    blend: Blend = Blend("z_sum", again=True)
    fraction: float = 0.6
    """Share of the steps before the last that an image trains, drawn anew for each image."""
    compare: Comparisons = Comparisons()
    """Pairs that the judge sees.  A large η with dance_sde would leave noise in them."""
    min_consistency: float = 0.0
    """A group is trained only where this share of its pairs gets the same verdict in both orders."""
    guard: bool = True
    """Whether to take GRPO-Guard's ratio and weights of steps."""

    def __post_init__(self) -> None:
        self.check_group()
        require(WIN_RATE in self.weights, "weights: Pref-GRPO needs the weight of win_rate, say {'win_rate': 1.0}")
        check_unguarded(self.guard, self.divergence)
        share_of_steps(self.steps, self.fraction)
        self.compare.check(self.group)
        share = self.min_consistency
        require(0 <= share <= 1, f"min_consistency = {share}: a share of the pairs, in [0, 1]")
        shown = share == 0 or self.compare.both_orders
        require(shown, "min_consistency needs pairs shown in both orders: set compare.both_orders")

    @property
    def requirements(self) -> Requirements:
        """Return the rewards and the pairs to compare."""
        whole_batch = compares_prompts(self.normalize, self.blend)
        return Requirements(self.weights, self.blend, self.compare, whole_batch=whole_batch)

    def plan(self, step: int, generator: torch.Generator) -> Plan:
        """Return rollouts whose steps but the last are stochastic."""
        return chain(grid(self.schedule, self.steps), self.group, self.eta, range(self.steps - 1), self.shared_noise)

    def select(self, plan: Plan, prompts: int, generator: torch.Generator) -> Levels:
        """Return a random share of each image's steps."""
        return random_steps(prompts, self.group, self.steps, self.fraction, generator)

    def credit(self, plan: Plan, log_prob: Levels, scores: Scores) -> Levels:
        """Return the advantages of win rates."""
        judged = scores.judged[WIN_RATE]
        consistent = consistency(judged)[:, None] >= self.min_consistency
        rewards = {**scores.rewards, WIN_RATE: win_rates(judged).where(consistent, torch.nan)}
        return [group_advantages(self, rewards)] * self.steps

    def loss(self, models: Models, batch: Transitions) -> tuple[Tensor, Metrics]:
        """Return the clipped loss, with GRPO-Guard's ratio and divided by Δt where it is on."""
        p = step(models.policy, self.step_kernel, batch)
        if self.guard:
            return guarded_loss(p, batch, self.clip)
        return density_loss(p, batch, self.clip, self.divergence)
