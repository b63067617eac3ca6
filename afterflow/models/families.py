"""Which of our models a pipeline is."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from .flux import Flux, FluxModel
from .pipeline import PipelineModel, Pretrained, family_of, locate
from .qwen_image import QwenImage, QwenImageModel
from .sd3 import SD3, SD3Model
from .wan import Wan, WanModel

FAMILIES: dict[type[Pretrained], type[PipelineModel]] = {
    SD3: SD3Model,
    Flux: FluxModel,
    QwenImage: QwenImageModel,
    Wan: WanModel,
}


def pretrained(path: str, dtype: str, told: Mapping[str, Any]) -> Pretrained:
    """The configuration of the pipeline at `path`, of whatever family it is, with some of its options told.

    ValueError when no family of ours draws with it, or when the family has no such option.
    """
    stock = family_of(locate(path, None, weights=False))
    kind = next((kind for kind, model in FAMILIES.items() if model.stock.__name__ == stock), None)
    if kind is None:
        known = ", ".join(model.stock.__name__ for model in FAMILIES.values())
        raise ValueError(f"model {path!r} is a {stock}; afterflow knows {known}")
    for name in told:
        if name not in {field.name for field in fields(kind)}:
            raise ValueError(f"--{name.replace('_', '-')}: {kind.__name__} has no such option; leave it out")
    return replace(kind(path), dtype=dtype, **told)
