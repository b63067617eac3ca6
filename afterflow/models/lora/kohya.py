"""LoRAs in other programs' names: kohya's trainers and ComfyUI use the names of layers in the models' own code.

There query, key and value are one layer where diffusers has three.  A LoRA of the three is one of the fused layer: its
A's below each other, its B's on the diagonal.  The way back takes rows of B, and the columns that are not all zero.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...system.errors import InputError
from .factors import LoRAFactors, fuse_factors


class OriginalLayer(NamedTuple):
    """Where a layer of diffusers is in the original code: some rows of a layer there."""

    name: str
    """Name of the layer in the original code."""
    part: int = 0
    """Which of the layers in it this one is."""
    widths: tuple[int, ...] = (1,)
    """Rows of the layers in it, in units of the narrowest."""


def _fused(name: str, layers: Sequence[str], widths: tuple[int, ...] | None = None) -> dict[str, OriginalLayer]:
    return {layer: OriginalLayer(name, i, widths or (1,) * len(layers)) for i, layer in enumerate(layers)}


def _single(names: Mapping[str, str]) -> dict[str, OriginalLayer]:
    return {layer: OriginalLayer(name) for layer, name in names.items()}


def _qkv(attention: str) -> list[str]:
    return [f"{attention}.to_{letter}" for letter in "qkv"]


def _added_qkv(attention: str) -> list[str]:
    return [f"{attention}.add_{letter}_proj" for letter in "qkv"]


BLOCKS: dict[str, dict[str, tuple[str, dict[str, OriginalLayer] | None]]] = {
    "SD3": {
        "transformer_blocks": (
            "joint_blocks",
            _fused("x_block.attn.qkv", _qkv("attn"))
            | _fused("context_block.attn.qkv", _added_qkv("attn"))
            | _fused("x_block.attn2.qkv", _qkv("attn2"))
            | _single(
                {
                    "attn.to_out.0": "x_block.attn.proj",
                    "attn.to_add_out": "context_block.attn.proj",
                    "attn2.to_out.0": "x_block.attn2.proj",
                    "ff.net.0.proj": "x_block.mlp.fc1",
                    "ff.net.2": "x_block.mlp.fc2",
                    "ff_context.net.0.proj": "context_block.mlp.fc1",
                    "ff_context.net.2": "context_block.mlp.fc2",
                }
            ),
        )
    },
    "Flux": {
        "transformer_blocks": (
            "double_blocks",
            _fused("img_attn.qkv", _qkv("attn"))
            | _fused("txt_attn.qkv", _added_qkv("attn"))
            | _single(
                {
                    "attn.to_out.0": "img_attn.proj",
                    "attn.to_add_out": "txt_attn.proj",
                    "ff.net.0.proj": "img_mlp.0",
                    "ff.net.2": "img_mlp.2",
                    "ff_context.net.0.proj": "txt_mlp.0",
                    "ff_context.net.2": "txt_mlp.2",
                    "norm1.linear": "img_mod.lin",
                    "norm1_context.linear": "txt_mod.lin",
                }
            ),
        ),
        "single_transformer_blocks": (
            "single_blocks",
            _fused("linear1", [*_qkv("attn"), "proj_mlp"], (1, 1, 1, 4))
            | _single({"proj_out": "linear2", "norm.linear": "modulation.lin"}),
        ),
    },
    "QwenImage": {"transformer_blocks": ("transformer_blocks", None)},
    "Wan": {
        "blocks": (
            "blocks",
            _single(
                {
                    f"attn{i}.{layer}": f"{attention}.{name}"
                    for i, attention in ((1, "self_attn"), (2, "cross_attn"))
                    for layer, name in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"))
                }
                | {"ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"}
            ),
        )
    },
}
"""Name of a family → blocks in diffusers → blocks in the original, and the layers inside.  None: they are the same."""
FACTOR_NAMES = (("down", "A"), ("up", "B"))
"""Names of the two factors in kohya's files, and in ComfyUI's."""
SUFFIXES = (*(f".lora_{name}.weight" for names in FACTOR_NAMES for name in names), ".alpha")


def to_kohya(layers: Mapping[str, LoRAFactors], family: str) -> dict[str, Tensor]:
    """Return lora_unet_* tensors with their alphas.  InputError for a layer that the original code does not have."""
    fused: dict[OriginalLayer, dict[int, LoRAFactors]] = {}
    for layer, factors in layers.items():
        original = original_layer(layer, family)
        fused.setdefault(original._replace(part=0), {})[original.part] = factors
    tensors = {}
    for original, parts in fused.items():
        key, factors = f"lora_unet_{original.name.replace('.', '_')}", fuse_factors(parts, original.widths)
        tensors[f"{key}.lora_down.weight"] = factors.A.contiguous()
        tensors[f"{key}.lora_up.weight"] = factors.B.contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(float(len(factors.A)))  # the scale is in B already
    return tensors


def original_layer(layer: str, family: str) -> OriginalLayer:
    """Return where a layer of diffusers is in the model's own code.  InputError for a layer that is not there."""
    blocks, number, inside = [*layer.split(".", 2), "", ""][:3]
    original_blocks, table = BLOCKS[family].get(blocks, ("", {}))
    original = OriginalLayer(inside) if table is None else table.get(inside)
    if original is None:
        raise InputError(
            f"layer {layer} of the LoRA has no place in {family}'s original code, so it cannot be exported"
        )
    return original._replace(name=f"{original_blocks}.{number}.{original.name}")


def from_original(tensors: Mapping[str, Tensor], family: str, source: str) -> dict[str, LoRAFactors]:
    """Return the layers, by diffusers' names, of lora_unet_* or diffusion_model.* tensors.

    Raises InputError for what is no LoRA of this family's transformer alone, or is more than B A.
    """
    layers, odd = {}, [key for key in tensors if not key.endswith(SUFFIXES)]
    if any(key.startswith("lora_te") for key in tensors):
        raise InputError(f"LoRA {source}: it adapts text encoders as well, which afterflow does not; take one without")
    if odd:
        raise InputError(f"LoRA {source}: it is more than B A ({odd[0]}); only plain LoRAs can be read")
    for key in dict.fromkeys(key.rsplit(".lora_", 1)[0] for key in tensors if ".lora_" in key):
        factors = scaled_factors(tensors, key, source)
        for layer, original in diffusers_layers(key, family, source).items():
            unit = len(factors.B) // sum(original.widths)
            first = unit * sum(original.widths[: original.part])
            B = factors.B[first : first + unit * original.widths[original.part]]
            used = B.any(0)
            if used.any():
                layers[layer] = LoRAFactors(factors.A[used], B[:, used])
    return layers


def scaled_factors(tensors: Mapping[str, Tensor], key: str, source: str) -> LoRAFactors:
    """Return the fp32 factors of a layer, alpha / rank in B.  InputError where one is missing."""
    down, up = (
        tensors.get(f"{key}.lora_{name}.weight", tensors.get(f"{key}.lora_{other}.weight"))
        for name, other in FACTOR_NAMES
    )
    if down is None or up is None:
        raise InputError(f"LoRA {source}: {key} has only one of its two factors")
    alpha = tensors.get(f"{key}.alpha")
    return LoRAFactors(down.float(), up.float() * (1.0 if alpha is None else float(alpha) / len(down)))


def diffusers_layers(key: str, family: str, source: str) -> dict[str, OriginalLayer]:
    """Return what diffusers has instead of a layer of the original, by its name in a LoRA.  InputError without one."""
    name = key.removeprefix("lora_unet_").removeprefix("diffusion_model.")
    for blocks, (original_blocks, table) in BLOCKS[family].items():
        match = re.fullmatch(rf"{original_blocks}[._](\d+)[._](.+)", name)
        if match is None:
            continue
        number, inside = match.groups()
        if table is None:
            return {f"{blocks}.{number}.{restore_dots(inside)}": OriginalLayer(inside)}
        flat = inside.replace(".", "_")
        layers = {layer: original for layer, original in table.items() if original.name.replace(".", "_") == flat}
        if layers:
            return {f"{blocks}.{number}.{layer}": original for layer, original in layers.items()}
    raise InputError(
        f"LoRA {source}: {key} is no layer of {family} that afterflow knows; take the model it was made for"
    )


def restore_dots(name: str) -> str:
    """Restore the dots of a layer's name that diffusers shares with the original: attn_to_out_0 → attn.to_out.0."""
    for word in ("attn", "img_mlp", "txt_mlp", "img_mod", "txt_mod", "net"):
        name = re.sub(rf"\b{word}_", f"{word}.", name)
    return re.sub(r"_(\d+)", r".\1", re.sub(r"\.(\d+)_", r".\1.", name))
