"""Random numbers by row: what a row draws depends on no other, whoever computes it beside which."""

from collections.abc import Sequence

import torch
from torch import Tensor


class RowRandom:
    """Random numbers of B rows, each from a generator of its own, so that a row's depend on no other row."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.generators = generators

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal (B, *shape), on the CPU."""
        return torch.stack([torch.randn(tuple(shape), generator=g, device=g.device) for g in self.generators])

    def uniform(self) -> Tensor:
        """(B,) in [0, 1), on the CPU."""
        return torch.stack([torch.rand((), generator=g) for g in self.generators])
