"""LoRAs in other programs' terms: kohya's trainers and ComfyUI go by the names of layers in the models' own code.

There query, key and value are one layer where diffusers has three.  A LoRA of the three is one of the fused layer: its
A's below each other, its B's on the diagonal.  The way back takes rows of B, and the columns that are not all zero.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...system.names import Family
from .factors import LoRAFactors


class Place(NamedTuple):
    """Where a layer of diffusers is in the original: rows of a layer, whose parts are so wide beside each other."""

    name: str
    part: int = 0
    widths: tuple[int, ...] = (1,)


def fused(name: str, layers: Sequence[str], widths: tuple[int, ...] | None = None) -> dict[str, Place]:
    return {layer: Place(name, i, widths or (1,) * len(layers)) for i, layer in enumerate(layers)}


def alone(names: Mapping[str, str]) -> dict[str, Place]:
    return {layer: Place(name) for layer, name in names.items()}


def qkv(attention: str) -> list[str]:
    return [f"{attention}.to_{letter}" for letter in "qkv"]


def added_qkv(attention: str) -> list[str]:
    return [f"{attention}.add_{letter}_proj" for letter in "qkv"]


# Family → blocks in diffusers → blocks in the original, and the layers inside; None where both are the same.
BLOCKS: dict[Family, dict[str, tuple[str, dict[str, Place] | None]]] = {
    "SD3": {
        "transformer_blocks": (
            "joint_blocks",
            fused("x_block.attn.qkv", qkv("attn"))
            | fused("context_block.attn.qkv", added_qkv("attn"))
            | fused("x_block.attn2.qkv", qkv("attn2"))
            | alone(
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
            fused("img_attn.qkv", qkv("attn"))
            | fused("txt_attn.qkv", added_qkv("attn"))
            | alone(
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
            fused("linear1", [*qkv("attn"), "proj_mlp"], (1, 1, 1, 4))
            | alone({"proj_out": "linear2", "norm.linear": "modulation.lin"}),
        ),
    },
    "QwenImage": {"transformer_blocks": ("transformer_blocks", None)},
    "Wan": {
        "blocks": (
            "blocks",
            alone(
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


KNOWN = (*(f".lora_{name}.weight" for name in ("down", "up", "A", "B")), ".alpha")


def to_kohya(layers: Mapping[str, LoRAFactors], family: Family) -> dict[str, Tensor]:
    """Layers by diffusers' names → lora_unet_* tensors with their alphas; ValueError for a layer without a place."""
    whole: dict[Place, dict[int, LoRAFactors]] = {}
    for layer, factors in layers.items():
        place = original(layer, family)
        whole.setdefault(place._replace(part=0), {})[place.part] = factors
    tensors = {}
    for place, parts in whole.items():
        key, joined = f"lora_unet_{place.name.replace('.', '_')}", on_diagonal(parts, place.widths)
        tensors[f"{key}.lora_down.weight"] = joined.A.contiguous()
        tensors[f"{key}.lora_up.weight"] = joined.B.contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(float(len(joined.A)))  # the scale is in B already
    return tensors


def original(layer: str, family: Family) -> Place:
    """Where a layer of diffusers is in the model's own code."""
    blocks, number, inside = [*layer.split(".", 2), "", ""][:3]
    theirs, table = BLOCKS[family].get(blocks, ("", {}))
    place = Place(inside) if table is None else table.get(inside)
    if place is None:
        raise ValueError(
            f"layer {layer} of the LoRA has no place in {family}'s original code, so it cannot be exported"
        )
    return place._replace(name=f"{theirs}.{number}.{place.name}")


def on_diagonal(parts: Mapping[int, LoRAFactors], widths: Sequence[int]) -> LoRAFactors:
    """One LoRA of a fused layer from those of its parts; a part that is missing adds nothing."""
    unit = next(len(factors.B) // widths[i] for i, factors in parts.items())
    some = next(iter(parts.values()))
    none = LoRAFactors(some.A[:0], some.B.new_zeros(0, 0))
    down = torch.cat([parts.get(i, none).A for i in range(len(widths))])
    rows = [parts[i].B if i in parts else some.B.new_zeros(unit * width, 0) for i, width in enumerate(widths)]
    return LoRAFactors(down, torch.block_diag(*rows))


def from_original(tensors: Mapping[str, Tensor], family: Family, source: str) -> dict[str, LoRAFactors]:
    """lora_unet_* or diffusion_model.* tensors → layers by diffusers' names; ValueError for what has no place there."""
    layers, odd = {}, [key for key in tensors if not key.endswith(KNOWN)]
    if any(key.startswith("lora_te") for key in tensors):
        raise ValueError(f"LoRA {source}: it adapts text encoders as well, which afterflow does not; take one without")
    if odd:
        raise ValueError(f"LoRA {source}: it is more than B A ({odd[0]}); only plain LoRAs can be read")
    for key in dict.fromkeys(key.rsplit(".lora_", 1)[0] for key in tensors if ".lora_" in key):
        down, up = (
            next(
                (tensors[f"{key}.lora_{name}.weight"] for name in names if f"{key}.lora_{name}.weight" in tensors), None
            )
            for names in (("down", "A"), ("up", "B"))
        )
        if down is None or up is None:
            raise ValueError(f"LoRA {source}: {key} has only one of its two factors")
        alpha = tensors.get(f"{key}.alpha")
        scaled = up.float() * (1.0 if alpha is None else float(alpha) / len(down))
        for layer, place in diffusers_layers(key, family, source).items():
            unit = len(up) // sum(place.widths)
            first = unit * sum(place.widths[: place.part])
            B = scaled[first : first + unit * place.widths[place.part]]
            used = B.any(0)
            if used.any():
                layers[layer] = LoRAFactors(down.float()[used], B[:, used])
    return layers


def diffusers_layers(key: str, family: Family, source: str) -> dict[str, Place]:
    """What diffusers has instead of a layer of the original, by its name in a LoRA."""
    name = key.removeprefix("lora_unet_").removeprefix("diffusion_model.")
    for blocks, (theirs, table) in BLOCKS[family].items():
        found = re.fullmatch(rf"{theirs}[._](\d+)[._](.+)", name)
        if found is None:
            continue
        number, inside = found.groups()
        if table is None:
            return {f"{blocks}.{number}.{unflattened(inside)}": Place(inside)}
        flat = inside.replace(".", "_")
        layers = {layer: place for layer, place in table.items() if place.name.replace(".", "_") == flat}
        if layers:
            return {f"{blocks}.{number}.{layer}": place for layer, place in layers.items()}
    raise ValueError(
        f"LoRA {source}: {key} is no layer of {family} that afterflow knows; take the model it was made for"
    )


def unflattened(name: str) -> str:
    """attn_to_out_0 → attn.to_out.0, of layers whose names are diffusers' own."""
    for word in ("attn", "img_mlp", "txt_mlp", "img_mod", "txt_mod", "net"):
        name = re.sub(rf"\b{word}_", f"{word}.", name)
    return re.sub(r"_(\d+)", r".\1", re.sub(r"\.(\d+)_", r".\1.", name))
