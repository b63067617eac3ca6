"""LoRAs merged into one, by what they add to the weights: ΔW = α/r · B A.

Averaging the factors instead gives (1/K²) Σ B_i A_j, which is another matrix wherever the A's differ; released code
does so.  Here a sum of ΔW is exact at rank Σ r_i, and cut to a lower rank it is the nearest there is (its SVD).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from peft.utils.merge_utils import dare_linear, dare_ties, magnitude_prune, ties
from torch import Tensor

from .factors import LoRAFactors, pad_rank
from .files import StoredLoRA, read_lora, write_lora

MergeName = Literal["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
PRUNING: dict[MergeName, Callable[[list[Tensor], Tensor, float], Tensor]] = {
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
    "magnitude_prune": magnitude_prune,
}


def merge_folders(
    folders: Sequence[str],
    out: Path,
    weights: Sequence[float] | None = None,
    how: MergeName = "linear",
    density: float = 0.5,
    rank: int | None = None,
    seed: int = 0,
) -> tuple[dict[str, LoRAFactors], float]:
    """Write the merge of the LoRAs in `folders` to `out`; its factors, and the relative error of cutting it to `rank`.

    weights None: the mean of what the LoRAs add.  ValueError for what cannot be merged.
    """
    check_merge(len(folders), weights, density, rank)
    loras = [read_lora(folder) for folder in folders]
    # Of the entries that agree in sign, ties takes the mean by itself.
    each = 1.0 if "ties" in how else 1 / len(loras)
    layers, error = merge(loras, weights or [each] * len(loras), how, density, rank, seed)
    write_lora(out, layers)
    return layers, error


def check_merge(count: int, weights: Sequence[float] | None, density: float, rank: int | None) -> None:
    """ValueError for a merge that cannot be."""
    if count < 2:
        raise ValueError(f"a merge of {count} LoRAs: name at least two")
    if weights is not None and len(weights) != count:
        raise ValueError(f"weights: {len(weights)} numbers for {count} LoRAs; give one for each")
    if rank is not None and rank < 1:
        raise ValueError(f"rank = {rank}: at least 1")
    if not 0 < density <= 1:
        raise ValueError(f"density = {density}: a share of the entries, in (0, 1]")


def merge(
    loras: Sequence[StoredLoRA], weights: Sequence[float], how: MergeName, density: float, rank: int | None, seed: int
) -> tuple[dict[str, LoRAFactors], float]:
    """Factors of the merged LoRA, and the relative error ‖ΔW - B A‖ / ‖ΔW‖ of cutting it to `rank`.

    rank None keeps every rank: Σ r_i.  A LoRA adds nothing to a layer that it does not have.
    """
    check_same_base(loras)
    kept = sum(lora.rank for lora in loras) if rank is None else rank
    draws = torch.Generator().manual_seed(seed)
    merged, lost, whole = {}, 0.0, 0.0
    for layer in dict.fromkeys(name for lora in loras for name in lora.layers):
        parts = [(lora.layers[layer], weight) for lora, weight in zip(loras, weights) if layer in lora.layers]
        exact = concatenated(parts)
        delta = exact.delta if how == "linear" else pruned(parts, how, density, draws)
        found = within(exact, kept) if how == "linear" else truncated(delta, kept)
        merged[layer] = pad_rank(found, kept)
        lost += (delta - found.delta).square().sum().item()
        whole += delta.square().sum().item()
    return merged, (lost / whole) ** 0.5 if whole else 0.0


def check_same_base(loras: Sequence[StoredLoRA]) -> None:
    """ValueError where a layer has another shape in another LoRA, or where they have no layer in common."""
    first = loras[0]
    for other in loras[1:]:
        common = first.layers.keys() & other.layers.keys()
        if not common:
            raise ValueError(f"{first.folder} and {other.folder} have no layer in common; they are of different models")
        for layer in sorted(common):
            shapes = [(len(lora.layers[layer].B), lora.layers[layer].A.shape[1]) for lora in (first, other)]
            if shapes[0] != shapes[1]:
                its = f"{shapes[0]} in {first.folder} and {shapes[1]} in {other.folder}"
                raise ValueError(f"layer {layer} is {its}; LoRAs of different bases cannot be merged")


def concatenated(parts: Sequence[tuple[LoRAFactors, float]]) -> LoRAFactors:
    """Σ w_i ΔW_i, exactly: the factors side by side."""
    return LoRAFactors(torch.cat([f.A for f, _ in parts]), torch.cat([w * f.B for f, w in parts], 1))


def pruned(
    parts: Sequence[tuple[LoRAFactors, float]], how: MergeName, density: float, draws: torch.Generator
) -> Tensor:
    """peft's merges, which leave out entries of each ΔW: small ones, random ones, or the minority's sign."""
    deltas, weights = [f.delta for f, _ in parts], torch.tensor([w for _, w in parts])
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (), generator=draws)))  # dare draws from the global generator
        return PRUNING[how](deltas, weights, density)


def within(factors: LoRAFactors, rank: int) -> LoRAFactors:
    """The nearest factors of a rank; the SVD is of a small matrix, which the factors' QR leave of B A."""
    if len(factors.A) <= rank:
        return factors
    (left, B), (right, A) = torch.linalg.qr(factors.B), torch.linalg.qr(factors.A.T)
    small = truncated(B @ A.T, rank)
    return LoRAFactors(small.A @ right.T, left @ small.B)


def truncated(delta: Tensor, rank: int) -> LoRAFactors:
    """The nearest matrix of a rank, its singular values shared evenly between the factors."""
    U, S, V = torch.linalg.svd(delta, full_matrices=False)
    root = S[:rank].sqrt()
    return LoRAFactors(root[:, None] * V[:rank], U[:, :rank] * root)
