"""What is trained of a model: a LoRA beside its frozen weights, or all of them; and its reference and teachers."""

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from ..sampling.conditioning import Velocity
from ..system.errors import ConfigError
from ..system.names import unknown_name
from .experts import networks_of
from .lora.files import StoredLoRA, check_lora_fits, read_lora
from .lora.trained import adapted_layers, restore_training
from .pipeline import Model, Pretrained
from .wrappers import identity

Wrapped = tuple[Velocity, Callable[[], AbstractContextManager[None]]]
"""A velocity field, and a context in which the adapters are switched for it."""
Parameters = Mapping[str, nn.Parameter]
ShardNetwork = Callable[[nn.Module], nn.Module]
"""Shards a network over processes, or returns it as it is."""


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (arXiv:2106.09685).  The reference policy is the adapter switched off: no second copy."""

    rank: int = 32
    """Rank of each layer's update."""
    alpha: int = 64
    """Scale of the update, which is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Names of the layers to adapt.  Empty: those that flow_grpo adapts in this family."""
    start: str | None = None
    """Run, folder or file of a LoRA to train on.  Its layers are adapted; rank and alpha must be those it was trained
    with.  Of another program's file the scale is part of the weights, so that alpha is the rank."""
    lean: bool = True
    """Whether the layers compute with fewer operations than peft's, to the same numbers.  False: peft's own."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank = {self.rank}: a LoRA needs rank >= 1")
        if self.alpha <= 0:
            raise ConfigError(f"alpha = {self.alpha}: the update is scaled by alpha / rank, so it must be positive")


@dataclass(frozen=True)
class Full:
    """Train every weight of the network.  A reference policy then costs one frozen copy of them."""


def attach(model: Model, tune: LoRA | Full) -> dict[str, nn.Parameter]:
    """Give gradients to what `tune` names and to nothing else of the model; return those parameters by name."""
    if isinstance(tune, LoRA):
        from peft import LoraConfig

        model.module.requires_grad_(False)
        if tune.start is not None:
            start_from(model, tune, tune.start)
        else:
            targets = list(tune.targets or model.lora_targets)
            for network in networks_of(model.module):
                check_targets(network, targets)
            options = {"lora_alpha": tune.alpha, "init_lora_weights": "gaussian", "target_modules": targets}
            model.module.add_adapter(LoraConfig(r=tune.rank, **options))  # type: ignore[operator]
        if tune.lean:
            from .lora.lean import make_lean

            make_lean(model.module)
    else:
        model.module.requires_grad_(True)
    return trainable_parameters(model.module)


def check_targets(network: nn.Module, targets: Sequence[str]) -> None:
    """Raise ConfigError for a name that meets no layer, which peft would leave out, or that meets more than layers."""
    modules = {name: module for name, module in network.named_modules() if name}
    layers = endings(name for name, module in modules.items() if isinstance(module, nn.Linear))
    for target in targets:
        met = [name for name in modules if name == target or name.endswith(f".{target}")]
        if not met:
            raise unknown_name("layer of this model (tune.targets)", target, layers)
        other = next((name for name in met if not isinstance(modules[name], nn.Linear)), None)
        if other is not None:
            longer = [name for name in layers if target in name.split(".") and name != target]
            near = sorted(longer, key=lambda name: (len(name), name))[:3]
            advice = f"write a longer name, such as {' or '.join(near)}" if near else "leave it out"
            raise ConfigError(
                f"tune.targets: {target!r} names {other}, of the kind {type(modules[other]).__name__}; a LoRA adapts "
                f"Linear layers, so {advice}"
            )


def endings(layers: Iterable[str]) -> set[str]:
    """Return the names that layers go by: a.to_out.0 is also to_out.0; numbers alone are left out."""
    names = {".".join(layer.split(".")[i:]) for layer in layers for i in range(layer.count(".") + 1)}
    return {name for name in names if not name.isdigit()}


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that have gradients, by name, in fp32."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for p in trained.values():
        # Updates are smaller than what half precision resolves, whatever the frozen weights are kept in.
        p.data = p.data.float()
    return trained


def start_from(model: Model, tune: LoRA, source: str) -> None:
    """Attach a LoRA and train it on.  ConfigError where `tune` has another rank, alpha or layers."""
    from peft.functional import set_adapter

    lora = model.load_lora(source)
    check_start(tune, lora)
    restore_training(model.module, lora, "default")
    set_adapter(model.module, "default")


def check_start(tune: LoRA, start: StoredLoRA) -> None:
    """Raise ConfigError where `tune` has another rank, alpha or layers than the LoRA that it starts from."""
    source = start.source
    if tune.targets:
        raise ConfigError(f"tune.targets: the layers are those of {source}; leave targets out")
    if (start.rank, start.alpha) != (tune.rank, tune.alpha):
        its = f"rank {start.rank} and alpha {start.alpha:g}"
        raise ConfigError(f"LoRA {source} has {its}, not {tune.rank} and {tune.alpha}; set tune.rank and tune.alpha")


def check_loras(config: Pretrained, tune: LoRA | Full, teachers: Sequence["Teacher"]) -> None:
    """Read the LoRAs that a run starts from and learns from, and see that they fit, before weights are fetched.

    InputError for one that cannot be read or is of another architecture; ConfigError as of `check_start`.
    """
    start = tune.start if isinstance(tune, LoRA) else None
    sources = dict.fromkeys([start, *(teacher.lora for teacher in teachers)])
    loras = {source: read_lora(source, type(config).__name__) for source in sources if source is not None}
    if isinstance(tune, LoRA) and start is not None:
        check_start(tune, loras[start])
    if loras:
        network = config.load("meta").module
        for lora in loras.values():
            check_lora_fits(lora, network)


def before_training(model: Model, tune: LoRA | Full, shard: ShardNetwork = identity) -> Wrapped:
    """Return the velocity field that training starts from, with its context."""
    if isinstance(tune, LoRA) and tune.start is not None:
        return frozen(model, tune.start, "start")
    return without_adapters(model, tune, shard)


def without_adapters(model: Model, tune: LoRA | Full, shard: ShardNetwork = identity) -> Wrapped:
    """Return the velocity field of the base model, of a frozen copy where all weights are trained."""
    if isinstance(tune, LoRA):
        from .lora.lean import adapters_switched

        return model.velocity(model.module), adapters_switched(model.module, None)
    return model.velocity(shard(copy.deepcopy(model.module).requires_grad_(False))), nullcontext


def frozen(model: Model, source: str, name: str) -> Wrapped:
    """Return the velocity field of the base model with a frozen LoRA, beside the one that is trained."""
    from peft.functional import set_adapter

    from .lora.lean import adapters_switched

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # as intended
        lora = model.load_lora(source, name)
    restore_training(model.module, lora, name)
    set_adapter(model.module, "default")
    return model.velocity(model.module), adapters_switched(model.module, name)


def lagged_copy(model: Model, tune: LoRA | Full, name: str, shard: ShardNetwork) -> tuple[Wrapped, Parameters]:
    """Return the velocity field of a frozen copy of what is trained, and the copy's parameters by the policy's names.

    It is another adapter beside a trained LoRA, and another network where all weights are trained.
    """
    if not isinstance(tune, LoRA):
        network = shard(copy.deepcopy(model.module).requires_grad_(False))
        return (model.velocity(network), nullcontext), dict(network.named_parameters())
    from peft.functional import set_adapter

    from .lora.lean import adapters_switched

    trained = trainable_parameters(model.module)
    config = copy.deepcopy(model.module.peft_config["default"])  # type: ignore[index]
    with torch.random.fork_rng(), warnings.catch_warnings():  # its first values, which are drawn, are not used
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # as intended
        model.module.add_adapter(config, name)  # type: ignore[operator]
    set_adapter(model.module, "default")
    for _, layer in adapted_layers(model.module, name):
        layer.scaling[name] = layer.scaling["default"]  # a LoRA to start from may have another than its config says
    by_name = dict(model.module.named_parameters())
    copies = {policy: by_name[policy.replace(".default.", f".{name}.")] for policy in trained}
    for policy, parameter in copies.items():
        parameter.data = trained[policy].detach().clone()
        parameter.requires_grad_(False)
    return (model.velocity(model.module), adapters_switched(model.module, name)), copies


@dataclass(frozen=True)
class Teacher:
    """A specialist to learn from: an adapter of the base model beside the one that is trained."""

    name: str
    """Name of the teacher in options and tables."""
    lora: str | None
    """Run, folder or file of its LoRA, trained on the same base.  None: the base itself, as under more guidance."""
    tasks: tuple[str, ...] = ()
    """Tasks that it teaches.  Empty: it is an anchor only."""
    guidance_scale: float | None = None
    """Guidance scale that it was trained for.  None: the run's."""

    def guidance(self, default: float) -> float:
        """Return the guidance scale that it draws with; `default` is the run's."""
        return default if self.guidance_scale is None else self.guidance_scale
