"""What a LoRA adds to one layer."""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class LoRAFactors:
    """B A, the scale in B."""

    A: Tensor  # (r, in)
    B: Tensor  # (out, r)

    @property
    def delta(self) -> Tensor:
        return self.B @ self.A


def pad_rank(factors: LoRAFactors, rank: int) -> LoRAFactors:
    """As much rank as every layer has, in zeros."""
    missing = rank - len(factors.A)
    pad = nn.functional.pad
    return LoRAFactors(pad(factors.A, (0, 0, 0, missing)), pad(factors.B, (0, missing)))
