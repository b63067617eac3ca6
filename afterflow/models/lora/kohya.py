"""LoRAs in the models' own layers, which kohya's trainers and ComfyUI have.

A LoRA of query, key and value is one of the fused layer: its A's below each other, its B's on the diagonal.  The way
back takes rows of B, and the columns that are not all zero.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from .factors import LoRAFactors, fuse_factors
from .layer_names import OriginalLayer, flat_name, original_layer


def to_kohya(layers: Mapping[str, LoRAFactors], family: str) -> dict[str, Tensor]:
    """Return lora_unet_* tensors with their alphas.  InputError for a layer that the original code does not have."""
    fused: dict[OriginalLayer, dict[int, LoRAFactors]] = {}
    for layer, factors in layers.items():
        position = original_layer(layer, family)
        fused.setdefault(position._replace(part=0), {})[position.part] = swapped_halves(factors, position)
    tensors = {}
    for position, parts in fused.items():
        key, factors = f"lora_unet_{flat_name(position.name)}", fuse_factors(parts, position.widths)
        tensors[f"{key}.lora_down.weight"] = factors.A.contiguous()
        tensors[f"{key}.lora_up.weight"] = factors.B.contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(float(len(factors.A)))  # the scale is in B already
    return tensors


def split_layer(factors: LoRAFactors, positions: Mapping[str, OriginalLayer]) -> dict[str, LoRAFactors]:
    """Return the LoRAs of the layers of diffusers that are in one layer of a file, by their names."""
    layers, fused = {}, len(next(iter(positions.values())).widths) > 1 and bool(factors.B.any())
    for layer, position in positions.items():
        unit = len(factors.B) // sum(position.widths)
        first = unit * sum(position.widths[: position.part])
        B = factors.B[first : first + unit * position.widths[position.part]]
        used = B.any(0) if fused else torch.ones(len(factors.A), dtype=torch.bool)
        if used.any():
            layers[layer] = swapped_halves(LoRAFactors(factors.A[used], B[:, used]), position)
    return layers


def swapped_halves(factors: LoRAFactors, position: OriginalLayer) -> LoRAFactors:
    """Exchange scale and shift, the halves of B's rows, where diffusers has them in the other order."""
    rows, columns = len(factors.B), factors.A.shape[1]
    # Of blocks only SD3's last modulates the text by these two alone.
    if not position.swaps or rows != 2 * columns:
        return factors
    return LoRAFactors(factors.A, factors.B.roll(rows // 2, 0))
