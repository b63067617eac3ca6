"""What the tensors of a LoRA's file are, by all of their names, whichever program wrote it."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...system.errors import InputError
from .factors import LoRAFactors
from .layer_names import BLOCKS, SAME_LAYERS, OriginalLayer, diffusers_layers

FACTOR = re.compile(r"[._]lora(?:_linear_layer)?[._](?P<factor>A|B|down|up)(?:\.(?!bias)\w+)?(?:\.weight)?$")
"""End of a factor's name: .lora_A.weight, .lora_down.weight, .lora_A.default.weight, .lora.down.weight, and so on."""
PREFIX = re.compile(
    r"(?:(?:base_model\.model|(?:model\.)?diffusion_model|transformer|pipe\.dit|module)\."
    r"|lora_(?:unet|transformer)_+|lycoris_)*"
)
"""What programs write before the name of a layer."""
PEFT = "base_model.model."
"""What peft writes before the name that a layer has in the network it was given."""
TEXT_ENCODER = re.compile(r"(?:lora_te\d?_|te\d?[._]|text_encoders?(?:_\d)?\.|text_model\.|clip_[lg]\.|t5xxl\.)")
KINDS = {
    r"dora_scale|lora_magnitude_vector": "DoRA",
    r"hada_[wt]\d": "LoHa",
    r"lokr_[wt]\d": "LoKr",
    r"[.]oft_|boft": "OFT",
    r"lora_mid": "a LoRA of convolutions with a core",
    r"\.[ab][12]\.weight$": "GLoRA",
    r"\.diff(_b)?$|set_weight$|[wb]_norm$|norm\w*\.(weight|bias|scale)$": "a change of whole weights",
    r"bias$": "a LoRA with biases",
}
"""Names that plain LoRAs do not have, and what has them."""
MOST_RANK = 65536
"""Highest rank that a layer of a file may have."""
BASE_CHANGES = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts of peft's that change the frozen weights as well."""


class LayerTensors(NamedTuple):
    """The tensors of one layer in a file."""

    A: Tensor
    """Factor next to the input, (r, in)."""
    B: Tensor
    """Factor next to the output, (out, r)."""
    alpha: float | None
    """Its alpha, where the file has one for it."""
    name: str
    """Its name in the network that the program gave to peft, which a pattern of peft's configuration may give whole."""


def layer_tensors(tensors: Mapping[str, Tensor], source: str) -> dict[str, LayerTensors]:
    """Return the tensors of each layer by its name in the file, without its prefix.

    InputError says what a file has that is no plain LoRA of the transformer.
    """
    check_plain(tensors, source)
    by_layer: dict[str, dict[str, Tensor]] = {}
    names: dict[str, str] = {}
    for key, tensor in tensors.items():
        factor = FACTOR.search(key)
        layer = key[: factor.start()] if factor else key.removesuffix(".alpha")
        role = {"down": "A", "up": "B"}.get(factor["factor"], factor["factor"]) if factor else "alpha"
        bare = PREFIX.sub("", layer, count=1)
        names[bare] = layer.removeprefix(PEFT) if layer.startswith(PEFT) else bare
        parts = by_layer.setdefault(bare, {})
        if role in parts:
            raise InputError(f"LoRA {source}: {key} is there twice, by two names; it is two LoRAs, so split the file")
        parts[role] = tensor
    if not by_layer:
        raise InputError(f"LoRA {source}: it has no tensors; take another file")
    return {layer: whole_layer(layer, names[layer], parts, source) for layer, parts in by_layer.items()}


def check_tensors(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise InputError for a tensor that is not of finite floating-point numbers; an alpha may be a whole number."""
    for key, tensor in tensors.items():
        whole = key.endswith(".alpha") and tensor.dtype in (torch.int8, torch.int16, torch.int32, torch.int64)
        if not (tensor.is_floating_point() or whole):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InputError(f"LoRA {source}: {key} is of {kind}, and weights are of floating point; it is damaged")
        if not key.endswith(".alpha") and not tensor.float().isfinite().all():
            raise InputError(f"LoRA {source}: {key} holds NaN or infinity; the file is damaged, or its training failed")


def check_plain(keys: Iterable[str], source: str) -> None:
    """Raise InputError for what adapts text encoders, or is more than B A."""
    keys = list(keys)
    texts = [key for key in keys if TEXT_ENCODER.match(key)]
    if texts:
        raise InputError(
            f"LoRA {source}: it adapts text encoders as well ({examples(texts)}), which afterflow does not; leave them "
            "out, or train one of the transformer alone"
        )
    odd = [key for key in keys if FACTOR.search(key) is None and not key.endswith(".alpha")]
    if odd:
        kind = next((kind for pattern, kind in KINDS.items() if re.search(pattern, odd[0])), "of no known kind")
        raise InputError(
            f"LoRA {source}: it is more than B A ({examples(odd)}: {kind}); only plain LoRAs can be read, so make one "
            "with the program that wrote it, or merge it into the pipeline's weights there"
        )


def examples(keys: list[str]) -> str:
    """Name the first of some keys and count the others."""
    return keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more"


def whole_layer(layer: str, name: str, parts: Mapping[str, Tensor], source: str) -> LayerTensors:
    """Return the tensors of a layer.  InputError where one is missing, or where they do not fit together."""
    if not {"A", "B"} <= parts.keys():
        raise InputError(f"LoRA {source}: {layer} has only one of its two factors, or none; the file is damaged")
    A, B, alpha = parts["A"], parts["B"], parts.get("alpha")
    if A.ndim != 2 or B.ndim != 2:
        raise InputError(f"LoRA {source}: {layer} is a convolution; only LoRAs of linear layers can be read")
    if min(*A.shape, *B.shape) == 0 or len(A) > MOST_RANK:
        raise InputError(
            f"LoRA {source}: the factors of {layer} are {tuple(A.shape)} and {tuple(B.shape)}; it is damaged"
        )
    if len(A) != B.shape[1]:
        raise InputError(f"LoRA {source}: the factors of {layer} have ranks {len(A)} and {B.shape[1]}; it is damaged")
    if alpha is not None and (alpha.is_complex() or alpha.numel() != 1 or not math.isfinite(alpha.item())):
        raise InputError(f"LoRA {source}: the alpha of {layer} is not one finite number; the file is damaged")
    return LayerTensors(A, B, None if alpha is None else alpha.item(), name)


def check_factors(factors: LoRAFactors, positions: Mapping[str, OriginalLayer], layer: str) -> None:
    """Raise InputError for a scale beyond all numbers, and for rows that are not those of the layers in one."""
    if not factors.B.isfinite().all():
        raise InputError(f"{layer} is infinite with its alpha; the file is damaged")
    widths = sum(next(iter(positions.values())).widths)
    if len(factors.B) % widths:
        raise InputError(f"{layer} has {len(factors.B)} rows for {widths} layers of one width; the file is damaged")


def scaled(tensors: LayerTensors, config: Mapping[str, Any]) -> LoRAFactors:
    """Return the fp32 factors of a layer with its scale in B.

    The scale is alpha / rank, by the layer's own alpha or else by the configuration of peft; without both it is 1,
    as in diffusers, ComfyUI and kohya's trainers.
    """
    from peft.utils.other import get_pattern_key

    rank = len(tensors.A)
    if tensors.alpha is not None:
        scale = tensors.alpha / rank
    elif "lora_alpha" in config:
        patterns = config.get("alpha_pattern") or {}
        alpha = patterns.get(get_pattern_key(patterns.keys(), tensors.name), config["lora_alpha"])
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    else:
        scale = 1.0
    return LoRAFactors(tensors.A.float(), scale * tensors.B.float())


def check_config(config: Mapping[str, Any], source: str) -> None:
    """Raise InputError where a configuration of peft says that its LoRA is more than B A."""
    odd = [name for name in ("use_dora", "fan_in_fan_out", "lora_bias", "layer_replication") if config.get(name)]
    start = config.get("init_lora_weights")
    odd += [f"init_lora_weights {start}"] if isinstance(start, str) and start.startswith(BASE_CHANGES) else []
    if odd:
        raise InputError(f"LoRA {source}: it has {' and '.join(odd)}; only plain LoRAs, W + B A, can be read")
    for name in ("alpha_pattern", "rank_pattern"):
        pattern = config.get(name) or {}
        # peft reads the names as regular expressions, which could take for ever.
        if not isinstance(pattern, dict) or not all(re.fullmatch(r"\^?[\w.\\]{1,500}\$?", key) for key in pattern):
            raise InputError(f"LoRA {source}: its {name} does not give layers by their names; write it by plain names")
    for alpha in (config.get("lora_alpha", 1), *(config.get("alpha_pattern") or {}).values()):
        check_alpha(alpha, source)


def check_alpha(alpha: Any, source: str) -> None:
    """Raise InputError for an alpha that is no positive, finite number."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise InputError(f"LoRA {source}: its alpha is {alpha!r}, and must be a number above 0; the file is damaged")


def layer_positions(
    names: Iterable[str], family: str | None, source: str
) -> tuple[dict[str, dict[str, OriginalLayer]], str | None]:
    """Return the positions of diffusers' layers in each layer of a file, and the one family that has all of them.

    names: of layers in the file.  family: the model's; None: that of the names, and None is returned where several
    families have them, all with the same meaning.  Of families with one network the first is returned.  InputError
    where no family fits, or where it must be named.
    """
    names = list(names)
    families = [name for name in BLOCKS if name == family or name not in SAME_LAYERS]
    positions = {name: {layer: diffusers_layers(layer, name) for layer in names} for name in families}
    whole = {name: meanings for name, meanings in positions.items() if all(meanings.values())}
    if family is not None and family not in whole:
        strange = [layer for layer, meanings in positions[family].items() if not meanings]
        advice = f"it is of {' or '.join(whole)}" if whole else "take the model it was made for"
        raise InputError(f"LoRA {source}: {examples(strange)} is no layer of {family} that afterflow knows; {advice}")
    if not whole:
        strange = min(([layer for layer in names if not meanings[layer]] for meanings in positions.values()), key=len)
        raise InputError(
            f"LoRA {source}: {examples(strange)} is no layer that afterflow knows, of {', '.join(BLOCKS)}; take a LoRA "
            "of one of them"
        )
    if family is None and any(meanings != next(iter(whole.values())) for meanings in whole.values()):
        raise InputError(f"LoRA {source} may be of {' or '.join(whole)}; say which by --family of: afterflow export")
    family = family or (next(iter(whole)) if len(whole) == 1 else None)
    return positions[family or next(iter(whole))], family
