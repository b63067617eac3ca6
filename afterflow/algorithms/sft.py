"""Supervised fine-tuning: regress the velocity of the line from an image to noise (SD3, arXiv:2403.03206, eq. 13).

loss ← w(t) ‖v_θ((1 - t) x_0 + t ε, t, c) - (ε - x_0)‖²,   t ~ density, shifted
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..objectives.losses import flow_matching
from ..sampling.conditioning import Pairs
from ..sampling.device_copies import to_device
from ..sampling.flow import DENSITIES, interpolate, shifted, weighting
from ..sampling.row_random import RowRandom
from .base import Metrics, Models, Requirements, Supervised, require


@dataclass(frozen=True)
class SFT(Supervised):
    """Supervised fine-tuning (SD3, arXiv:2403.03206)."""

    num_noises: int = 1
    """Number of noises and times drawn for each image.  N + 1 match the supervised states of SOAR with N points."""

    def __post_init__(self) -> None:
        self.check_times()
        require(self.num_noises >= 1, f"num_noises = {self.num_noises}: at least 1")

    @property
    def requirements(self) -> Requirements:
        """Return one evaluation for each noise."""
        return Requirements(evaluations=float(self.num_noises))

    def masses(self, batch: Pairs) -> None:
        """Return None: all rows count alike."""

    def regression_losses(self, models: Models, batch: Pairs, random: RowRandom) -> Iterator[tuple[Tensor, Metrics]]:
        """Yield the loss at each of the noises."""
        x0 = batch.x0
        assert self.shift is not None
        for _ in range(self.num_noises):
            noise = random.normal(x0.shape[1:], x0.device).to(x0.dtype)
            t = to_device(shifted(DENSITIES[self.density](random), self.shift), x0.device)
            cond = batch.cond.dropped(random.uniform() < self.dropout)
            v = models.policy(interpolate(x0, noise, t), t, cond)
            loss = (weighting(self.weighting, t) * flow_matching(v, noise - x0)).mean() / self.num_noises
            yield loss, {"flow_matching": loss.detach()}
