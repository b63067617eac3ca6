"""Names of layers: in diffusers, and in the models' own code, which kohya's trainers and ComfyUI use.

There query, key and value are one layer where diffusers has three.  Some files write underscores for dots.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

from ...system.errors import InputError

BLOCK_NUMBER = re.compile(r"(?:(?<=blocks[._])|(?<=layers[._])|(?<=refiner[._]))\d+(?=[._])")
"""Number of the block in a layer's name."""


class OriginalLayer(NamedTuple):
    """Where a layer of diffusers is in the original code: some rows of a layer there."""

    name: str
    """Name of the layer in the original code."""
    part: int = 0
    """Which of the layers in it this one is."""
    widths: tuple[int, ...] = (1,)
    """Rows of the layers in it, in units of the narrowest."""
    swaps: bool = False
    """Whether its halves, scale and shift, stand in the other order there, if it has just these two."""


def _fused(name: str, layers: Sequence[str], widths: tuple[int, ...] | None = None) -> dict[str, OriginalLayer]:
    return {layer: OriginalLayer(name, i, widths or (1,) * len(layers)) for i, layer in enumerate(layers)}


def _single(names: Mapping[str, str]) -> dict[str, OriginalLayer]:
    return {layer: OriginalLayer(name) for layer, name in names.items()}


def _same(*names: str) -> dict[str, OriginalLayer]:
    return _single({name: name for name in names})


def _swapped(layer: str, name: str) -> dict[str, OriginalLayer]:
    return {layer: OriginalLayer(name, swaps=True)}


def _embedders(parent: str = "time_text_embed", **names: str) -> dict[str, OriginalLayer]:
    """Name the two layers of each embedder of a time, a pooled prompt or a guidance scale."""
    layers = {}
    for embedder, name in names.items():
        first, second = name.split("|")
        layers |= {f"{parent}.{embedder}.linear_1": first, f"{parent}.{embedder}.linear_2": second}
    return _single(layers)


def _qkv(attention: str) -> list[str]:
    return [f"{attention}.to_{letter}" for letter in "qkv"]


def _added_qkv(attention: str) -> list[str]:
    return [f"{attention}.add_{letter}_proj" for letter in "qkv"]


_Z_IMAGE_BLOCK = _fused("attention.qkv", _qkv("attention")) | _single(
    {"attention.to_out.0": "attention.out", "adaLN_modulation.0": "adaLN_modulation.0"}
    | {f"feed_forward.w{i}": f"feed_forward.w{i}" for i in (1, 2, 3)}
)
_DOUBLE_ATTENTION = (
    _fused("img_attn.qkv", _qkv("attn"))
    | _fused("txt_attn.qkv", _added_qkv("attn"))
    | _single({"attn.to_out.0": "img_attn.proj", "attn.to_add_out": "txt_attn.proj"})
)
BLOCKS: dict[str, dict[str, tuple[str, dict[str, OriginalLayer]]]] = {
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
                    "norm1.linear": "x_block.adaLN_modulation.1",
                }
            )
            | _swapped("norm1_context.linear", "context_block.adaLN_modulation.1"),
        ),
        "": (
            "",
            _embedders(timestep_embedder="t_embedder.mlp.0|t_embedder.mlp.2")
            | _embedders(text_embedder="y_embedder.mlp.0|y_embedder.mlp.2")
            | _single({"context_embedder": "context_embedder", "proj_out": "final_layer.linear"})
            | _swapped("norm_out.linear", "final_layer.adaLN_modulation.1"),
        ),
    },
    "Flux": {
        "transformer_blocks": (
            "double_blocks",
            _DOUBLE_ATTENTION
            | _single(
                {
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
        "": (
            "",
            _embedders(timestep_embedder="time_in.in_layer|time_in.out_layer")
            | _embedders(text_embedder="vector_in.in_layer|vector_in.out_layer")
            | _embedders(guidance_embedder="guidance_in.in_layer|guidance_in.out_layer")
            | _single({"x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear"})
            | _swapped("norm_out.linear", "final_layer.adaLN_modulation.1"),
        ),
    },
    "Flux2Klein": {
        "transformer_blocks": (
            "double_blocks",
            _DOUBLE_ATTENTION
            | _single(
                {
                    "ff.linear_in": "img_mlp.0",
                    "ff.linear_out": "img_mlp.2",
                    "ff_context.linear_in": "txt_mlp.0",
                    "ff_context.linear_out": "txt_mlp.2",
                }
            ),
        ),
        "single_transformer_blocks": (
            "single_blocks",
            _single({"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"}),
        ),
        "": (
            "",
            _embedders("time_guidance_embed", timestep_embedder="time_in.in_layer|time_in.out_layer")
            | _embedders("time_guidance_embed", guidance_embedder="guidance_in.in_layer|guidance_in.out_layer")
            | _single({"x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear"})
            | _single(
                {
                    f"{name}.linear": f"{name}.lin"
                    for name in (
                        *("double_stream_modulation_img", "double_stream_modulation_txt"),
                        "single_stream_modulation",
                    )
                }
            )
            | _swapped("norm_out.linear", "final_layer.adaLN_modulation.1"),
        ),
    },
    "ZImage": {
        **{blocks: (blocks, _Z_IMAGE_BLOCK) for blocks in ("layers", "noise_refiner", "context_refiner")},
        "": (
            "",
            _same("cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2")
            | _single(
                {
                    "all_x_embedder.2-1": "x_embedder",
                    "all_final_layer.2-1.linear": "final_layer.linear",
                    "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
                }
            ),
        ),
    },
    "QwenImage": {
        "transformer_blocks": (
            "transformer_blocks",
            _same(*_qkv("attn"), *_added_qkv("attn"), "attn.to_out.0", "attn.to_add_out", "img_mod.1", "txt_mod.1")
            | _same("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
        ),
        "": (
            "",
            _same("img_in", "txt_in", "norm_out.linear", "proj_out")
            | _same(*(f"time_text_embed.timestep_embedder.linear_{i}" for i in (1, 2))),
        ),
    },
    "Wan": {
        "blocks": (
            "blocks",
            _single(
                {
                    f"attn{i}.{layer}": f"{attention}.{name}"
                    for i, attention in ((1, "self_attn"), (2, "cross_attn"))
                    for layer, name in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"))
                }
                | {"attn2.add_k_proj": "cross_attn.k_img", "attn2.add_v_proj": "cross_attn.v_img"}
                | {"ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"}
            ),
        ),
        "": (
            "",
            _single(
                {
                    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
                    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
                    "condition_embedder.time_proj": "time_projection.1",
                    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
                    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
                    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
                    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
                    "proj_out": "head.head",
                }
            ),
        ),
    },
}
"""Name of a family → blocks in diffusers → blocks in the original, and the linear layers inside.  Empty: outside."""
SAME_LAYERS = {"FluxKontext": "Flux", "QwenImageEdit": "QwenImage", "WanImage": "Wan", "WanPair": "Wan"}
"""Families whose network, or each of whose two, has the layers of another one's."""
BLOCKS |= {family: BLOCKS[other] for family, other in SAME_LAYERS.items()}


@cache
def original_layers(family: str) -> dict[str, OriginalLayer]:
    """Return where each layer of diffusers is in the original; # is the number of the block in both names."""
    return {
        f"{blocks}.#.{layer}" if blocks else layer: position._replace(
            name=f"{original_blocks}.#.{position.name}" if blocks else position.name
        )
        for blocks, (original_blocks, table) in BLOCKS[family].items()
        for layer, position in table.items()
    }


@cache
def layers_by_name(family: str) -> dict[str, dict[str, OriginalLayer]]:
    """Return the layers of diffusers, with their positions, that a name of either code, with underscores, means."""
    meanings: dict[str, dict[str, OriginalLayer]] = {}
    for layer, position in original_layers(family).items():
        meanings.setdefault(flat_name(position.name), {})[layer] = position
    return meanings | {flat_name(layer): {layer: OriginalLayer(layer)} for layer in original_layers(family)}


def flat_name(name: str) -> str:
    """Return a name with underscores for dots, as it is in kohya's files."""
    return name.replace(".", "_")


def diffusers_layers(name: str, family: str) -> dict[str, OriginalLayer]:
    """Return the layers of diffusers that a layer is, each with its position in it; none where the family has no such.

    name: of diffusers or of the original code, with dots or underscores, without a prefix.
    """
    number = BLOCK_NUMBER.search(name)
    meaning = layers_by_name(family).get(flat_name(BLOCK_NUMBER.sub("#", name, count=1)), {})
    return {layer.replace("#", number[0]) if number else layer: position for layer, position in meaning.items()}


def original_layer(layer: str, family: str) -> OriginalLayer:
    """Return where a layer of diffusers is in the model's own code.  InputError for a layer that is not there."""
    number = BLOCK_NUMBER.search(layer)
    position = original_layers(family).get(BLOCK_NUMBER.sub("#", layer, count=1))
    if position is None:
        raise InputError(
            f"layer {layer} of the LoRA has no place in {family}'s original code, so it cannot be exported"
        )
    return position._replace(name=position.name.replace("#", number[0])) if number else position
