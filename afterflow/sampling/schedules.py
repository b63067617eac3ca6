"""Schedules: the grids of times that a sampler walks down, from 1 (noise) to 0 (image)."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .flow import shifted


class Schedule(ABC):
    """Where a sampler stops between the noise and the image."""

    @abstractmethod
    def times(self, steps: int) -> Tensor:
        """(steps + 1,) float32 from 1 down to 0."""

    @property
    @abstractmethod
    def warp(self) -> float:
        """The shift that turns even steps into this schedule's."""

    def rest(self, t: float, steps: int) -> Tensor:
        """(steps + 1,) from t down to 0, even before the shift: the end of a rollout, in fewer steps."""
        start = shifted(torch.tensor(t), 1 / self.warp)
        return shifted(torch.linspace(float(start), 0, steps + 1), self.warp)


def grid(schedule: Schedule | None, steps: int) -> Tensor:
    """(steps + 1,) times of a schedule; None stands for the model's own, which a run puts in before it asks."""
    assert schedule is not None
    return schedule.times(steps)


def check_shift(shift: float) -> None:
    if not shift > 0:
        raise ValueError(f"schedule.shift = {shift}: it must be positive; 1 leaves the steps where they are")


@dataclass(frozen=True)
class LinearShift(Schedule):
    """Even steps, shifted: the grid of DanceGRPO, MixGRPO, BranchGRPO and Pref-GRPO."""

    shift: float = 3.0
    """Above 1: more steps near the noise."""

    def __post_init__(self) -> None:
        check_shift(self.shift)

    @property
    def warp(self) -> float:
        return self.shift

    def times(self, steps: int) -> Tensor:
        return shifted(torch.linspace(1, 0, steps + 1), self.shift)


@dataclass(frozen=True)
class SD3Grid(Schedule):
    """What diffusers' FlowMatchEulerDiscreteScheduler gives SD3, and flow_grpo trains on.

    The low end is shifted twice, so the last step is tiny (0.009 → 0 at 10 steps): too narrow a
    Gaussian to train on.
    """

    shift: float = 3.0
    """Above 1: more steps near the noise."""

    def __post_init__(self) -> None:
        check_shift(self.shift)

    @property
    def warp(self) -> float:
        return self.shift

    def times(self, steps: int) -> Tensor:
        lowest = shifted(torch.tensor(0.001), self.shift)
        grid = shifted(torch.linspace(1, float(lowest), steps), self.shift)
        return torch.cat([grid, torch.zeros(1)])


@dataclass(frozen=True)
class DynamicShift(Schedule):
    """The dynamic shift e^μ / (e^μ + 1/t - 1) of FLUX.1 and Qwen-Image, with μ linear in the number of image tokens."""

    tokens: int = 1024
    """Latent tokens of an image: (height / 16) * (width / 16)."""
    low: tuple[int, float] = (256, 0.5)
    """A number of tokens and the μ that belongs to it."""
    high: tuple[int, float] = (4096, 1.15)
    """The other end of the line."""
    terminal: float = 0.0
    """Where the last step but one is stretched to; 0: it stays where the shift puts it."""

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"schedule.tokens = {self.tokens}: at least 1")
        if not 0 <= self.terminal < 1:
            raise ValueError(f"schedule.terminal = {self.terminal}: a time before the image, so 0 <= terminal < 1")

    @property
    def warp(self) -> float:
        """The exponential shift is the ordinary one with shift e^μ."""
        (n0, mu0), (n1, mu1) = self.low, self.high
        return math.exp(mu0 + (mu1 - mu0) * (self.tokens - n0) / (n1 - n0))

    def times(self, steps: int) -> Tensor:
        grid = shifted(torch.linspace(1, 1 / steps, steps), self.warp)
        if self.terminal and steps > 1:
            grid = 1 - (1 - grid) * (1 - self.terminal) / (1 - grid[-1])
        return torch.cat([grid, torch.zeros(1)])
