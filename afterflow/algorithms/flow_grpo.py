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

from ..advantages import Normalize, combine, normalize
from ..flow import LinearShift, SD3Grid
from ..kernels import KERNELS, Gaussian, Kernel, KernelName, kl, log_prob, variance_free
from ..losses import clipped_surrogate, guard_log_ratio
from ..rollout import Edges, Plan, Rollout, chain, edges
from .base import Metrics, Models, OnPolicy, per_child, step, weighted_mean


@dataclass(frozen=True)
class FlowGRPO(OnPolicy[Edges]):
    weights: Mapping[str, float] = field(default_factory=dict)
    """Rewards and how much each counts in the sum whose advantage is trained on."""
    steps: int = 10
    """Denoising steps of a rollout; evaluation takes more."""
    schedule: SD3Grid | LinearShift = SD3Grid()
    """Where the steps stop between noise and image."""
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
        if self.group < 2:
            raise ValueError(f"group = {self.group}: an advantage compares images of one prompt; take at least 2")
        if self.steps < 2:
            raise ValueError(f"steps = {self.steps}: the step onto the image is not trained; take at least 2")
        if self.eta <= 0:
            raise ValueError(f"eta = {self.eta}: a policy gradient needs stochastic steps; take eta > 0")
        if self.clip <= 0 or self.max_advantage <= 0:
            raise ValueError(f"clip = {self.clip}, max_advantage = {self.max_advantage}: both must be positive")
        if self.beta < 0:
            raise ValueError(f"beta = {self.beta}: the weight of the KL is 0 or more")
        if self.window is None and self.window_range is not None:
            raise ValueError("window_range is set without a window: give the window its number of steps")
        if self.kernel == "cps" and self.eta >= 1:
            raise ValueError(f"eta = {self.eta}: cps swaps a share of the noise; take 0 < eta < 1")
        if self.density == "variance_free" and (self.guard or self.kernel != "cps"):
            raise ValueError("density = variance_free is flow_grpo's for plain cps; take the true density here")
        first, end = self._range
        if not 0 <= first < end <= self.steps - 1:
            raise ValueError(
                f"window_range = ({first}, {end}): with {self.steps} steps windows lie in [0, {self.steps - 1}), "
                "because the step onto the image is never trained"
            )
        if self.window is not None and not 1 <= self.window <= end - first:
            raise ValueError(f"window = {self.window}: between 1 and the {end - first} steps of window_range")

    @property
    def _range(self) -> tuple[int, int]:
        if self.window is None:
            return 0, self.steps - 1
        return self.window_range or (0, max(self.window, self.steps // 2))

    @property
    def step_kernel(self) -> Kernel:
        return KERNELS[self.kernel]

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0

    def plan(self, step: int, generator: torch.Generator) -> Plan:
        first, end = self._range
        width = self.window or end - first
        # One start for the whole iteration: prompts of a batch then train the same noise levels.
        start = int(torch.randint(first, end - width + 1, (), generator=generator))
        trained = range(start, start + width)
        return chain(self.schedule.times(self.steps), self.group, self.eta, trained, self.shared_noise)

    def credit(
        self, models: Models, rollout: Rollout, rewards: Mapping[str, Tensor], generator: torch.Generator
    ) -> Edges:
        advantage = normalize(combine(rewards, self.weights), self.normalize)
        advantage = advantage.clamp(-self.max_advantage, self.max_advantage)
        if self.beta == 0:
            # Nothing would pull on these rows, so no forward pass is spent on them.
            advantage = torch.where(advantage == 0, torch.nan, advantage)
        return edges(rollout, [advantage[..., None]] * self.steps)

    def loss(self, models: Models, batch: Edges) -> tuple[Tensor, Metrics]:
        p = step(models.policy, self.step_kernel, batch)
        log_ratio = self._log_ratio(p, batch)
        surrogate = clipped_surrogate(log_ratio[..., None], batch.advantage, self.clip).sum(-1)
        if self.guard:
            surrogate = surrogate / (batch.t - batch.s)[:, None]
        loss = weighted_mean(surrogate, batch)
        ratio = log_ratio.detach().exp()
        metrics = {
            "policy_loss": loss.detach(),
            "ratio_mean": weighted_mean(ratio, batch),
            "ratio_max": (ratio * batch.weight).max(),
            "clip_fraction": weighted_mean(((ratio - 1).abs() > self.clip).float(), batch),
        }
        if self.beta == 0:
            return loss, metrics
        assert models.reference is not None
        with torch.no_grad():
            q = step(models.reference, self.step_kernel, batch)
        distance = kl(p, q) * (batch.t - batch.s if self.kl_scale == "legacy" else 1)
        anchor = weighted_mean(distance[:, None].expand_as(batch.weight), batch)
        return loss + self.beta * anchor, metrics | {"kl": anchor.detach()}

    def _log_ratio(self, p: Gaussian, batch: Edges) -> Tensor:
        """log ρ, (M, C), of the policy's kernels p (M, ...)."""
        x_next, new = batch.x_next.flatten(0, 1), per_child(p, batch)
        old = per_child(Gaussian(batch.mean, p.std), batch)
        if self.guard:
            log_ratio = guard_log_ratio(new, old, x_next)
        elif self.density == "variance_free":
            log_ratio = variance_free(new, x_next) - variance_free(old, x_next)
        else:
            log_ratio = log_prob(new, x_next) - batch.log_prob.flatten()
        return log_ratio.view_as(batch.log_prob)
