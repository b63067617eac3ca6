"""Supervised fine-tuning: regress the velocity of the line from an image to noise (SD3, arXiv:2403.03206, eq. 13).

loss ← w(t) ‖v_θ((1 - t) x_0 + t ε, t, c) - (ε - x_0)‖²,   t ~ density, shifted
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..objectives.losses import flow_matching
from ..sampling.conditioning import Pairs
from ..sampling.flow import DENSITIES, DensityName, WeightingName, interpolate, shifted, weighting
from ..sampling.row_random import RowRandom
from .base import Metrics, Models, Supervised
from .checks import require


@dataclass(frozen=True)
class SFT(Supervised):
    density: DensityName = "logit_normal"
    """How often each time is trained, before the shift."""
    shift: float | None = 3.0
    """Moves training times towards the noise, as SD3's sampler moves its steps; None: as the model's own does."""
    weighting: WeightingName = "none"
    """How much the loss at each time counts: alike, t^-2 (sigma_sqrt), or most in the middle (cosmap)."""
    draws: int = 1
    """Noises and times drawn for each image.  N + 1 match the supervised states of SOAR with N points."""
    dropout: float = 0.0
    """Share of rows whose prompt is replaced by the empty one, so that guidance has something to steer from."""

    def __post_init__(self) -> None:
        require(self.draws >= 1, f"draws = {self.draws}: at least 1")
        require(self.shift is None or self.shift > 0, f"shift = {self.shift}: it must be positive")
        require(0 <= self.dropout < 1, f"dropout = {self.dropout}: a share of the prompts, so 0 <= dropout < 1")

    @property
    def evaluations(self) -> float:
        return float(self.draws)

    def losses(self, models: Models, batch: Pairs, draws: RowRandom) -> Iterator[tuple[Tensor, Metrics]]:
        x0 = batch.x0
        assert self.shift is not None
        for _ in range(self.draws):
            noise = draws.normal(x0.shape[1:]).to(x0)
            t = shifted(DENSITIES[self.density](draws), self.shift).to(x0.device)
            cond = batch.cond.dropped(draws.uniform() < self.dropout)
            v = models.policy(interpolate(x0, noise, t), t, cond)
            loss = (weighting(self.weighting, t) * flow_matching(v, noise - x0)).mean() / self.draws
            yield loss, {"flow_matching": loss.detach()}
