"""LoRAs merged into one, by what they add to the weights: ΔW = α/r · B A.

Averaging the factors instead gives (1/K²) Σ B_i A_j, which is another matrix wherever the A's differ; released code
does so.  Here a sum of ΔW is exact at rank Σ r_i, and cut to a lower rank it is the nearest there is (its SVD).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ...system.checks import check_at_least_one, check_finite
from ...system.errors import ConfigError, InputError
from .factors import LoRAFactors, cut_rank, nearest_factors, pad_rank, weighted_sum
from .files import StoredLoRA, read_lora, write_lora

MergeMethod = Literal["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"]


@dataclass(frozen=True)
class LoRAMerge:
    """Merge LoRAs of one base into one, by what they add to its weights."""

    loras: tuple[str, ...]
    """Runs, folders or files of the LoRAs, at least two."""
    weights: tuple[float, ...] | None = None
    """Weight of each LoRA.  None: the mean of what they add."""
    rank: int | None = None
    """Rank of the result, by SVD.  None: all ranks added up, where a linear merge is exact."""
    how: MergeMethod = "linear"
    """linear adds them up.  The others leave out entries of each ΔW first (arXiv:2306.01708, arXiv:2311.03099)."""
    density: float = 0.5
    """Share of the entries that the other methods keep."""
    seed: int = 0
    """Seed of the entries that the dare methods leave out."""

    def __post_init__(self) -> None:
        count = len(self.loras)
        if count < 2:
            raise ConfigError(f"a merge of {count} LoRAs: name at least two")
        if self.weights is not None and len(self.weights) != count:
            raise ConfigError(f"weights: {len(self.weights)} numbers for {count} LoRAs; give one for each")
        check_finite(self)
        if self.weights is not None and not any(self.weights):
            raise ConfigError("weights are all 0, so the merge would be empty; give a LoRA another weight")
        check_at_least_one(self, "rank")
        if not 0 < self.density <= 1:
            raise ConfigError(f"density = {self.density}: a share of the entries, in (0, 1]")

    def write(self, folder: Path) -> tuple[dict[str, LoRAFactors], float]:
        """Write the merge to `folder`; return its factors and the relative error of cutting it to `rank`.

        Raises InputError for LoRAs that cannot be read or merged.
        """
        loras = [read_lora(source) for source in self.loras]
        layers, error = self.merged(loras)
        write_lora(folder, layers, next((lora.family for lora in loras if lora.family is not None), None))
        return layers, error

    def merged(self, loras: Sequence[StoredLoRA]) -> tuple[dict[str, LoRAFactors], float]:
        """Merge LoRAs that are read; the error is ‖ΔW - B A‖ / ‖ΔW‖.

        rank None keeps every rank: Σ r_i.  A LoRA adds nothing to a layer that it does not have.
        """
        check_same_base(loras)
        # Of the entries that agree in sign, ties takes the mean by itself.
        weights = self.weights or [1.0 if "ties" in self.how else 1 / len(loras)] * len(loras)
        rank = sum(lora.rank for lora in loras) if self.rank is None else self.rank
        generator = torch.Generator().manual_seed(self.seed)
        layers, lost, whole = {}, 0.0, 0.0
        for layer in dict.fromkeys(name for lora in loras for name in lora.layers):
            parts = [(lora.layers[layer], weight) for lora, weight in zip(loras, weights) if layer in lora.layers]
            exact = weighted_sum(parts)
            if self.how == "linear":
                delta, factors = exact.delta, cut_rank(exact, rank)
            else:
                delta = pruned_sum(parts, self.how, self.density, generator)
                factors = nearest_factors(delta, rank)
            layers[layer] = pad_rank(factors, rank)
            lost += (delta - factors.delta).square().sum().item()
            whole += delta.square().sum().item()
        return layers, (lost / whole) ** 0.5 if whole else 0.0


def check_same_base(loras: Sequence[StoredLoRA]) -> None:
    """Raise InputError where a layer has another shape in another LoRA, or where they have no layer in common."""
    first = loras[0]
    for other in loras[1:]:
        common = first.layers.keys() & other.layers.keys()
        if not common:
            raise InputError(f"{first.source} and {other.source} have no layer in common; they are of different models")
        for layer in sorted(common):
            shapes = [(len(lora.layers[layer].B), lora.layers[layer].A.shape[1]) for lora in (first, other)]
            if shapes[0] != shapes[1]:
                its = f"{shapes[0]} in {first.source} and {shapes[1]} in {other.source}"
                raise InputError(f"layer {layer} is {its}; LoRAs of different bases cannot be merged")


def pruned_sum(
    parts: Sequence[tuple[LoRAFactors, float]], how: MergeMethod, density: float, generator: torch.Generator
) -> Tensor:
    """Sum ΔW (out, in) by peft's merges, which leave out entries: small ones, random ones, or the minority's sign."""
    from peft.utils.merge_utils import dare_linear, dare_ties, magnitude_prune, ties

    merges = {"ties": ties, "dare_linear": dare_linear, "dare_ties": dare_ties, "magnitude_prune": magnitude_prune}
    deltas, weights = [f.delta for f, _ in parts], torch.tensor([w for _, w in parts])
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))  # dare draws from the global generator
        return merges[how](deltas, weights, density)
