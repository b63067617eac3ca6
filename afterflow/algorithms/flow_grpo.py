"""Flow-GRPO (arXiv:2505.05470), with the variants its authors published around it.

plan    G images of each prompt by the SDE, in few steps                        (denoising reduction)
        Fast: SDE and training only in a window of w steps, the ODE elsewhere
credit  A_i = (r_i - mean r) / std r over the group, the same at every step
loss    -min(ρA, clip(ρ) A) + β KL(π_θ ‖ π_ref),   ρ = π_θ(x_s | x_t) / π_old(x_s | x_t)
        Guard: ρ = exp mean(ε ⊙ (μ_θ - μ_old)), the loss divided by Δt          (arXiv:2510.22319)
        Flow-DPPO: -ρA, no gradient where KL(π_θ ‖ π_old) > δ and A moves ρ away from 1   (arXiv:2606.11025)

The loss is the mean over all steps trained, of tied groups too; without a KL these cost no forward pass.

Where paper and released code disagree we follow the paper: std per group (the code: over the batch), KL
over 2 g² Δt (the code drops Δt; `kl_scale`).  Window starts come from a generator seeded per iteration
(the code's are constant for Qwen-Image).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..objectives.advantages import Normalize
from ..sampling.rollout import Levels, Plan, Transitions, chain
from ..sampling.schedules import grid
from .base import WITHOUT_KL, Metrics, Models, Reference, Requirements, Scores, require
from .lag import Lag
from .policy_gradient import GroupRelative, check_unguarded, compares_prompts, group_advantages
from .ratios import LogDensity, density_loss, distance_to_reference, guarded_loss, step
from .windows import check_window, window_bounds


@dataclass(frozen=True)
class FlowGRPO(GroupRelative):
    """Flow-GRPO (arXiv:2505.05470), with Fast, CPS, GRPO-Guard and Flow-DPPO.

    Published clips: 1e-4, for Fast with cps and the variance-free density 1e-5, for Guard 2e-6.  cps is sharpest just
    before the image, so with SD3Grid it needs a window.
    """

    group: int = 24
    normalize: Normalize = Normalize()
    shared_noise: bool = False
    """Whether all images of a prompt start from one noise (flow_grpo's same_latent); the paper found different ones
    better."""
    window: int | None = None
    """Number of consecutive steps that are stochastic and trained (Flow-GRPO-Fast); None takes all but the last."""
    window_range: tuple[int, int] | None = None
    """First and one-past-last step that a window may cover; None takes the first half of the steps."""
    beta: float = 0.04
    """Weight of the KL to the reference; 0 needs no reference."""
    reference: Reference = Reference()
    """The policy that the KL is to."""
    lag: Lag = Lag()
    """How slowly the policy's average follows, where the KL is to that."""
    kl_scale: Literal["exact", "legacy"] = "exact"
    """legacy multiplies the KL by Δt, as flow_grpo's code does: its published betas (0.04 among them) mean that."""
    density: LogDensity = "true"
    """variance_free is flow_grpo's log-probability of cps, for parity with its clip ranges."""
    guard: bool = False
    """Whether to take GRPO-Guard's ratio and weights of steps."""

    def __post_init__(self) -> None:
        self.check_group()
        require(self.beta >= 0, f"beta = {self.beta}: the weight of the KL is 0 or more")
        check_unguarded(self.guard, self.divergence)
        odd = self.density == "variance_free" and (self.guard or self.kernel != "cps" or self.divergence is not None)
        require(not odd, "density = variance_free is flow_grpo's for plain cps; take the true density here")
        check_window(self.window, self.window_range, self.steps)
        written = self.kl_scale == "exact" or self.kernel in ("flow_sde", "dance_sde")
        require(written, f"kl_scale = legacy: flow_grpo's KL of {self.kernel} has no Δt to leave out; take exact")
        if self.beta > 0 and self.reference.model != "average":
            self.check_unused("lag")

    def unused(self) -> dict[str, tuple[str, ...]]:
        """Add the options of a KL that is switched off."""
        return super().unused() | ({WITHOUT_KL: ("reference", "lag", "kl_scale")} if self.beta == 0 else {})

    @property
    def requirements(self) -> Requirements:
        """Return the rewards, and where there is a KL the reference; it pulls where no advantage does."""
        kl, whole_batch = self.beta > 0, compares_prompts(self.normalize, self.blend)
        reference = self.reference if kl else None
        lagged = {"average": self.lag} if kl and self.reference.model == "average" else {}
        options = {"reference": reference, "lagged": lagged, "all_rows": kl, "whole_batch": whole_batch}
        return Requirements(self.weights, self.blend, **options)

    def plan(self, step: int, generator: torch.Generator) -> Plan:
        """Return rollouts that are stochastic in the window, or in all steps but the last."""
        first, end = window_bounds(self.window, self.window_range, self.steps)
        width = self.window or end - first
        # One start for the whole iteration: prompts of a batch then train the same noise levels.
        start = int(torch.randint(first, end - width + 1, (), generator=generator))
        trained = range(start, start + width)
        return chain(grid(self.schedule, self.steps), self.group, self.eta, trained, self.shared_noise)

    def credit(self, plan: Plan, log_prob: Levels, scores: Scores) -> Levels:
        """Return the advantage of an image at each of its steps."""
        return [group_advantages(self, scores.rewards)] * self.steps

    def loss(self, models: Models, batch: Transitions) -> tuple[Tensor, Metrics]:
        """Return the clipped loss and the KL to the reference."""
        p = step(models.policy, self.step_kernel, batch)
        if self.guard:
            loss, metrics = guarded_loss(p, batch, self.clip)
        else:
            loss, metrics = density_loss(p, batch, self.clip, self.divergence, self.density)
        if self.beta == 0:
            return loss, metrics
        distance = distance_to_reference(models.reference, self.step_kernel, batch, p, self.kl_scale)
        return loss + self.beta * distance, metrics | {"kl": distance.detach()}
