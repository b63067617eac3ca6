"""What is trained of a model: a LoRA beside its frozen weights, or all of them; and the policy it started from."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from peft import LoraConfig
from peft.functional import set_adapter
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..sampling.conditioning import Velocity
from .base import Model
from .wrappers import identity

Wrapped = tuple[Velocity, Callable[[], AbstractContextManager[None]]]


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (arXiv:2106.09685).  The reference policy is the adapter switched off: no second copy."""

    rank: int = 32
    """Columns of each factor."""
    alpha: int = 64
    """The update is scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Names of the layers to adapt; empty: those that flow_grpo adapts in this family."""
    start: str | None = None
    """Folder of a LoRA to go on from; rank, alpha and layers are then its own, and rank and alpha must say so."""

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
        if tune.start is not None:
            start_from(model, tune, tune.start)
            return trainable_parameters(model.module)
        targets = list(tune.targets or model.lora_targets)
        config = LoraConfig(r=tune.rank, lora_alpha=tune.alpha, init_lora_weights="gaussian", target_modules=targets)
        model.module.add_adapter(config)  # type: ignore[operator]
    else:
        model.module.requires_grad_(True)
    return trainable_parameters(model.module)


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that have gradients, by name, in fp32."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for p in trained.values():
        # Updates are smaller than what half precision resolves, whatever the frozen weights are kept in.
        p.data = p.data.float()
    return trained


def start_from(model: Model, tune: LoRA, folder: str) -> None:
    """Attach the LoRA of `folder` to be trained on; ValueError where `tune` says something else of it."""
    model.load_lora(folder)
    found = model.module.peft_config["default"]  # type: ignore[index]
    if (found.r, found.lora_alpha) != (tune.rank, tune.alpha):
        its = f"rank {found.r} and alpha {found.lora_alpha:g}"
        raise ValueError(f"LoRA {folder} has {its}, not {tune.rank} and {tune.alpha}; set tune.rank and tune.alpha")
    restore_fp32(model, folder, "default")
    if tune.targets:
        raise ValueError(f"tune.targets: the layers are those of {folder}; leave targets out")
    set_adapter(model.module, "default")


def restore_fp32(model: Model, folder: str, name: str) -> None:
    """Give a loaded adapter its stored fp32 again: peft rounds it to the precision of the base."""
    stored = model.read_lora(folder).layers
    scaling = model.module.peft_config[name]  # type: ignore[index]
    for layer, module in model.module.named_modules():
        if layer in stored and isinstance(module, BaseTunerLayer):
            for factor, value in (("A", stored[layer].A), ("B", stored[layer].B * (scaling.r / scaling.lora_alpha))):
                weight = getattr(module, f"lora_{factor}")[name].weight
                weight.data = value.to(weight.device)


ShardNetwork = Callable[[nn.Module], nn.Module]


def before_training(model: Model, tune: LoRA | Full, spread: ShardNetwork = identity) -> Wrapped:
    """The velocity field that training starts from: the network, and the context in which it is that."""
    if isinstance(tune, LoRA) and tune.start is not None:
        return frozen(model, tune.start, "start")
    return without_adapters(model, tune, spread)


def without_adapters(model: Model, tune: LoRA | Full, spread: ShardNetwork = identity) -> Wrapped:
    """The velocity field of the base model; a copy of it is `spread` over processes, if need be."""
    if isinstance(tune, LoRA):
        return model.velocity(model.module), adapter_off(model.module)
    return model.velocity(spread(copy.deepcopy(model.module).requires_grad_(False))), nullcontext


def frozen(model: Model, folder: str, name: str) -> Wrapped:
    """The velocity field of the base model with a LoRA of its own, beside the one that is trained."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # as intended
        model.load_lora(folder, name)
    restore_fp32(model, folder, name)
    set_adapter(model.module, "default")
    return model.velocity(model.module), adapter_on(model.module, name)


def adapter_on(module: nn.Module, name: str) -> Callable:
    """A context in which another adapter than the trained one acts, and none has gradients."""

    @contextmanager
    def on() -> Iterator[None]:
        set_adapter(module, name, inference_mode=True)
        try:
            yield
        finally:
            set_adapter(module, "default")

    return on


def adapter_off(module: nn.Module) -> Callable:
    @contextmanager
    def off() -> Iterator[None]:
        module.disable_adapters()  # type: ignore[operator]
        try:
            yield
        finally:
            module.enable_adapters()  # type: ignore[operator]

    return off


@dataclass(frozen=True)
class Teacher:
    name: str
    """What it is called in options and tables."""
    lora: str | None
    """Folder of its LoRA, trained on the same base; None: the base itself, say under more guidance."""
    tasks: tuple[str, ...] = ()
    """What it teaches; none: it is an anchor only."""
    guidance_scale: float | None = None
    """The guidance it was trained for; None: the run's."""

    def guidance(self, of_run: float) -> float:
        """The scale it draws with."""
        return of_run if self.guidance_scale is None else self.guidance_scale
