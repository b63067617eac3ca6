"""Flow-GRPO (arXiv:2505.05470), with the variants its authors published around it.

plan    G images of each prompt by the SDE, in few steps                        (denoising reduction)
        Fast: SDE and training only in a window of w steps, the ODE elsewhere
credit  A_i = (r_i - mean r) / std r over the group, the same at every step
loss    -min(ρA, clip(ρ) A) + β KL(π_θ ‖ π_ref),   ρ = π_θ(x_s | x_t) / π_old(x_s | x_t)
        Guard: ρ = exp mean(ε ⊙ (μ_θ - μ_old)), the loss divided by Δt          (arXiv:2510.22319)

Where paper and released code disagree we follow the paper: std per group (the code: over the batch), KL
over 2 g² Δt (the code drops Δt; `kl_scale`).  Window starts come from a generator seeded per iteration
(the code's are constant for Qwen-Image).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..objectives.advantages import Blend, Normalize, advantages, gated
from ..sampling.kernels import Gaussian, KernelName, kl, variance_free
from ..sampling.rollout import Plan, Rollout, Transitions, chain, transitions
from ..sampling.schedules import DynamicShift, LinearShift, SD3Grid, grid
from .base import Metrics, Models, OnPolicy, Requirements, Scores, pointwise
from .checks import check_group, check_policy_gradient, require
from .policy_gradient import guarded_log_ratio, log_ratio, per_child, policy_loss, step, untied


@dataclass(frozen=True)
class FlowGRPO(OnPolicy[Transitions]):
    weights: Mapping[str, float] = field(default_factory=dict)
    """Rewards and how much each counts in the sum whose advantage is trained on."""
    steps: int = 10
    """Denoising steps of a rollout; evaluation takes more."""
    schedule: SD3Grid | LinearShift | DynamicShift | None = SD3Grid()
    """Where the steps stop between noise and image. None: the grid of the model's own pipeline."""
    group: int = 24
    """Images per prompt."""
    kernel: KernelName = "flow_sde"
    """What draws a stochastic step.  cps is sharpest just before the image: with SD3Grid give it a window."""
    eta: float = 0.7
    """Noise level of the stochastic steps (the papers' a; for cps on [0, 1])."""
    window: int | None = None
    """Flow-GRPO-Fast: this many consecutive steps are stochastic and trained; None: all but the last."""
    window_range: tuple[int, int] | None = None
    """First and one-past-last step a window may cover, None: the first half of the steps."""
    normalize: Normalize = Normalize()
    """How rewards become advantages."""
    blend: Blend = Blend()
    """How several rewards become one advantage."""
    max_advantage: float = 5.0
    """Advantages are clamped to ± this."""
    clip: float = 1e-4
    """ε of the clipped ratio; tiny because log-probabilities are means over coordinates.  Published: 1e-4,
    Fast with cps and the variance-free density 1e-5, Guard 2e-6."""
    beta: float = 0.04
    """Weight of the KL to the reference; 0 needs no reference."""
    kl_scale: Literal["exact", "legacy"] = "exact"
    """legacy multiplies the KL by Δt, as flow_grpo's code does: its published betas (0.04 among them) mean that."""
    density: Literal["true", "variance_free"] = "true"
    """variance_free is flow_grpo's log-probability of cps, for parity with its clip ranges."""
    guard: bool = False
    """GRPO-Guard's ratio and weighting of steps."""
    shared_noise: bool = False
    """All images of a prompt start from one noise (flow_grpo's same_latent); the paper found different ones better."""

    def __post_init__(self) -> None:
        check_group(self.group)
        check_policy_gradient(self.steps, self.kernel, self.eta, self.clip, self.max_advantage)
        require(self.beta >= 0, f"beta = {self.beta}: the weight of the KL is 0 or more")
        ranged_alone = self.window is None and self.window_range is not None
        require(not ranged_alone, "window_range is set without a window: give the window its number of steps")
        odd = self.density == "variance_free" and (self.guard or self.kernel != "cps")
        require(not odd, "density = variance_free is flow_grpo's for plain cps; take the true density here")
        first, end = self._range
        require(
            0 <= first < end <= self.steps - 1,
            f"window_range = ({first}, {end}): with {self.steps} steps windows lie in [0, {self.steps - 1}), "
            "because the step onto the image is never trained",
        )
        fits = self.window is None or 1 <= self.window <= end - first
        require(fits, f"window = {self.window}: between 1 and the {end - first} steps of window_range")

    @property
    def _range(self) -> tuple[int, int]:
        if self.window is None:
            return 0, self.steps - 1
        return self.window_range or (0, max(self.window, self.steps // 2))

    @property
    def requirements(self) -> Requirements:
        return Requirements(pointwise(self.weights, self.blend), self.blend, reference=self.beta > 0)

    def plan(self, step: int, generator: torch.Generator) -> Plan:
        first, end = self._range
        width = self.window or end - first
        # One start for the whole iteration: prompts of a batch then train the same noise levels.
        start = int(torch.randint(first, end - width + 1, (), generator=generator))
        trained = range(start, start + width)
        return chain(grid(self.schedule, self.steps), self.group, self.eta, trained, self.shared_noise)

    def credit(self, models: Models, rollout: Rollout, scores: Scores, generator: torch.Generator) -> Transitions:
        rewards = gated(scores.rewards, self.blend.gate)
        advantage = advantages(rewards, self.weights, self.normalize, self.blend, self.max_advantage)
        return transitions(rollout, [untied(advantage) if self.beta == 0 else advantage] * self.steps)

    def loss(self, models: Models, batch: Transitions) -> tuple[Tensor, Metrics]:
        p = step(models.policy, self.step_kernel, batch)
        loss, metrics = policy_loss(
            self._log_ratio(p, batch), batch, self.clip, 1 / (batch.t - batch.s) if self.guard else None
        )
        if self.beta == 0:
            return loss, metrics
        assert models.reference is not None
        with torch.no_grad():
            q = step(models.reference, self.step_kernel, batch)
        distance = kl(p, q) * (batch.t - batch.s if self.kl_scale == "legacy" else 1)
        anchor = distance[batch.parent].mean()
        return loss + self.beta * anchor, metrics | {"kl": anchor.detach()}

    def _log_ratio(self, p: Gaussian, batch: Transitions) -> Tensor:
        """log ρ, (K,), of the policy's kernels p (M, ...), or what a variant takes for it."""
        if self.guard:
            return guarded_log_ratio(p, batch)
        if self.density == "true":
            return log_ratio(p, batch)
        new, old = per_child(p, batch), per_child(Gaussian(batch.mean, p.std), batch)
        return variance_free(new, batch.x_next) - variance_free(old, batch.x_next)
