"""What a LoRA adds to one layer, ΔW = B A, and the arithmetic of such pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LoRAFactors:
    """The two factors of ΔW, with the scale α / r in B."""

    A: Tensor
    """Factor next to the input, (r, in)."""
    B: Tensor
    """Factor next to the output, (out, r)."""

    @property
    def delta(self) -> Tensor:
        """ΔW = B A, (out, in)."""
        return self.B @ self.A


def pad_rank(factors: LoRAFactors, rank: int) -> LoRAFactors:
    """Raise the rank with zeros, which add nothing."""
    missing = rank - len(factors.A)
    pad = nn.functional.pad
    return LoRAFactors(pad(factors.A, (0, 0, 0, missing)), pad(factors.B, (0, missing)))


def weighted_sum(parts: Sequence[tuple[LoRAFactors, float]]) -> LoRAFactors:
    """Return Σ w_i ΔW_i exactly, the factors side by side: rank Σ r_i."""
    return LoRAFactors(torch.cat([f.A for f, _ in parts]), torch.cat([w * f.B for f, w in parts], 1))


def cut_rank(factors: LoRAFactors, rank: int) -> LoRAFactors:
    """Return the nearest factors of at most `rank`; the SVD is of a small matrix, what the factors' QR leave of B A."""
    if len(factors.A) <= rank:
        return factors
    (Q_out, B), (Q_in, A) = torch.linalg.qr(factors.B), torch.linalg.qr(factors.A.T)
    small = nearest_factors(B @ A.T, rank)
    return LoRAFactors(small.A @ Q_in.T, Q_out @ small.B)


def nearest_factors(delta: Tensor, rank: int) -> LoRAFactors:
    """Return the factors of the nearest matrix of a rank, its singular values shared evenly between them."""
    U, S, V = torch.linalg.svd(delta, full_matrices=False)
    root = S[:rank].sqrt()
    return LoRAFactors(root[:, None] * V[:rank], U[:, :rank] * root)


def fuse_factors(parts: Mapping[int, LoRAFactors], widths: Sequence[int]) -> LoRAFactors:
    """Return one LoRA of a layer that is several layers below each other; a missing part adds nothing.

    parts: index of a layer → its LoRA.  widths: rows of each layer, in units of the narrowest.
    """
    unit = next(len(factors.B) // widths[i] for i, factors in parts.items())
    present = next(iter(parts.values()))
    A = torch.cat([parts[i].A for i in range(len(widths)) if i in parts])
    rows = [parts[i].B if i in parts else present.B.new_zeros(unit * width, 0) for i, width in enumerate(widths)]
    return LoRAFactors(A, torch.block_diag(*rows))
