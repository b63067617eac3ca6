"""Residual streams in fp32 under mixed precision.

Weights that move a little move a velocity by less than half precision resolves, so that a ratio after the first update
is mostly rounding.  Half of that arises where blocks add to a stream that is kept in half precision, and in the last
layer; both are elementwise or small, and cost little in fp32.  Products inside blocks stay in half precision.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional


class Fp32Linear(nn.Linear):
    """A linear layer that computes in fp32 whatever the precision around it."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output in fp32, (..., in) → (..., out)."""
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast(input.device.type, enabled=False):
            return functional.linear(input.float(), self.weight.float(), bias)


def keep_streams_in_fp32(network: nn.Module, streams: Iterable[str], end_layers: Iterable[str]) -> None:
    """Keep the residual streams of a network in fp32, and compute the layers at its ends there.

    streams: names of the layers that streams begin with.  end_layers: names of the small layers at the ends.
    """
    for name in streams:
        network.get_submodule(name).register_forward_hook(_to_fp32)
    for layer in map(network.get_submodule, end_layers):
        if type(layer) is nn.Linear:  # one that is adapted or quantised stays as it is
            layer.__class__ = Fp32Linear


def _to_fp32(layer: nn.Module, arguments: object, output: Tensor) -> Tensor:
    return output.float()
