"""How every part of a tiny pipeline is trained: AdamW on random batches, with a cosine learning rate."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """How long a part is trained, on batches of what size, and with which AdamW."""

    name: str
    """Name of the part in the log."""
    steps: int
    """Number of updates."""
    batch: int
    """Examples of one update."""
    peak: float
    """Highest learning rate."""
    weight_decay: float = 1e-2
    """AdamW's weight decay."""
    max_norm: float | None = 1.0
    """Largest norm of the gradient.  None: it is not clipped."""

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear over the first hundred, times half a cosine down to zero."""
        return self.peak * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def __call__(
        self, module: nn.Module, loss_of: Callable[[Tensor], Tensor], examples: int, generator: torch.Generator
    ) -> None:
        """Descend `loss_of` of batches of rows (B,), drawn from so many examples."""
        optimizer = torch.optim.AdamW(module.parameters(), lr=self.peak, weight_decay=self.weight_decay)
        for step in range(self.steps):
            optimizer.param_groups[0]["lr"] = self.rate(step)
            loss = loss_of(torch.randint(examples, (self.batch,), generator=generator))
            optimizer.zero_grad()
            loss.backward()
            if self.max_norm is not None:
                torch.nn.utils.clip_grad_norm_(module.parameters(), self.max_norm)
            optimizer.step()
            if step % 100 == 0 or step == self.steps - 1:
                _log.info("%s %5d/%d loss %.4f", self.name, step, self.steps, loss.item())
