"""LoRA layers that cost less than peft's, and switches of adapters that do not walk the network.

The layers stay peft's in all but their forward pass: parameters, files, names and peft's own functions are what they
were.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional


class LeanLinear(Linear):
    """A LoRA of peft's beside a linear layer computes W x + b + B (s A x), with the scale on the few numbers of rank r.

    It is peft's B (A x) s bit for bit where s is a power of two, and within rounding elsewhere.  What peft has beyond
    (dropout, variants, merged weights, several adapters at once) is left to peft.
    """

    def forward(self, x: Tensor, *args: object, **options: object) -> Tensor:
        """Return the layer's output, (..., in) → (..., out), in the dtype of the base layer's."""
        active = [name for name in self.active_adapters if name in self.lora_A]
        if args or options or self.merged or len(active) > 1 or self.lora_variant:
            return super().forward(x, *args, **options)
        if self.disable_adapters or not active:
            return self.base_layer(x)
        (name,) = active
        if not isinstance(self.lora_dropout[name], nn.Identity):
            return super().forward(x)
        A, B = self.lora_A[name].weight, self.lora_B[name].weight
        assert isinstance(A, Tensor) and isinstance(B, Tensor)
        result = self.base_layer(x)
        # Autocast chooses the precision of a product itself; without it the input must be of the factors' dtype.
        x = x if autocasts(x.device.type) else x.to(A.dtype)
        # In place: the base layer's output is nobody else's, and its backward pass does not need it.
        return result.add_(functional.linear(self.scaling[name] * functional.linear(x, A), B))


def autocasts(device: str) -> bool:
    """Return whether products on this kind of device are computed in the precision of an autocast."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def make_lean(network: nn.Module) -> None:
    """Give peft's LoRA layers of a network, those beside plain linear layers, the lean forward pass."""
    for layer in network.modules():
        if type(layer) is Linear and type(layer.base_layer) is nn.Linear:
            layer.__class__ = LeanLinear


def adapters_switched(network: nn.Module, active: str | None) -> Callable[[], AbstractContextManager[None]]:
    """Return a context in which one adapter acts instead of the trained one, or none for None.

    Nothing has gradients inside.  The layers are looked for when it is first entered.
    """
    layers: list[BaseTunerLayer] = []

    @contextmanager
    def switched() -> Iterator[None]:
        if not layers:
            layers.extend(layer for layer in network.modules() if isinstance(layer, BaseTunerLayer))
        before = [(layer._disable_adapters, layer._active_adapter) for layer in layers]
        try:
            for layer in layers:
                layer._disable_adapters, layer._active_adapter = active is None, [active] if active else []
            with torch.no_grad():
                yield
        finally:
            for layer, (disabled, adapter) in zip(layers, before):
                layer._disable_adapters, layer._active_adapter = disabled, adapter

    return switched
