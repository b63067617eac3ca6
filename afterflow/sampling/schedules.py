"""Schedules are the grids of times that a sampler walks down, from 1 (noise) to 0 (image)."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .flow import shifted


class Schedule(ABC):
    """A schedule says where a sampler stops between the noise and the image."""

    @abstractmethod
    def times(self, steps: int) -> Tensor:
        """Return (steps + 1,) float32 times from 1 down to 0."""

    @property
    @abstractmethod
    def warp(self) -> float:
        """Return the shift that turns even steps into those of this schedule."""

    def rest(self, t: float, steps: int) -> Tensor:
        """Return (steps + 1,) times from t down to 0, even before the shift: the end of a rollout, in fewer steps."""
        start = shifted(torch.tensor(t), 1 / self.warp)
        return shifted(torch.linspace(float(start), 0, steps + 1), self.warp)


def grid(schedule: Schedule | None, steps: int) -> Tensor:
    """Return the (steps + 1,) times of a schedule; a run has put the model's own in the place of None."""
    assert schedule is not None
    return schedule.times(steps)


@dataclass(frozen=True)
class ShiftedSchedule(Schedule):
    """A schedule with one number, the shift of its steps towards the noise."""

    shift: float = 3.0
    """A shift above 1 puts more steps near the noise."""

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"schedule.shift = {self.shift}: it must be positive; 1 leaves the steps where they are")

    @property
    def warp(self) -> float:
        """Return the shift itself."""
        return self.shift


@dataclass(frozen=True)
class LinearShift(ShiftedSchedule):
    """Even steps are shifted: the grid of DanceGRPO, MixGRPO, BranchGRPO and Pref-GRPO."""

    def times(self, steps: int) -> Tensor:
        """Return (steps + 1,) evenly spaced times, shifted."""
        return shifted(torch.linspace(1, 0, steps + 1), self.shift)


@dataclass(frozen=True)
class SD3Grid(ShiftedSchedule):
    """The grid that diffusers' FlowMatchEulerDiscreteScheduler gives SD3, and that flow_grpo trains on.

    The low end is shifted twice, so the last step is tiny (0.009 → 0 at 10 steps): too narrow a Gaussian to train on.
    """

    def times(self, steps: int) -> Tensor:
        """Return (steps + 1,) times whose last step is tiny."""
        lowest = shifted(torch.tensor(0.001), self.shift)
        grid = shifted(torch.linspace(1, float(lowest), steps), self.shift)
        return torch.cat([grid, torch.zeros(1)])


@dataclass(frozen=True)
class DynamicShift(Schedule):
    """The dynamic shift of FLUX.1 and Qwen-Image is e^μ / (e^μ + 1/t - 1), with μ linear in the number of tokens."""

    tokens: int = 1024
    """Number of latent tokens of an image: (height / 16) * (width / 16)."""
    low: tuple[int, float] = (256, 0.5)
    """A number of tokens and the μ that belongs to it."""
    high: tuple[int, float] = (4096, 1.15)
    """The number of tokens and the μ at the other end of the line."""
    terminal: float = 0.0
    """Time to which the last step but one is stretched; 0 leaves it where the shift puts it."""

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"schedule.tokens = {self.tokens}: at least 1")
        if self.low[0] == self.high[0]:
            raise ValueError(f"schedule.low and high: a line needs two numbers of tokens, and both are {self.low[0]}")
        if not 0 <= self.terminal < 1:
            raise ValueError(f"schedule.terminal = {self.terminal}: a time before the image, so 0 <= terminal < 1")

    @property
    def warp(self) -> float:
        """Return e^μ: the exponential shift is the ordinary one with this shift."""
        (n0, mu0), (n1, mu1) = self.low, self.high
        return math.exp(mu0 + (mu1 - mu0) * (self.tokens - n0) / (n1 - n0))

    def times(self, steps: int) -> Tensor:
        """Return (steps + 1,) times, stretched to `terminal` where it is positive."""
        grid = shifted(torch.linspace(1, 1 / steps, steps), self.warp)
        if self.terminal and steps > 1:
            grid = 1 - (1 - grid) * (1 - self.terminal) / (1 - grid[-1])
        return torch.cat([grid, torch.zeros(1)])


@dataclass(frozen=True)
class Flux2Shift(Schedule):
    """The shift of FLUX.2 is e^μ as FLUX.1's, with μ fitted to the number of tokens and to that of steps.

    The numbers are those of the published pipeline, `compute_empirical_mu` in diffusers.
    """

    tokens: int = 1024
    """Number of latent tokens of an image: (height / 16) * (width / 16)."""
    usual_steps: int = 50
    """Number of steps whose shift is meant where none is named: 50, or 4 of a distilled model."""

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"schedule.tokens = {self.tokens}: at least 1")
        if self.usual_steps < 1:
            raise ValueError(f"schedule.usual_steps = {self.usual_steps}: at least 1")

    def shift(self, steps: int) -> float:
        """Return e^μ for a number of steps: μ is linear in it, between lines in the tokens for 10 and 200 steps."""
        mu_200 = 1.6927e-4 * self.tokens + 0.45666666
        if self.tokens > 4300:
            return math.exp(mu_200)
        mu_10 = 8.73809524e-5 * self.tokens + 1.89833333
        return math.exp(mu_200 + (mu_10 - mu_200) * (200 - steps) / 190)

    @property
    def warp(self) -> float:
        """Return the shift of the usual number of steps."""
        return self.shift(self.usual_steps)

    def times(self, steps: int) -> Tensor:
        """Return (steps + 1,) evenly spaced times, shifted as far as so many steps are."""
        return torch.cat([shifted(torch.linspace(1, 1 / steps, steps), self.shift(steps)), torch.zeros(1)])


AnySchedule = SD3Grid | LinearShift | DynamicShift | Flux2Shift
"""What the schedule of a pipeline may be."""
ScheduleOption = AnySchedule | None
"""What an algorithm's option `schedule` may be."""
