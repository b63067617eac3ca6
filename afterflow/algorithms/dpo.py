"""Diffusion-DPO (arXiv:2311.12908) on the velocity of a flow: of two images of a prompt, the preferred one wins.

draw    one ε and one t for winner and loser,   x_t = (1 - t) x_0 + t ε
error   e(v, x_0) ← w(t) mean((v(x_t, t, c) - (ε - x_0))²)
logit   z ← -β/2 [ (e(v_θ, x_w) - e(v_ref, x_w)) - (e(v_θ, x_l) - e(v_ref, x_l)) ]
loss    -log σ(z) + λ e(v_θ, x_w)

v_ref is the model before training; there z = 0 and the loss is log 2.  Errors are means over coordinates, as in the
released code, whose β this is: β/2 times a mean stands for the paper's β T ω(λ_t) times a sum.  Its authors took 2000
for SD 1.5 and 5000 for SDXL.  An error of v is the error of ε divided by (1 - t)²; that factor is not taken back, which
Flow-DPO (arXiv:2501.13918) found better on flows.  On SD3.5 flow_grpo's own script takes 100.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..objectives.losses import flow_matching, preference_logit, preference_loss
from ..sampling.conditioning import Conditioning, Pairs, Velocity
from ..sampling.device_copies import to_device
from ..sampling.flow import DENSITIES, interpolate, shifted, weighting
from ..sampling.row_random import RowRandom
from .base import Metrics, Models, Reference, Requirements, Supervised, require


@dataclass(frozen=True)
class DPO(Supervised):
    """Diffusion-DPO (arXiv:2311.12908) on pairs of images, of which one is preferred."""

    beta: float = 2000.0
    """β: how dear it is to leave the model before training.  Smaller values let it go further."""
    sft: float = 0.0
    """λ, the weight of the flow-matching loss of the winner; it holds winners where losers alone would be unlearnt."""

    def __post_init__(self) -> None:
        self.check_times()
        require(self.beta > 0, f"beta = {self.beta}: it must be positive; SFT learns from winners alone")
        require(self.sft >= 0, f"sft = {self.sft}: the weight of the winner's own loss is 0 or more")

    @property
    def requirements(self) -> Requirements:
        """Return the reference, and an evaluation each for winner and loser."""
        return Requirements(reference=Reference(), pairs=True, evaluations=2.0)

    def masses(self, batch: Pairs) -> None:
        """Return None: all pairs count alike."""

    def regression_losses(self, models: Models, batch: Pairs, random: RowRandom) -> Iterator[tuple[Tensor, Metrics]]:
        """Yield the loss of the pairs, at one noise and time each."""
        assert self.shift is not None and batch.rejected is not None and models.reference is not None
        noise = random.normal(batch.x0.shape[1:], batch.x0.device).to(batch.x0.dtype)
        t = to_device(shifted(DENSITIES[self.density](random), self.shift), noise.device)
        cond = batch.cond.dropped(random.uniform() < self.dropout)
        images = (batch.x0, batch.rejected)
        with torch.no_grad():
            reference = [self._error(models.reference, x0, noise, t, cond) for x0 in images]
        winner, loser = (self._error(models.policy, x0, noise, t, cond) for x0 in images)
        logit = preference_logit(winner - reference[0], loser - reference[1], self.beta)
        preference = preference_loss(logit).mean()
        yield (
            preference + self.sft * winner.mean(),
            {
                "preference_loss": preference.detach(),
                "preference_logit": logit.detach().mean(),
                "preference_accuracy": (0.5 + 0.5 * logit.detach().sign()).mean(),
                "winner_error": winner.detach().mean(),
                "loser_error": loser.detach().mean(),
            },
        )

    def _error(self, velocity: Velocity, x0: Tensor, noise: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Return w(t) times the mean squared error of a velocity on the lines from images to noise, (B,) fp32."""
        v = velocity(interpolate(x0, noise, t), t, cond)
        return weighting(self.weighting, t) * flow_matching(v, noise - x0)
