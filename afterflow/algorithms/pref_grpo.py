"""Pref-GRPO (arXiv:2508.20751).

plan    G images of each prompt from one noise by the SDE; the last step is the ODE's
credit  a judge compares the images of a group pair by pair; an image's reward is its win rate
        A_i = (w_i - mean w) / std w over the group, averaged with those of other rewards by weight
        of each image's steps a random 60 % are trained
loss    -min(ρA, clip(ρ) A) / Δt with GRPO-Guard's ρ

Pairs are shown in both orders, and a contradiction counts as a tie; the released code shows each once, in order of
index, so that a judge with a preference for the first image ranks them by index.  A win rate removes the
amplification of small margins, not that of noise: a coin for a judge still gives advantages of full size, hence
`least_consistency`.  Its mean over a group is 0.5 whatever the policy does: watch the win rate against the base.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..objectives.advantages import Blend, Normalize, advantages, gated
from ..objectives.preferences import consistency, win_rates
from ..sampling.kernels import KernelName
from ..sampling.rollout import Plan, Rollout, Transitions, chain, transitions
from ..sampling.schedules import DynamicShift, LinearShift, SD3Grid, grid
from .base import WIN_RATE, Comparisons, Metrics, Models, OnPolicy, Requirements, Scores, pointwise
from .checks import check_group, check_policy_gradient, require
from .policy_gradient import guarded_log_ratio, log_ratio, policy_loss, random_steps, share_of_steps, step, untied


@dataclass(frozen=True)
class PrefGRPO(OnPolicy[Transitions]):
    weights: Mapping[str, float] = field(default_factory=lambda: {WIN_RATE: 1.0})
    """win_rate and, if wanted, pointwise rewards; how much each counts in the mean of their advantages."""
    steps: int = 25
    """Denoising steps of a rollout."""
    schedule: SD3Grid | LinearShift | DynamicShift | None = LinearShift()
    """Where the steps stop between noise and image. None: the grid of the model's own pipeline."""
    group: int = 8
    """Images per prompt."""
    kernel: KernelName = "flow_sde"
    """What draws a step; dance_sde with a large η leaves noise in the image that the judge sees."""
    eta: float = 0.7
    """Noise level of the steps."""
    fraction: float = 0.6
    """Share of the steps before the last that an image trains, drawn anew for each image."""
    compare: Comparisons = Comparisons()
    """Which pairs the judge sees."""
    least_consistency: float = 0.0
    """A group is not trained on when the judge contradicts itself in more than 1 minus this share of its pairs."""
    guard: bool = True
    """GRPO-Guard's ratio and weighting of steps."""
    shared_noise: bool = True
    """All images of a prompt start from one noise."""
    normalize: Normalize = Normalize(ddof=1, eps=1e-8)
    """How rewards become advantages."""
    blend: Blend = Blend("z_sum", again=True)
    """How several rewards become one advantage."""
    max_advantage: float = 5.0
    """Advantages are clamped to ± this."""
    clip: float = 1e-4
    """ε of the clipped ratio."""

    def __post_init__(self) -> None:
        check_group(self.group)
        check_policy_gradient(self.steps, self.kernel, self.eta, self.clip, self.max_advantage)
        require(WIN_RATE in self.weights, "weights: Pref-GRPO needs the weight of win_rate, say {'win_rate': 1.0}")
        share_of_steps(self.steps, self.fraction)
        self.compare.check(self.group)
        wanted = self.least_consistency
        require(0 <= wanted <= 1, f"least_consistency = {wanted}: a share of the pairs, in [0, 1]")
        shown = wanted == 0 or self.compare.both_orders
        require(shown, "least_consistency needs pairs shown in both orders: set compare.both_orders")

    @property
    def requirements(self) -> Requirements:
        return Requirements(pointwise(self.weights, self.blend), self.blend, self.compare)

    def plan(self, step: int, generator: torch.Generator) -> Plan:
        times = grid(self.schedule, self.steps)
        return chain(times, self.group, self.eta, range(self.steps - 1), self.shared_noise)

    def credit(self, models: Models, rollout: Rollout, scores: Scores, generator: torch.Generator) -> Transitions:
        judged = scores.judged[WIN_RATE]
        sure = consistency(judged)[:, None] >= self.least_consistency
        rewards = {**scores.rewards, WIN_RATE: win_rates(judged).where(sure, torch.nan)}
        rewards = gated(rewards, self.blend.gate)
        advantage = untied(advantages(rewards, self.weights, self.normalize, self.blend, self.max_advantage))
        count = share_of_steps(self.steps, self.fraction)
        chosen = random_steps(advantage, self.steps - 1, count, generator)
        return transitions(rollout, [*(advantage.where(mask, torch.nan) for mask in chosen), advantage])

    def loss(self, models: Models, batch: Transitions) -> tuple[Tensor, Metrics]:
        p = step(models.policy, self.step_kernel, batch)
        if not self.guard:
            return policy_loss(log_ratio(p, batch), batch, self.clip)
        return policy_loss(guarded_log_ratio(p, batch), batch, self.clip, 1 / (batch.t - batch.s))
