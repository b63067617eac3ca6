"""afterflow merge: several LoRAs of one base become one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, PositionalRequiredArgs

from ..models.lora.merge import LoRAMerge
from .parsing import parse_options


def merge_command(args: Sequence[str]) -> None:
    """Merge LoRAs of one base into one."""
    parse_options(MergeLoRAs, args, "afterflow merge")()


@dataclass(frozen=True)
class MergeLoRAs:
    """Merge LoRAs of one base into one, by what they add to its weights."""

    merge: OmitArgPrefixes[Annotated[LoRAMerge, PositionalRequiredArgs]]
    """LoRAs, and how they become one."""
    out: str = "runs/merged/lora"
    """Folder of the result."""

    def __call__(self) -> None:
        layers, error = self.merge.write(Path(self.out))
        rank = len(next(iter(layers.values())).A)
        print(f"{self.out}: rank {rank}, {len(layers)} layers; what its rank cannot hold is {error:.1%} of the merge")
