"""The LoRA of a pair of networks: two files in one folder, one for each network.

diffusers and ComfyUI load a file into one network.  In a LoRA that is read, the name of a layer begins with that of its
network.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...system.errors import InputError
from ..experts import EXPERTS
from .factors import LoRAFactors

PAIR_FAMILIES = ("WanPair",)
"""Families whose models have two networks."""
SECOND = "pytorch_lora_weights_2.safetensors"
"""Name of the file of the second network, beside diffusers' own for the first."""
NOISE_ENDINGS = ("high_noise", "low_noise")
"""What ends the names of the files that ComfyUI and kohya's trainers know, in the order of the networks."""


def noise_files(file: Path) -> tuple[Path, Path]:
    """Return the files of a pair that one name stands for: x.safetensors → x_high_noise and x_low_noise.safetensors."""
    high, low = (file.with_stem(f"{file.stem}_{noise}") for noise in NOISE_ENDINGS)
    return high, low


def sorted_pair(files: Sequence[Path]) -> tuple[Path, Path] | None:
    """Return two files, high noise first, where the name of one says high and that of the other low; else None.

    Whole words count first, as in flow_low_noise and flow_high_noise, then letters anywhere, as in wanlow and wanhigh.
    """
    words = {file: re.findall("[A-Z]?[a-z]+|[A-Z]+", file.stem) for file in files}
    whole = {file: {word.lower().removesuffix("noise") for word in words[file]} for file in files}
    for texts in (whole, {file: file.stem.lower() for file in files}):
        high, low = ([file for file in files if word in texts[file]] for word in ("high", "low"))
        if len(files) == 2 and len(high) == len(low) == 1 and high != low:
            return high[0], low[0]
    return None


def by_expert(layers: Mapping[str, LoRAFactors]) -> dict[str, dict[str, LoRAFactors]]:
    """Split the layers of a pair's LoRA by network: name of the network → layers by their names in it."""
    parts: dict[str, dict[str, LoRAFactors]] = {name: {} for name in EXPERTS}
    for layer, factors in layers.items():
        expert, _, name = layer.partition(".")
        parts[expert][name] = factors
    return parts


def check_network_count(files: Sequence[Path], family: str | None, source: str) -> None:
    """Raise InputError for a LoRA of one network where the model has two, and for one of two where it has one."""
    if family in PAIR_FAMILIES and len(files) == 1:
        raise InputError(
            f"LoRA {source}: {files[0].name} is of one network, and the model has two, which need one each; give the "
            f"folder of both, {files[0].name} beside {SECOND}, or two files with high and low in their names"
        )
    if family not in (None, *PAIR_FAMILIES) and len(files) == 2:
        raise InputError(
            f"LoRA {source}: it is of a pair of transformers ({files[0].name} and {files[1].name}), as Wan 2.2 A14B "
            "has, and this model has one; take the model that it was trained on"
        )


def check_expert(about: Mapping[str, Any], expert: str | None, source: str) -> None:
    """Raise InputError for a file of a pair that is read alone, or in the place of the other one.

    about: what the file says of its training.  expert: the network that it is read for.  None: it is read alone.
    """
    if about.get("family") not in PAIR_FAMILIES:
        return
    its = about.get("expert")
    if expert is None:
        raise InputError(
            f"LoRA {source}: it is of {its}, one of the two transformers that Wan 2.2 A14B has, and both are needed; "
            "take that model, and the folder that holds both files"
        )
    if its != expert:
        raise InputError(f"LoRA {source}: the file for {expert} is of {its}; exchange the names of its two files")
