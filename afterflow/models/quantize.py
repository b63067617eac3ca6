"""Frozen weights in 8 or 4 bits, to train a LoRA beside (QLoRA, arXiv:2305.14314)."""

from collections.abc import Iterator
from math import gcd
from typing import Literal

import torch
from torch import nn

from ..system.optional_dependencies import check_extra
from .base import blocks

QuantizeName = Literal["int8", "nf4"]
BLOCK = 64
"""Weights of nf4 that share a scale, which is itself stored in 8 bits."""


def check_quantizes(how: QuantizeName | None) -> None:
    """Raise MissingDependencyError where the library is not installed."""
    if how is not None:
        check_extra(f"model.quantize = {how}", ["torchao"], "quantize")


def quantize(module: nn.Module, how: QuantizeName, device: torch.device | str) -> None:
    """Store the linear layers of the network's blocks in fewer bits, on `device`.

    int8 has a scale for every output, nf4 one for every 64 weights.  Passes compute in the precision that the weights
    had.  The layers before and after the blocks are small and matter more, so they stay as they are.
    """
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
    from torchao.quantization.quantize_.workflows import to_nf4

    for layer in quantizable(module):
        layer.to(device)
        if how == "int8":
            quantize_(layer, Int8WeightOnlyConfig(version=2))
        else:
            scalers = gcd(layer.weight.numel() // BLOCK, 256)
            layer.weight = nn.Parameter(to_nf4(layer.weight.data, BLOCK, scalers), requires_grad=False)


def quantizable(module: nn.Module) -> Iterator[nn.Linear]:
    """Yield the linear layers of the network's blocks whose weights divide into blocks of nf4."""
    for block in blocks(module):
        for layer in block.modules():
            if isinstance(layer, nn.Linear) and layer.weight.numel() % BLOCK == 0:
                yield layer


def saved_bytes(module: nn.Module, how: QuantizeName) -> int:
    """Number of bytes by which `quantize` makes the weights smaller."""
    saved = 0
    for layer in quantizable(module):
        count, size = layer.weight.numel(), layer.weight.element_size()
        scales = count // BLOCK
        nf4 = count // 2 + scales + 4 * scales // gcd(scales, 256)
        int8 = count + size * len(layer.weight)
        saved += size * count - (int8 if how == "int8" else nf4)
    return saved
