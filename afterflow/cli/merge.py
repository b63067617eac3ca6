"""afterflow merge: several LoRAs of one base become one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, PositionalRequiredArgs

from ..models.lora.merge import LoRAMerge
from .options import parse_options


def merge_command(args: Sequence[str]) -> None:
    """Merge LoRAs of one base into one."""
    parse_options(merge_loras, args, "afterflow merge")


def merge_loras(
    merge: OmitArgPrefixes[Annotated[LoRAMerge, PositionalRequiredArgs]], out: str = "runs/merged/lora"
) -> None:
    """Merge LoRAs of one base into one, by what they add to its weights.

    Args:
        merge: LoRAs, and how they become one.
        out: Folder of the result.
    """
    layers, error = merge.write(Path(out))
    rank = len(next(iter(layers.values())).A)
    print(f"{out}: rank {rank}, {len(layers)} layers; what its rank cannot hold is {error:.1%} of the merge")
