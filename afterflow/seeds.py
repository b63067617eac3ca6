"""Random generators named by what they are for, so that a run resumes anywhere without stored state."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator that depends on the key alone: (seed, iteration, "noise", prompt), say."""
    return torch.Generator().manual_seed(number(*key))


def number(*key: int | str) -> int:
    """A seed for other libraries, 0 <= n < 2^63, by the same rule."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1


class Draws:
    """Random numbers of B rows, each from a generator of its own, so that a row's depend on no other row."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.generators = generators

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal (B, *shape), on the CPU."""
        return torch.stack([torch.randn(tuple(shape), generator=g) for g in self.generators])

    def uniform(self) -> Tensor:
        """(B,) in [0, 1), on the CPU."""
        return torch.stack([torch.rand((), generator=g) for g in self.generators])
