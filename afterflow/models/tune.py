"""What is trained of a model: a LoRA beside its frozen weights, or all of them; and the policy it started from."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from peft import LoraConfig
from torch import nn

from ..cond import Velocity
from .base import Model
from .wrappers import in_context


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (arXiv:2106.09685).  The reference policy is the adapter switched off: no second copy."""

    rank: int = 32
    """Columns of each factor."""
    alpha: int = 64
    """The update is scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Names of the layers to adapt; empty: the attention projections that flow_grpo adapts."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank = {self.rank}: a LoRA needs rank >= 1")
        if self.alpha <= 0:
            raise ValueError(f"alpha = {self.alpha}: the update is scaled by alpha / rank, so it must be positive")


@dataclass(frozen=True)
class Full:
    """Every weight of the network.  A reference policy then costs one frozen copy of them."""


def attach(model: Model, tune: LoRA | Full) -> dict[str, nn.Parameter]:
    """Make `tune` the only thing of the model that has gradients; its parameters by name."""
    if isinstance(tune, LoRA):
        model.module.requires_grad_(False)
        targets = list(tune.targets or model.lora_targets)
        config = LoraConfig(r=tune.rank, lora_alpha=tune.alpha, init_lora_weights="gaussian", target_modules=targets)
        model.module.add_adapter(config)  # type: ignore[operator]
    else:
        model.module.requires_grad_(True)
    trained = {name: p for name, p in model.module.named_parameters() if p.requires_grad}
    for p in trained.values():
        # Updates are smaller than what half precision resolves, whatever the frozen weights are kept in.
        p.data = p.data.float()
    return trained


def reference(model: Model, tune: LoRA | Full) -> Velocity:
    """The velocity field before training, without gradients of its own."""
    if isinstance(tune, LoRA):
        return in_context(model.velocity(model.module), adapter_off(model.module))
    return model.velocity(copy.deepcopy(model.module).requires_grad_(False))


def adapter_off(module: nn.Module) -> Callable:
    @contextmanager
    def off() -> Iterator[None]:
        module.disable_adapters()  # type: ignore[operator]
        try:
            yield
        finally:
            module.enable_adapters()  # type: ignore[operator]

    return off
