"""The LoRA that a network has attached, read from it and put back into it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from ..experts import networks_of
from .factors import LoRAFactors
from .files import StoredLoRA

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer


def adapted_layers(module: nn.Module, name: str) -> Iterator[tuple[str, "LoraLayer"]]:
    """Return the layers that have an adapter of this name, by their names in the network."""
    from peft.tuners.lora import LoraLayer

    layers = ((layer, m) for layer, m in module.named_modules() if isinstance(m, LoraLayer))
    return ((layer, m) for layer, m in layers if name in m.lora_A)


def trained_factors(module: nn.Module, name: str = "default") -> tuple[dict[str, LoRAFactors], float]:
    """Return the factors of an adapter on the CPU, and its alpha.

    The scale α / r goes into B.  A power of two leaves every bit of the product as it is, in any precision.  Another
    scale rounds each number of B once, by at most one part in 2^24.
    """
    layers = {}
    for layer, adapter in adapted_layers(module, name):
        A, B = (
            factor[name].get_parameter("weight").detach().float().cpu() for factor in (adapter.lora_A, adapter.lora_B)
        )
        layers[layer] = LoRAFactors(A, adapter.scaling[name] * B)
    return layers, module.peft_config[name].lora_alpha  # type: ignore[index]


def restore_training(module: nn.Module, lora: StoredLoRA, name: str) -> None:
    """Give a loaded adapter its fp32 values, which peft rounds to the base's precision, and the alpha of its training.

    So training goes on with the parameters, and the effect of a learning rate, that it had.
    """
    for layer, adapter in adapted_layers(module, name):
        stored = lora.layers[layer]
        for factor, value in ((adapter.lora_A, stored.A), (adapter.lora_B, stored.B / lora.scale)):
            weight = factor[name].get_parameter("weight")
            weight.data = value.to(weight.device)
        adapter.scaling[name], adapter.lora_alpha[name] = lora.scale, lora.alpha
    for network in networks_of(module):
        network.peft_config[name].lora_alpha = lora.alpha  # type: ignore[index]
