"""afterflow merge: several LoRAs of one base become one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from tyro.conf import Positional, PositionalMetavarFromFieldName


def merge_command(args: Sequence[str]) -> None:
    """Merge LoRAs of one base into one."""
    tyro.cli(MergeLoRAs, args=args, prog="afterflow merge", config=[PositionalMetavarFromFieldName])()


@dataclass(frozen=True)
class MergeLoRAs:
    """Merge LoRAs of one base into one, by what they add to its weights."""

    loras: Positional[tuple[str, ...]]
    """Folders of the LoRAs."""
    out: str = "runs/merged/lora"
    """Folder of the result."""
    weights: tuple[float, ...] | None = None
    """Weight of every LoRA in the merge; None: their mean."""
    rank: int | None = None
    """Rank of the result, by SVD.  None: the sum of the ranks, with which a linear merge is exact."""
    how: Literal["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"] = "linear"
    """linear adds the LoRAs up.  The others first leave out entries of each (arXiv:2306.01708, arXiv:2311.03099)."""
    density: float = 0.5
    """Share of the entries that those others keep."""
    seed: int = 0
    """Seed of the entries that dare leaves out."""

    def __call__(self) -> None:
        from ..models.lora.merge import merge_folders

        out = Path(self.out)
        layers, error = merge_folders(self.loras, out, self.weights, self.how, self.density, self.rank, self.seed)
        rank = len(next(iter(layers.values())).A)
        print(f"{out}: rank {rank}, {len(layers)} layers; what its rank cannot hold is {error:.1%} of the merge")
