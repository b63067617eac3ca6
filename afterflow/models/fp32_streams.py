"""Residual streams in fp32 under mixed precision.

Weights that move a little move a velocity by less than half precision resolves, so that a ratio after the first update
is mostly rounding.  Half of that arises where blocks add to a stream that is kept in half precision, and in the last
layer; both are elementwise or small, and cost little in fp32.  Products inside blocks stay in half precision.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

LAST_LAYER = "proj_out"
"""Name of the layer that all families end with."""


class Fp32Linear(nn.Linear):
    """A linear layer that computes in fp32 whatever the precision around it."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output in fp32, (..., in) → (..., out)."""
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast(input.device.type, enabled=False):
            return functional.linear(input.float(), self.weight.float(), bias)


def keep_streams_in_fp32(network: nn.Module, streams: tuple[str, ...]) -> None:
    """Keep the residual streams of a network in fp32, and compute its last layer there.

    streams: names of the layers that streams begin with.
    """
    for name in streams:
        network.get_submodule(name).register_forward_hook(_to_fp32)
    last = network.get_submodule(LAST_LAYER)
    if type(last) is nn.Linear:  # one that is adapted or quantised stays as it is
        last.__class__ = Fp32Linear


def _to_fp32(layer: nn.Module, arguments: object, output: Tensor) -> Tensor:
    return output.float()
