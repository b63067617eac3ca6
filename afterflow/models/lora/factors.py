"""What a LoRA adds to one layer."""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Factors:
    """B A, the scale in B."""

    A: Tensor  # (r, in)
    B: Tensor  # (out, r)

    @property
    def delta(self) -> Tensor:
        return self.B @ self.A


def padded(factors: Factors, rank: int) -> Factors:
    """As much rank as every layer has, in zeros."""
    missing = rank - len(factors.A)
    pad = nn.functional.pad
    return Factors(pad(factors.A, (0, 0, 0, missing)), pad(factors.B, (0, missing)))
