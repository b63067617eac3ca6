"""SOAR (arXiv:2604.12617): images teach the policy to come back from where its own steps lead.

base    ℓ ← w(t) ‖v_θ(x_t, t, c) - (ε - x_0)‖²,   u ~ density, t = shifted(u)                            (SFT)
roll    x̂ ← x_t - (t - s) sg[v_∅ + g (v_c - v_∅)],   s = shifted(max(u - 1/K, 0)):  a step of a K-step sampler
noise   x' ← (1 - α) x̂ + α ε,   α = (t' - s) / (1 - s),   N times t' ~ U[max(s, t_min), 1], the same ε
correct ℓ' ← w(t') ‖v_θ(x', t', c) - (x' - x_0) / t'‖²
loss    (Σ ℓ + λ Σ ℓ') / (B + λ P),   P points in all, of the whole update

v_c is the prediction of the base loss, so the roll-out costs one forward pass, of the empty prompt.  The released code
gives the network the nearest of 1000 times instead of t', and computes the target in bf16.  There is no t_min in the
paper: near the image 1/t' has no bound.  The true velocity is no fixed point of the correction (it undoes each step's
guidance, and narrows what the policy draws by O(λ N / K)), so watch eval/diversity and eval/std.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..objectives.losses import flow_matching
from ..sampling.conditioning import Pairs
from ..sampling.device_copies import to_device
from ..sampling.flow import DENSITIES, expand, interpolate, renoise, shifted, weighting
from ..sampling.kernels import KERNELS, KernelName
from ..sampling.row_random import RowRandom
from ..sampling.sampler_step import counts_when_stochastic, guided_prediction, sampler_step
from .base import Metrics, Models, Requirements, Supervised, check_cps, require


@dataclass(frozen=True)
class SOAR(Supervised):
    """SOAR (arXiv:2604.12617)."""

    steps: int = 40
    """K: the roll-out goes as far as one step of a sampler with K steps."""
    points: int = 6
    """N, the number of states on the way from each roll-out back to the noise that are corrected."""
    correction: float = 1.0
    """λ, the weight of a point beside the base loss; 0 is SFT.  LoRAs take 0.1 to 0.3, with 1 or 2 points."""
    rollout_guidance: float = 4.5
    """g, the guidance scale of the roll-out; 1 is without."""
    min_time: float = 0.02
    """t_min: no point is nearer to the image."""
    paths: int = 1
    """Number of roll-outs of each image; all but the first are stochastic (the paper found one best)."""
    kernel: KernelName = "flow_sde"
    """Kernel of the stochastic roll-outs."""
    eta: float = 0.5
    """Noise level of the stochastic roll-outs."""

    def __post_init__(self) -> None:
        self.check_times()
        for name, hint in {"steps": "", "points": "; correction = 0 is SFT", "paths": ""}.items():
            require(getattr(self, name) >= 1, f"{name} = {getattr(self, name)}: at least 1{hint}")
        for name in ("correction", "rollout_guidance", "eta"):
            require(getattr(self, name) >= 0, f"{name} = {getattr(self, name)}: 0 or more")
        require(0 < self.min_time < 1, f"min_time = {self.min_time}: between image and noise, so in (0, 1)")
        require(self.paths == 1 or self.eta > 0, f"eta = {self.eta}: stochastic roll-outs need noise; take eta > 0")
        check_cps(self.kernel, self.eta)

    def unused(self) -> dict[str, tuple[str, ...]]:
        """Add the options of roll-outs that are not there."""
        if self.correction == 0:
            names = ("steps", "points", "rollout_guidance", "min_time", "paths", "kernel", "eta")
            return super().unused() | {"with correction = 0, which is SFT": names}
        return super().unused() | ({"with paths = 1": ("kernel", "eta")} if self.paths == 1 else {})

    @property
    def requirements(self) -> Requirements:
        """Return the evaluations of the base loss, of the guidance and of the points."""
        guided = self.rollout_guidance != 1
        return Requirements(evaluations=1.0 + (guided + self.points * self.paths if self.correction else 0))

    def masses(self, batch: Pairs) -> Tensor | None:
        """Return 1 + λ times the points of each row; with a single path all rows have as many."""
        if self.paths == 1 or not self.correction:
            return None
        assert batch.seeds is not None
        _, t, s = self._draw(batch, RowRandom.seeded(batch.seeds))
        return 1 + self.correction * self.points * (1 + (self.paths - 1) * counts_when_stochastic(t, s).cpu()).double()

    def _draw(self, batch: Pairs, random: RowRandom) -> tuple[Tensor, Tensor, Tensor]:
        """Return the noise of each row, and the times t and s between which its roll-out steps."""
        assert self.shift is not None
        noise = random.normal(batch.x0.shape[1:], batch.x0.device)
        u = to_device(DENSITIES[self.density](random), noise.device)
        return noise, shifted(u, self.shift), shifted((u - 1 / self.steps).clamp(min=0), self.shift)

    def regression_losses(self, models: Models, batch: Pairs, random: RowRandom) -> Iterator[tuple[Tensor, Metrics]]:
        """Yield the base loss, then the correction at each point.

        The logged losses are means over rows, of which each counts by its mass.
        """
        x0 = batch.x0.float()
        noise, t, s = self._draw(batch, random)
        cond = batch.cond.dropped(random.uniform() < self.dropout)
        x = interpolate(x0, noise, t)
        v = models.policy(x, t, cond)
        base = weighting(self.weighting, t) * flow_matching(v, noise - x0)
        stable = counts_when_stochastic(t, s)
        used = [torch.ones_like(s), *[stable] * (self.paths - 1)] if self.correction else []
        mass = len(batch) + self.correction * (self.points * float(sum(rows.sum() for rows in used)))
        # The mass of a row in units of that of a row with a single path: 1 exactly where all have one.
        paths = 1 + (self.paths - 1) * stable
        unit = 1 + self.correction * self.points * (paths - 1) / (1 + self.correction * self.points)
        yield base.sum() / mass, {"base_loss": (base.detach() * unit).sum() / unit.sum()}
        v = guided_prediction(models.policy, x, t, cond, v.detach(), self.rollout_guidance) if used else v
        for path, rows in enumerate(used):
            end = sampler_step(KERNELS[self.kernel], x, v, (t, s), self.eta, random if path else None)
            for _ in range(self.points):
                lowest = s.clamp(min=self.min_time)
                tau = lowest + (1 - lowest) * to_device(random.uniform(), s.device)
                back = renoise(end, noise, s, tau)
                target = (back - x0) / expand(tau, back)
                error = rows * weighting(self.weighting, tau) * flow_matching(models.policy(back, tau, cond), target)
                mean = (error.detach() * unit / paths).sum() / (self.points * unit.sum())
                yield self.correction * error.sum() / mass, {"correction_loss": mean}
