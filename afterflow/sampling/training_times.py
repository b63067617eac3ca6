"""Times at which finished images are noised again to be learnt from, from those of the rollout that made them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..system.errors import ConfigError
from .flow import shifted


@dataclass(frozen=True)
class TrainingTimes:
    """How many times an image is noised again, and to which times."""

    count: int | None = None
    """Number of times of an image, T.  None: as many as 99 % of the steps that times come from, as DiffusionNFT."""
    choice: Literal["grid", "strata", "segments"] = "grid"
    """grid: T different times of the rollout's steps, at random.  strata: one from each of T equal parts of them.
    segments: one from each of T equal parts of [0, 1], shifted as the schedule is, on no grid."""
    span: tuple[float, float] = (0.0, 1.0)
    """Part of the rollout's steps that times come from, counted from the noise (0) to the image (1)."""
    shared: Literal["image", "group", "batch"] = "image"
    """Who has the same times: no other image, the images of a prompt, or all images of an iteration."""

    def __post_init__(self) -> None:
        first, end = self.span
        if not 0 <= first < end <= 1:
            raise ConfigError(f"times.span = {self.span}: parts of the rollout, so 0 <= first < end <= 1")
        if self.count is not None and self.count < 1:
            raise ConfigError(f"times.count = {self.count}: at least 1")

    def indices(self, steps: int) -> range:
        """Return the indices of the rollout's steps that times come from; the first begins in the noise."""
        first, end = self.span
        return range(math.ceil(first * steps - 1e-9), math.floor(end * steps + 1e-9))

    def number(self, steps: int) -> int:
        """Return T for a rollout of so many steps."""
        return self.count or max(1, int(0.99 * len(self.indices(steps))))

    def check(self, steps: int) -> None:
        """Raise ConfigError where a rollout of so many steps has too few times."""
        room, count = len(self.indices(steps)), self.number(steps)
        if room < 1:
            raise ConfigError(f"times.span = {self.span}: none of {steps} steps begins there; widen it")
        if self.choice != "segments" and count > room:
            raise ConfigError(
                f"times.count = {count}: only {room} of {steps} steps are in times.span; lower it, or take segments"
            )

    def draw(self, times: Tensor, warp: float, group: int, sources: Sequence[torch.Generator], common: int) -> Tensor:
        """Return the times of P groups of G images, (P, T, G).

        Args:
            times: The (N+1,) times of the rollout.
            warp: The shift of its schedule.
            group: G.
            sources: P generators, one for each group.
            common: The seed of the generator of what all groups share.
        """
        steps = len(times) - 1
        grid, T = times[:-1][torch.tensor(self.indices(steps))], self.number(steps)
        if self.shared == "batch":
            sources = [torch.Generator().manual_seed(common) for _ in sources]
        width = group if self.shared == "image" else 1
        size = (len(grid) if self.choice == "grid" else T, width)
        u = torch.stack([torch.rand(size, generator=source) for source in sources])
        return self._times(u, grid, T, warp).expand(-1, -1, group)

    def _times(self, u: Tensor, grid: Tensor, T: int, warp: float) -> Tensor:
        """Return times (P, T, W) from uniform numbers: (P, N', W) for a choice from the grid, else (P, T, W)."""
        if self.choice == "grid":
            return grid[u.argsort(1)[:, :T]]
        part = torch.arange(T)[:, None]
        if self.choice == "strata":
            low, high = part * len(grid) // T, (part + 1) * len(grid) // T
            return grid[(low + u * (high - low)).long().clamp(max=high - 1)]
        first, end = self.span
        return shifted(1 - (first + (end - first) * (part + u) / T), warp)
