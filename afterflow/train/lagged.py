"""Averages of the policy that follow it from iteration to iteration, and that an algorithm calls as velocities."""

from collections.abc import Mapping

import torch
from torch import nn

from ..algorithms.lag import Lag


class LaggedPolicy:
    """A frozen copy of what is trained, which becomes d of itself and 1 - d of the policy after each iteration."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], lag: Lag) -> None:
        self.parameters, self.lag = parameters, lag
        self.updates = 0

    @torch.no_grad()
    def follow(self, policy: Mapping[str, nn.Parameter], updates: int) -> None:
        """Move towards the policy's parameters of the same names, after so many more optimizer updates."""
        if not updates:
            return
        self.updates += updates
        share = 1 - self.lag.decay(self.updates)
        for name, p in policy.items():
            self.parameters[name].lerp_(p.detach(), share)
