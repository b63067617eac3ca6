"""Two networks of one shape that share the way from noise to image: one at high noise, the other at low noise.

Wan 2.2 A14B has such a pair.  Here it is one module, to which adapters, checkpointing, averages and shards attach as to
any network.  A row is computed by the network of its time alone.  The other one has no gradient from it, not even zero.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

EXPERTS = ("transformer", "transformer_2")
"""Names of the two networks in a pipeline of diffusers, high noise first; they begin the names of all parameters."""


class Experts(nn.Module):
    """A pair of networks: the first has times from the boundary up, where noise is high, the second those below."""

    def __init__(self, transformer: nn.Module, transformer_2: nn.Module, boundary: float) -> None:
        """Join two networks at a time between 0 and 1."""
        super().__init__()
        self.transformer, self.transformer_2 = transformer, transformer_2
        self.boundary = boundary
        self.all_needed: Callable[[list[bool]], list[bool]] | None = None
        """Says which networks any process needs, by which ones this one does.  None: weights are not sharded."""

    @property
    def networks(self) -> tuple[nn.Module, nn.Module]:
        """The two networks, high noise first."""
        return self.transformer, self.transformer_2

    def low_noise(self, t: Tensor) -> Tensor:
        """Return which rows the second network computes, by their times in [0, 1]: (B,) → (B,) bool."""
        return ~self._high_noise(1000 * t)

    def _high_noise(self, timestep: Tensor) -> Tensor:
        # As diffusers compares them, in thousandths: a step on the boundary must fall on the same side.
        return timestep >= self.boundary * 1000

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, return_dict: bool = False
    ) -> tuple[Tensor]:
        """Return the output of each row, (B, ...), by the network of its time.

        Rows of one network are one pass of it, so a batch on both sides costs two smaller passes.

        Args:
            hidden_states: Latents, (B, ...).
            timestep: Times in thousandths, (B,).
            encoder_hidden_states: Encoded prompts, (B, L, D).
            return_dict: False; a tuple is returned, as by diffusers' networks.
        """
        assert not return_dict
        order, counts = self._split(timestep)
        # Where weights are sharded, a network that another process needs must run here as well, on any row.
        needed = [count > 0 for count in counts]
        run = needed if self.all_needed is None else self.all_needed(needed)
        parts, idle = [], []
        for network, rows, wanted, runs in zip(self.networks, order.split(counts), needed, run):
            if runs:
                rows = rows if wanted else order[:1]
                inputs = hidden_states[rows], timestep[rows], encoder_hidden_states[rows]
                (parts if wanted else idle).append(network(*inputs, return_dict=False)[0])
        output = torch.cat(parts)[order.argsort()]
        # So that its backward pass runs as well.
        return (output + sum(0 * part.sum() for part in idle) if idle else output,)

    def _split(self, timestep: Tensor) -> tuple[Tensor, list[int]]:
        """Return the rows in the order of their networks, (B,) long, and the number of rows of each."""
        count = len(timestep)
        if timestep.is_meta:  # no time has a value there, and a row costs the same in either network
            return torch.arange(count, device=timestep.device), [count, 0]
        high = self._high_noise(timestep)
        first = int(high.sum())
        return (~high).long().argsort(stable=True), [first, count - first]

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return self.transformer.dtype  # type: ignore[return-value]

    @property
    def peft_config(self) -> dict[str, Any]:
        """The configurations of the adapters by name, which both networks have alike."""
        return self.transformer.peft_config  # type: ignore[return-value]

    def add_adapter(self, config: Any, name: str = "default") -> None:
        """Give each network an adapter of its own, of one name."""
        for network in self.networks:
            network.add_adapter(copy.deepcopy(config), name)  # type: ignore[operator]

    def delete_adapters(self, names: Sequence[str]) -> None:
        """Delete adapters of both networks."""
        for network in self.networks:
            network.delete_adapters(names)  # type: ignore[operator]

    def enable_gradient_checkpointing(self) -> None:
        """Store only the inputs of the blocks of both networks."""
        for network in self.networks:
            network.enable_gradient_checkpointing()  # type: ignore[operator]

    @property
    def config(self) -> dict[str, Any]:
        """What `from_config` makes a pair of this shape from."""
        networks = [(type(network), network.config) for network in self.networks]
        return {"boundary": self.boundary, "networks": networks}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Experts":
        """Make a pair with new weights."""
        first, second = (kind.from_config(values) for kind, values in config["networks"])
        return cls(first, second, config["boundary"])


def networks_of(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the networks of a pair, or the one network that a module is."""
    yield from module.networks if isinstance(module, Experts) else (module,)
