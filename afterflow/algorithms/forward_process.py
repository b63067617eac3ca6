"""What the forward-process methods share: they draw images by the ODE, score them, noise them again and regress there.

plan    G images of each prompt by the ODE, from the policy or from its slow average
credit  one advantage for each finished image; nothing else of a rollout stays
rows    T times for each image, and noise: x_t = (1 - t) x_0 + t ε
loss    the method's, of v_θ and, where it needs them, v_old and v_ref at x_t;  + λ ‖v_θ - v_ref‖²

No SDE, no log-probability of a step.  Groups without spread teach nothing and are not trained on; they count as zeros
in the mean of the loss.  Rollouts have the run's guidance; what is trained is the velocity with the prompt alone.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple, TypeGuard

import torch
from torch import Tensor

from ..objectives.advantages import Blend, Normalize, advantages, gated
from ..objectives.losses import clipped_surrogate, flow_matching
from ..sampling.flow import interpolate
from ..sampling.noised import NoisedImages, Together, noised_images, row_seeds, trainable_images
from ..sampling.rollout import Levels, Plan, Rollout, chain
from ..sampling.schedules import grid
from ..sampling.training_times import TrainingTimes
from .base import WITHOUT_KL, Algorithm, Metrics, Models, OnPolicy, Reference, Requirements, Scores, check_cps, require
from .lag import Lag

NoiseSharing = Literal["fresh", "group", "prompt"]
OLD = "old"
"""Name of the average that a method compares the policy with."""


class NoisedStates(NamedTuple):
    """What a method computes its loss from: B states with the velocities there."""

    x0: Tensor  # (B, ...)
    x: Tensor  # (B, ...)
    line: Tensor  # (B, ...) v* = ε - x_0
    v: Tensor  # (B, ...) the policy's, with gradients
    old: Tensor  # (B, ...) the old policy's, or the policy's own without gradients
    reference: Tensor | None  # (B, ...)
    rows: NoisedImages  # B rows, with times and advantages


@dataclass(frozen=True)
class ForwardProcess(OnPolicy[NoisedImages]):
    """A method that learns from its finished images, noised again."""

    together: ClassVar[Together] = "row"
    """What a microbatch never cuts."""
    uses_reference: ClassVar[bool] = False
    """Whether the loss needs the reference's velocity beside the distance to it."""
    old_draws: ClassVar[bool] = False
    """Whether the old policy draws the images."""
    has_ratio: ClassVar[bool] = False
    """Whether the loss compares with the policy before the first of several updates."""

    group: int = 24
    """Number of images per prompt."""
    eta: float = 0.0
    """Noise level of the rollouts; 0 is the ODE."""
    solver: Literal["euler", "dpm"] = "dpm"
    """Solver of the ODE: Euler's steps, or DPM-Solver++ 2M, which needs half as many."""
    shared_noise: bool = False
    """Whether all images of a prompt start from one noise.  It needs eta > 0, or they would all be the same."""
    times: TrainingTimes = TrainingTimes()
    """Times to which finished images are noised again."""
    noise: NoiseSharing = "fresh"
    """Noise of rows.  fresh: each its own.  group: one for the images of a prompt at one time, so that they differ less
    by chance.  prompt: one for all its images and times."""
    normalize: Normalize = Normalize(scale="batch")
    """How rewards become advantages."""
    blend: Blend = Blend()
    """How several rewards become one advantage."""
    max_advantage: float = 5.0
    """Advantages are clamped to ± this."""
    kl: float = 1e-4
    """λ, the weight of the squared distance to the reference's velocity; 0 needs no reference."""
    reference: Reference = Reference()
    """The velocity that the policy is held near to."""
    lag: Lag = Lag()
    """How slowly the old policy follows."""

    def check_forward(self) -> None:
        """Raise ConfigError for options that no method of this kind can have."""
        require(self.steps >= 1, f"steps = {self.steps}: at least 1")
        require(self.group >= 2, f"group = {self.group}: an advantage compares images of one prompt; take at least 2")
        require(self.eta >= 0, f"eta = {self.eta}: 0 is the ODE, above it the SDE")
        check_cps(self.kernel, self.eta)
        ode = self.eta == 0 or self.solver == "euler"
        require(ode, f"eta = {self.eta}: dpm solves the ODE, and this is the SDE; take solver = euler")
        apart = self.eta > 0 or not self.shared_noise
        require(apart, "shared_noise: by the ODE all images of a prompt would be one; take eta > 0, or leave it out")
        self.times.check(self.steps)
        one = self.together != "group" or self.times.shared != "image"
        require(one, "times.shared = image: the images of a prompt are compared at one time; take group or batch")
        require(self.blend.how != "separate", "blend.how = separate: an image has one advantage here; take z_sum")
        require(self.max_advantage > 0, f"max_advantage = {self.max_advantage}: it must be positive")
        require(self.kl >= 0, f"kl = {self.kl}: a weight, so 0 or more")
        if not self.uses_old and "average" not in self.averages:
            self.check_unused("lag")

    @property
    def requirements(self) -> Requirements:
        """Return the rewards, the reference and the averages of the policy."""
        reference = self.reference if self.kl > 0 or self.uses_reference else None
        whole_batch = "batch" in (self.normalize.centre, self.normalize.scale) or self.blend.again
        options = {"reference": reference, "lagged": self.averages, "explorer": self.explorer}
        return Requirements(self.weights, self.blend, whole_batch=whole_batch, **options)

    def unused(self) -> dict[str, tuple[str, ...]]:
        """Add the reference where nothing is held near to it, and the kernel of an ODE."""
        unheld = {WITHOUT_KL: ("reference",)} if self.requirements.reference is None else {}
        return super().unused() | unheld | ({"with eta = 0, the ODE": ("kernel",)} if self.eta == 0 else {})

    @property
    def uses_old(self) -> bool:
        """Whether the loss needs the old policy's velocity."""
        return True

    @property
    def averages(self) -> dict[str, Lag]:
        """The averages of the policy by name; one that is always the policy itself is none."""
        average = self.reference.model == "average" and (self.kl > 0 or self.uses_reference)
        wanted = {OLD: self.uses_old and not self.lag.follows_at_once, "average": average}
        return {name: self.lag for name, needed in wanted.items() if needed}

    @property
    def explorer(self) -> str | None:
        """The average that draws the images; None: the policy."""
        return OLD if self.old_draws and OLD in self.averages else None

    def plan(self, step: int, generator: torch.Generator) -> Plan:
        """Return rollouts of the ODE, or of the SDE in all steps but the last."""
        stochastic = range(self.steps - 1) if self.eta else ()
        plan = chain(grid(self.schedule, self.steps), self.group, self.eta, stochastic, self.shared_noise, False)
        return replace(plan, second_order=tuple(range(1, self.steps)) if self.solver == "dpm" else (), states=False)

    def credit(self, plan: Plan, log_prob: Levels, scores: Scores) -> Levels:
        """Return the advantages of the finished images, one level of (P, G, 1)."""
        rewards = gated(scores.rewards, self.blend.gate)
        return [advantages(rewards, self.weights, self.normalize, self.blend, self.max_advantage)]

    @property
    def num_times(self) -> int:
        """T, the number of times that an image is noised again to."""
        return self.times.number(self.steps)

    @property
    def unit_rows(self) -> int:
        """The number of rows of a whole unit; one backward pass has at least these."""
        return {"row": 1, "group": self.group, "image": self.num_times}[self.together]

    def units(self, advantage: Tensor) -> Tensor:
        """Return how many units that microbatches do not cut each group has, (P, G) → (P,)."""
        used = trainable_images(advantage)
        if self.together == "group":
            return self.num_times * used.any(1)
        return used.sum(1) * (self.num_times if self.together == "row" else 1)

    def noised(
        self, rollout: Rollout, advantage: Tensor, sources: Sequence[torch.Generator], common: int
    ) -> tuple[NoisedImages, Tensor, Tensor]:
        """Return the rows of P groups, and of each unit that stays together its group and its number of rows.

        Args:
            rollout: The finished images of P prompts.
            advantage: (P, G); NaN takes an image out.
            sources: P generators, for times and noise.
            common: The seed of what all groups of an iteration share.
        """
        assert self.schedule is not None
        t = self.times.draw(rollout.plan.times, self.schedule.warp, self.group, sources, common)
        seeds = row_seeds(t.shape[1:], self.noise == "prompt", self.noise != "fresh", sources)
        return noised_images(rollout.leaves, rollout.cond, t, seeds, advantage, self.together)

    def rows(self, models: Models, steps: NoisedImages) -> NoisedImages:
        """Return the rows themselves."""
        return steps

    @torch.no_grad()
    def log_likelihoods(self, models: Models, rows: NoisedImages) -> Tensor:
        """Return what stands for the policy's log-likelihood of each row, (B,), without gradients."""
        return self.log_likelihood(self._states(replace(models, reference=None, lagged={}), rows))

    def log_likelihood(self, states: NoisedStates) -> Tensor:
        """Return what stands for the log-likelihood of each row, (B,); methods with a ratio have one."""
        return states.v.new_zeros(len(states.v))

    def loss(self, models: Models, batch: NoisedImages) -> tuple[Tensor, Metrics]:
        """Return the method's loss and the distance to the reference, averaged over rows."""
        states = self._states(models, batch)
        per_row, metrics = self.objective(states)
        loss = per_row.mean()
        metrics = {"policy_loss": loss.detach()} | metrics
        if self.uses_old:
            metrics["old_distance"] = flow_matching(states.v.detach(), states.old).mean()
        if self.kl == 0:
            return loss, metrics
        assert states.reference is not None
        distance = flow_matching(states.v, states.reference).mean()
        return loss + self.kl * distance, metrics | {"kl": distance.detach()}

    @abstractmethod
    def objective(self, states: NoisedStates) -> tuple[Tensor, Metrics]:
        """Return the loss of each row, (B,), and what to log."""

    def _states(self, models: Models, rows: NoisedImages) -> NoisedStates:
        """Return the states of rows with the velocities there; only the policy's has gradients."""
        x0, noise, t = rows.x0(), rows.noise(), rows.t
        x = interpolate(x0, noise, t)
        v = models.policy(x, t, rows.cond).float()
        with torch.no_grad():
            old = models.lagged[OLD](x, t, rows.cond).float() if OLD in models.lagged else v.detach()
            reference = None if models.reference is None else models.reference(x, t, rows.cond).float()
        return NoisedStates(x0, x, noise - x0, v, old, reference, rows)


def ratio_loss(log_likelihood: Tensor, rows: NoisedImages, advantage: Tensor, clip: float) -> tuple[Tensor, Metrics]:
    """Return -min(ρA, clip(ρ) A) of each row, with ρ the likelihood over that before the first update, (B,).

    With one update ρ is 1, and its gradient that of A times the log-likelihood.

    Args:
        log_likelihood: What stands for it, (B,), with gradients.
        rows: The rows, which hold that before the first update where there are several.
        advantage: A, (B,).
        clip: ε.
    """
    before = log_likelihood.detach() if rows.before is None else rows.before
    log_ratio = log_likelihood - before
    loss = clipped_surrogate(log_ratio, advantage, clip)
    if rows.before is None:
        return loss, {}
    ratio = log_ratio.detach().exp()
    clipped = ((ratio - 1).abs() > clip).double().mean()
    return loss, {"ratio_mean": ratio.mean(), "ratio_max": ratio.max(), "clip_fraction": clipped}


def learns_from_finished(algorithm: Algorithm) -> TypeGuard[ForwardProcess]:
    """Return whether an algorithm learns from its finished images, noised again, and not from its steps."""
    return isinstance(algorithm, ForwardProcess)
