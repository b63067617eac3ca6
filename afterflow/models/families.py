"""The families of models: a new one is a name in the union and a line of the table."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from ..system.errors import ConfigError, InputError
from .flux import Flux, FluxModel
from .pipeline import Model, Pretrained, locate, pipeline_class
from .qwen_image import QwenImage, QwenImageModel
from .sd3 import SD3, SD3Model
from .wan import Wan, WanModel

AnyPretrained = SD3 | Flux | QwenImage | Wan
FAMILIES: dict[type[Pretrained], type[Model]] = {
    SD3: SD3Model,
    Flux: FluxModel,
    QwenImage: QwenImageModel,
    Wan: WanModel,
}


def pretrained(path: str, dtype: str, options: Mapping[str, Any]) -> Pretrained:
    """Return the configuration of the pipeline at `path`, of whatever family it is, with some options set.

    Raises InputError where no family draws with it, ConfigError where the family has no such option.
    """
    stock = pipeline_class(locate(path, None, weights=False))
    kind = next((kind for kind, model in FAMILIES.items() if model.stock == stock), None)
    if kind is None:
        supported = ", ".join(model.stock for model in FAMILIES.values())
        raise InputError(f"model {path!r} is a {stock}; afterflow knows {supported}")
    for name in options:
        if name not in {field.name for field in fields(kind)}:
            raise ConfigError(f"--{name.replace('_', '-')}: {kind.__name__} has no such option; leave it out")
    return replace(kind(path), dtype=dtype, **options)
