"""Random numbers by row: what a row draws depends on no other row of its batch and on no process."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .device_copies import to_device


class RowRandom:
    """Random numbers for B rows come from one generator a row, so that those of a row depend on no other."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.generators = generators

    @classmethod
    def seeded(cls, seeds: Tensor) -> "RowRandom":
        """Return a source for rows with these seeds, (B,) long; the same seeds give the same numbers again."""
        return cls([torch.Generator().manual_seed(seed) for seed in seeds.tolist()])

    def normal(self, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Draw standard normal numbers (B, *shape) on the CPU, the same for every device, and return them on one."""
        drawn = torch.stack([torch.randn(tuple(shape), generator=g, device=g.device) for g in self.generators])
        return to_device(drawn, device)

    def uniform(self) -> Tensor:
        """Draw (B,) numbers in [0, 1), on the CPU."""
        return torch.stack([torch.rand((), generator=g) for g in self.generators])
