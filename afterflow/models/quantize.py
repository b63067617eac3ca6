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
"""Weights of nf4 that share a scale, which is itself kept in 8 bits."""


def check_quantizes(how: QuantizeName | None) -> None:
    """ValueError where the library is missing."""
    if how is not None:
        check_extra(f"model.quantize = {how}", ["torchao"], "quantize")


def quantize(module: nn.Module, how: QuantizeName, device: torch.device | str) -> None:
    """Keep the linear layers of the network's blocks in fewer bits; each is moved to `device` before.

    int8 has a scale for every output, nf4 one for every 64 weights.  Passes compute in the precision that the weights
    had.  What stands before and after the blocks is small and matters more, and stays.
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
    """The linear layers of the network's blocks that can be cut into nf4's."""
    for block in blocks(module):
        for layer in block.modules():
            if isinstance(layer, nn.Linear) and layer.weight.numel() % BLOCK == 0:
                yield layer


def saved_bytes(module: nn.Module, how: QuantizeName) -> int:
    """How much less memory the weights take afterwards."""
    saved = 0
    for layer in quantizable(module):
        count, size = layer.weight.numel(), layer.weight.element_size()
        blocks = count // BLOCK
        small = (
            count + size * len(layer.weight) if how == "int8" else count // 2 + blocks + 4 * blocks // gcd(blocks, 256)
        )
        saved += size * count - small
    return saved
