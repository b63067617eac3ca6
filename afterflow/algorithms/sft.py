"""Supervised fine-tuning: regress the velocity of the line from an image to noise (SD3, arXiv:2403.03206, eq. 13).

loss ← ‖v_θ((1 - t) x_0 + t ε, t, c) - (ε - x_0)‖²,   t ~ density, shifted
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..cond import Pairs
from ..flow import interpolate, logit_normal, shifted, uniform
from ..losses import flow_matching
from .base import Metrics, Models, Supervised


@dataclass(frozen=True)
class SFT(Supervised):
    density: Literal["logit_normal", "uniform"] = "logit_normal"
    """How often each time is trained, before the shift."""
    shift: float = 3.0
    """Moves training times towards the noise, as the model's sampler moves its steps."""
    dropout: float = 0.0
    """Share of rows whose prompt is replaced by the empty one, so that guidance has something to steer from."""

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout = {self.dropout}: a share of the prompts, so 0 <= dropout < 1")

    def loss(self, models: Models, batch: Pairs, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        n, like = len(batch), batch.x0
        noise = torch.randn(like.shape, generator=generator, device=generator.device).to(like)
        draw = logit_normal if self.density == "logit_normal" else uniform
        t = shifted(draw(n, generator), self.shift).to(like.device)
        dropped = uniform(n, generator) < self.dropout
        v = models.policy(interpolate(like, noise, t), t, batch.cond.dropped(dropped))
        loss = flow_matching(v, noise - like).mean()
        return loss, {"flow_matching": loss.detach()}
