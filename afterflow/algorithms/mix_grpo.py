"""MixGRPO (arXiv:2507.21802).

plan    G images of each prompt from one noise: the SDE inside a window of w steps that slides with training,
        the ODE elsewhere.  Flash: after the window, ⌊(T - L) r⌋ steps of DPM-Solver++ 2M, L the window's last
credit  each reward normalised over its group, then their weighted mean; the window's steps get it
loss    -min(ρA, clip(ρ) A)

The released window runs empty at the end of its way (25 iterations without a gradient); the paper's, which is ours,
stops at the last full one.  The released compressed schedule has one point too few, so that it stops before t = 0
when a single step is left; ours always ends there, and takes one evaluation more.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..objectives.advantages import Blend
from ..sampling.rollout import Levels, Plan, Transitions, chain
from ..sampling.schedules import LinearShift, ScheduleOption, grid
from .base import Metrics, Models, Requirements, Scores, require
from .policy_gradient import GroupRelative, compares_prompts, group_advantages
from .ratios import density_loss, step
from .windows import SlidingWindow


@dataclass(frozen=True)
class MixGRPO(GroupRelative):
    """MixGRPO (arXiv:2507.21802)."""

    steps: int = 25
    schedule: ScheduleOption = LinearShift()
    blend: Blend = Blend("z_sum")
    window: SlidingWindow = SlidingWindow()
    """Steps that are stochastic and trained.  The kernel cps is the paper's later choice for them."""
    flash: float | None = None
    """Share of the steps after the window that are taken, by a solver of second order (published: 0.4, or 0.2 with a
    frozen window, Flash*); None takes all of them, by Euler."""

    def __post_init__(self) -> None:
        self.check_group()
        share = self.flash is None or 0 < self.flash < 1
        require(share, f"flash = {self.flash}: a share of the steps after the window, so 0 < flash < 1")
        self.window.check(self.steps)

    def unused(self) -> dict[str, tuple[str, ...]]:
        """Add the options of other orders of the window."""
        idle = {f"with window.order = {self.window.order}": tuple(f"window.{name}" for name in self.window.unused())}
        return super().unused() | idle

    @property
    def requirements(self) -> Requirements:
        """Return the rewards."""
        return Requirements(self.weights, self.blend, whole_batch=compares_prompts(self.normalize, self.blend))

    def plan(self, step: int, generator: torch.Generator) -> Plan:
        """Return rollouts that are stochastic in the window, and faster after it in Flash."""
        trained = self.window.covered(step, self.steps, generator)
        times = grid(self.schedule, self.steps)
        if self.flash is None:
            return chain(times, self.group, self.eta, trained, self.shared_noise)
        last = trained[-1]
        few = max(1, int((self.steps - last) * self.flash))
        assert self.schedule is not None
        times = torch.cat([times[: last + 1], self.schedule.rest(float(times[last + 1]), few)])
        plan = chain(times, self.group, self.eta, trained, self.shared_noise)
        return replace(plan, second_order=tuple(range(last + 1, plan.steps)))

    def credit(self, plan: Plan, log_prob: Levels, scores: Scores) -> Levels:
        """Return the advantage of an image at each of its steps."""
        return [group_advantages(self, scores.rewards)] * plan.steps

    def loss(self, models: Models, batch: Transitions) -> tuple[Tensor, Metrics]:
        """Return the clipped loss."""
        return density_loss(step(models.policy, self.step_kernel, batch), batch, self.clip, self.divergence)
