"""Exponential moving average of the trained parameters, which is what is evaluated and exported."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Averages by parameter name.

    The decay after n updates is min(decay, (1 + n) / (10 + n)).  Early averages forget faster, so that a short run is
    not pulled back to its start.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.values: dict[str, Tensor] = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Move every average towards its parameter."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, p in parameters.items():
            self.values[name].lerp_(p.detach(), 1 - decay)

    @contextmanager
    def applied(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Replace the parameters by their averages inside the block, and put them back after it."""
        live = {name: p.detach().clone() for name, p in parameters.items()}
        try:
            copy_values(parameters, self.values)  # which a signal may break off in the middle
            yield
        finally:
            copy_values(parameters, live)


@torch.no_grad()
def copy_values(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Overwrite parameters with the values of the same names."""
    for name, p in parameters.items():
        p.copy_(values[name])
