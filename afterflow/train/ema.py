"""Exponential moving average of what is trained: what is evaluated and saved at the end."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Averages by parameter name.  Early on it forgets faster, min(decay, (1 + n) / (10 + n)) after n updates,
    so that a short run is not dragged back to where it started."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.values: dict[str, Tensor] = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, p in parameters.items():
            self.values[name].lerp_(p.detach(), 1 - keep)

    @contextmanager
    def applied(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Inside, the parameters are their averages."""
        live = {name: p.detach().clone() for name, p in parameters.items()}
        copy_values(parameters, self.values)
        try:
            yield
        finally:
            copy_values(parameters, live)


@torch.no_grad()
def copy_values(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Overwrite parameters with values of the same names."""
    for name, p in parameters.items():
        p.copy_(values[name])
