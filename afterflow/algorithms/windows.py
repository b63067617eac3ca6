"""Windows of stochastic steps: Flow-GRPO-Fast's, and that which MixGRPO (arXiv:2507.21802) and BranchGRPO-Mix slide."""

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch

from .base import require


@dataclass(frozen=True)
class SlidingWindow:
    """A window of consecutive stochastic steps that slides along the rollout as training goes on."""

    width: int = 4
    """Number of consecutive steps that are stochastic and trained."""
    every: int = 25
    """Number of iterations before the window moves (the paper's τ)."""
    stride: int = 1
    """Number of steps that the window moves by."""
    order: Literal["progressive", "random", "frozen", "linear_decay", "exp_decay"] = "progressive"
    """Order of the positions.  random draws one per iteration; the decays stay for fewer iterations towards the end."""
    roll_back: bool = False
    """Whether the window goes back to the start at the end, instead of staying there."""
    idle: int = 2
    """Number of last steps that no window covers: noise there only dirties the picture."""
    decay_rate: float = 0.1
    """k of exp_decay's τ exp(-k max(0, start - decay_from))."""
    decay_from: int = 13
    """Position from which on exp_decay stays for fewer iterations."""

    def __post_init__(self) -> None:
        for name in ("width", "every", "stride"):
            require(getattr(self, name) >= 1, f"window.{name} = {getattr(self, name)}: at least 1")
        for name in ("decay_rate", "decay_from"):
            require(getattr(self, name) >= 0, f"window.{name} = {getattr(self, name)}: 0 or more")
        require(self.idle >= 1, f"window.idle = {self.idle}: at least 1, the step onto the image is never trained")

    def unused(self) -> tuple[str, ...]:
        """Return the names of options that only other orders use."""
        moving = ("every", "stride", "roll_back") if self.order in ("frozen", "random") else ()
        return moving + (("decay_rate", "decay_from") if self.order != "exp_decay" else ())

    def check(self, steps: int) -> None:
        """Raise ValueError where the window does not fit a rollout of so many steps."""
        room = steps - self.idle
        require(self.width <= room, f"window.width = {self.width}: at most {room} of {steps} steps, {self.idle} idle")

    def covered(self, iteration: int, steps: int, generator: torch.Generator) -> range:
        """Return the steps that the window covers."""
        start = self.start(iteration, steps, generator)
        return range(start, start + self.width)

    def start(self, iteration: int, steps: int, generator: torch.Generator) -> int:
        """Return the first step of the window; it is never cut short: start + width <= steps - idle."""
        last = steps - self.idle - self.width
        if self.order == "frozen":
            return 0
        if self.order == "random":
            return int(torch.randint(0, last + 1, (), generator=generator))
        starts = [*range(0, last, self.stride), last]
        stays = [self._stay(start, steps - self.idle) for start in starts]
        if self.roll_back:
            iteration %= sum(stays)
        for start, end in zip(starts, accumulate(stays)):
            if iteration < end:
                return start
        return last

    def _stay(self, start: int, room: int) -> int:
        """Return the number of iterations that the window stands at `start`."""
        if self.order == "linear_decay":
            shortest, done = max(1, self.every // 4), start / room
            return max(shortest, int(self.every * (1 - done) + shortest * done))
        if self.order == "exp_decay":
            return math.ceil(self.every * math.exp(-self.decay_rate * max(0, start - self.decay_from)))
        return self.every


def window_bounds(window: int | None, bounds: tuple[int, int] | None, steps: int) -> tuple[int, int]:
    """Return the first and one-past-last step that Flow-GRPO-Fast's window may cover in a rollout of so many steps."""
    if window is None:
        return 0, steps - 1
    return bounds or (0, max(window, steps // 2))


def check_window(window: int | None, bounds: tuple[int, int] | None, steps: int) -> None:
    """Raise ValueError where no such window fits a rollout of so many steps."""
    ranged_alone = window is None and bounds is not None
    require(not ranged_alone, "window_range is set without a window: give the window its number of steps")
    first, end = window_bounds(window, bounds, steps)
    inside = f"with {steps} steps windows lie in [0, {steps - 1}), because the step onto the image is never trained"
    require(0 <= first < end <= steps - 1, f"window_range = ({first}, {end}): {inside}")
    fits = window is None or 1 <= window <= end - first
    require(fits, f"window = {window}: between 1 and the {end - first} steps of window_range")
