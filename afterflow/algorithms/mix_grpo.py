"""MixGRPO (arXiv:2507.21802).

plan    G images of each prompt from one noise: the SDE inside a window of w steps that slides with training,
        the ODE elsewhere.  Flash: after the window, ⌊(T - L) r⌋ steps of DPM-Solver++ 2M, L the window's last
credit  each reward normalised over its group, then their weighted mean; the window's steps get it
loss    -min(ρA, clip(ρ) A)

The released window runs empty at the end of its way (25 iterations without a gradient); the paper's, which is ours,
stops at the last full one.  The released compressed schedule has one point too few, so that it stops before t = 0
when a single step is left; ours always ends there, and takes one evaluation more.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..objectives.advantages import Blend, Normalize, advantages, gated
from ..sampling.kernels import KernelName
from ..sampling.rollout import Plan, Rollout, Transitions, chain, transitions
from ..sampling.schedules import DynamicShift, LinearShift, SD3Grid, grid
from .base import Metrics, Models, OnPolicy, Requirements, Scores, pointwise
from .checks import check_group, check_policy_gradient, require
from .policy_gradient import log_ratio, policy_loss, step, untied
from .windows import SlidingWindow


@dataclass(frozen=True)
class MixGRPO(OnPolicy[Transitions]):
    weights: Mapping[str, float] = field(default_factory=dict)
    """Rewards and how much each counts in the mean of their advantages."""
    steps: int = 25
    """Denoising steps of a rollout."""
    schedule: SD3Grid | LinearShift | DynamicShift | None = LinearShift()
    """Where the steps stop between noise and image. None: the grid of the model's own pipeline."""
    group: int = 12
    """Images per prompt."""
    kernel: KernelName = "flow_sde"
    """What draws a step of the window; cps is the paper's later choice."""
    eta: float = 0.7
    """Noise level of the window."""
    window: SlidingWindow = SlidingWindow()
    """Which steps are stochastic and trained."""
    flash: float | None = None
    """Share of the steps after the window that are taken, by a solver of second order (published: 0.4; 0.2 with a
    frozen window, Flash*); None: all of them, by Euler."""
    shared_noise: bool = True
    """All images of a prompt start from one noise."""
    normalize: Normalize = Normalize(ddof=1, eps=1e-8)
    """How rewards become advantages."""
    blend: Blend = Blend("z_sum")
    """How several rewards become one advantage."""
    max_advantage: float = 5.0
    """Advantages are clamped to ± this."""
    clip: float = 1e-4
    """ε of the clipped ratio."""

    def __post_init__(self) -> None:
        check_group(self.group)
        check_policy_gradient(self.steps, self.kernel, self.eta, self.clip, self.max_advantage)
        share = self.flash is None or 0 < self.flash < 1
        require(share, f"flash = {self.flash}: a share of the steps after the window, so 0 < flash < 1")
        self.window.check(self.steps)

    @property
    def requirements(self) -> Requirements:
        return Requirements(pointwise(self.weights, self.blend), self.blend)

    def plan(self, step: int, generator: torch.Generator) -> Plan:
        start = self.window.start(step, self.steps, generator)
        trained = range(start, start + self.window.width)
        times = grid(self.schedule, self.steps)
        if self.flash is None:
            return chain(times, self.group, self.eta, trained, self.shared_noise)
        last = trained[-1]
        few = max(1, int((self.steps - last) * self.flash))
        assert self.schedule is not None
        times = torch.cat([times[: last + 1], self.schedule.rest(float(times[last + 1]), few)])
        plan = chain(times, self.group, self.eta, trained, self.shared_noise)
        return replace(plan, second_order=tuple(range(last + 1, plan.steps)))

    def credit(self, models: Models, rollout: Rollout, scores: Scores, generator: torch.Generator) -> Transitions:
        rewards = gated(scores.rewards, self.blend.gate)
        advantage = advantages(rewards, self.weights, self.normalize, self.blend, self.max_advantage)
        return transitions(rollout, [untied(advantage)] * rollout.plan.steps)

    def loss(self, models: Models, batch: Transitions) -> tuple[Tensor, Metrics]:
        return policy_loss(log_ratio(step(models.policy, self.step_kernel, batch), batch), batch, self.clip)
