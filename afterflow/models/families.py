"""The families of models: a new one is a name in the union and a line of the table."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from ..system.errors import ConfigError, InputError
from .flux import Flux, FluxModel
from .flux2_klein import Flux2Klein, Flux2KleinModel
from .flux_kontext import FluxKontext, FluxKontextModel
from .pipeline import Model, Pretrained
from .pipeline_files import SHIPPED, SHIPPED_OPTIONS, locate, read_index
from .qwen_image import QwenImage, QwenImageModel
from .qwen_image_edit import QwenImageEdit, QwenImageEditModel
from .sd3 import SD3, SD3Model
from .wan import Wan, WanModel
from .wan_image import WanImage, WanImageModel
from .wan_pair import WanPair, WanPairModel
from .z_image import ZImage, ZImageModel

AnyPretrained = SD3 | Flux | FluxKontext | Flux2Klein | QwenImage | QwenImageEdit | ZImage | WanPair | Wan | WanImage
FAMILIES: dict[type[Pretrained], type[Model]] = {
    SD3: SD3Model,
    Flux: FluxModel,
    FluxKontext: FluxKontextModel,
    Flux2Klein: Flux2KleinModel,
    QwenImage: QwenImageModel,
    QwenImageEdit: QwenImageEditModel,
    ZImage: ZImageModel,
    WanPair: WanPairModel,  # before Wan, whose class in diffusers it shares
    Wan: WanModel,
    WanImage: WanImageModel,
}


def pretrained(path: str, dtype: str, options: Mapping[str, Any], inputs: bool = False) -> Pretrained:
    """Return the configuration of the pipeline at `path`, of whatever family it is, with some options set.

    A pipeline that is shipped draws in the size that it was trained at where the options do not say otherwise.

    inputs: Whether prompts have input pictures.  The pipeline of Wan 2.2 TI2V-5B is then `WanImage`, else `Wan`.

    Raises InputError where no family draws with it, ConfigError where the family has no such option.
    """
    index = read_index(locate(path, options.get("revision"), weights=False))
    kinds = [kind for kind, model in FAMILIES.items() if inputs and model.also_reads(index)]
    kinds += [kind for kind, model in FAMILIES.items() if model.reads(index)]
    kind = next(iter(kinds), None)
    if kind is None:
        supported = ", ".join(dict.fromkeys(model.stock for model in FAMILIES.values()))
        raise InputError(f"model {path!r} is a {index['_class_name']}; afterflow knows {supported}")
    for name in options:
        if name not in {field.name for field in fields(kind)}:
            raise ConfigError(f"--{name.replace('_', '-')}: {kind.__name__} has no such option; leave it out")
    return replace(kind(path), dtype=dtype, **{**SHIPPED_OPTIONS.get(path, {}), **options})


def usual_guidance(path: str, revision: str | None = None) -> float:
    """Return the guidance scale of the authors of the pipeline at `path`, which is 1 for those that are shipped.

    InputError where no family draws with it.
    """
    if path in SHIPPED:
        return 1.0
    config = pretrained(path, "float32", {"revision": revision})
    return FAMILIES[type(config)].guidance_of(locate(path, revision, weights=False))


def check_guidance(config: Pretrained, scale: float) -> None:
    """Raise ConfigError for guidance of a distilled pipeline; no weights are fetched."""
    FAMILIES[type(config)].check_guidance(locate(config.path, config.revision, weights=False), scale)
