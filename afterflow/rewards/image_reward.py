"""ImageReward (arXiv:2304.05977): how well people rate a picture for its prompt, read from BLIP by five linear layers.

The prompt's BERT attends to the picture's ViT; its first state is rated.  The released checkpoint is read by
transformers' modules under its own names, and says itself how large they are.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from torch import Tensor

from .base import RewardModels, Scored, Scorer, network_reward
from .clip import cropped, linear, read_weights

PUBLISHED = "THUDM/ImageReward"
BERT = "google-bert/bert-base-uncased"
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of its ratings; the released model takes them off."""
READS = 35
"""Tokens of a prompt; the rest is cut."""
HEAD = 64
"""Width of an attention head, in the ViT and in BERT."""


@network_reward("image_reward")
def image_reward(models: RewardModels) -> Scorer:
    """ImageReward v1, about -2 to 2.  Prompts are cut after 35 tokens; part `cut` counts those."""
    from transformers import AutoTokenizer

    given = models.weights.get("image_reward")
    file = Path(given or hf_hub_download(PUBLISHED, "ImageReward.pt"))
    stored = read_weights(file)
    vision, text = towers(stored)
    words = file.parent / "tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(words if words.is_dir() else BERT)
    weight, bias = linear(part(stored, "mlp."))
    size = vision.config.image_size
    for tower in (vision, text):
        tower.to(models.on, getattr(torch, models.dtype)).eval().requires_grad_(False)

    @torch.no_grad()
    def rate(images: np.ndarray, prompts: list[str]) -> Tensor:
        pixels = cropped(images, size).to(models.on, vision.dtype)
        seen = vision(pixel_values=pixels).last_hidden_state
        options = {"padding": "max_length", "truncation": True, "max_length": READS, "return_tensors": "pt"}
        tokens = tokenizer(prompts, **options).to(models.on)
        read = text(tokens.input_ids, attention_mask=tokens.attention_mask, encoder_hidden_states=seen)
        return read.last_hidden_state[:, 0].float().cpu() @ weight + bias

    def score(images: np.ndarray, records: Sequence[dict]) -> Scored:
        prompts = [record["prompt"] for record in records]
        rows = range(0, len(images), models.batch)
        rated = torch.cat([rate(images[i : i + models.batch], prompts[i : i + models.batch]) for i in rows])
        cut = [len(ids) > READS for ids in tokenizer(prompts)["input_ids"]]
        return Scored((rated.numpy() - MEAN) / STD, {"cut": np.array(cut, np.float64)})

    return score


def towers(stored: Mapping[str, Tensor]) -> tuple[Any, Any]:
    """The ViT and the BERT of a checkpoint in BLIP's own names; ValueError where it is not one."""
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    eye, words = part(stored, "blip.visual_encoder."), part(stored, "blip.text_encoder.")
    if "pos_embed" not in eye or "embeddings.word_embeddings.weight" not in words:
        raise ValueError("it is no checkpoint of ImageReward: it lacks blip.visual_encoder and blip.text_encoder")
    wide, patch = eye["patch_embed.proj.weight"].shape[0], eye["patch_embed.proj.weight"].shape[-1]
    vision = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=wide,
            intermediate_size=eye["blocks.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=layers(eye, "blocks"),
            num_attention_heads=wide // HEAD,
            image_size=patch * round((eye["pos_embed"].shape[1] - 1) ** 0.5),
            patch_size=patch,
            layer_norm_eps=1e-6,  # timm's, with which BLIP was trained
        )
    )
    many, read = words["embeddings.word_embeddings.weight"].shape
    text = BlipTextModel(
        BlipTextConfig(
            vocab_size=many,
            hidden_size=read,
            encoder_hidden_size=wide,
            intermediate_size=words["encoder.layer.0.intermediate.dense.weight"].shape[0],
            num_hidden_layers=layers(words, "encoder.layer"),
            num_attention_heads=read // HEAD,
            max_position_embeddings=words["embeddings.position_embeddings.weight"].shape[0],
            hidden_act="gelu",
            layer_norm_eps=1e-12,
        ),
        add_pooling_layer=False,
    )
    vision.load_state_dict({vision_name(name): value for name, value in eye.items()})
    text.load_state_dict({name: value for name, value in words.items() if not name.endswith("position_ids")})
    return vision, text


def part(stored: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}


def layers(stored: Mapping[str, Tensor], name: str) -> int:
    numbers = (re.match(rf"{re.escape(name)}\.(\d+)\.", key) for key in stored)
    return 1 + max(int(found.group(1)) for found in numbers if found)


VISION = (
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj.", "embeddings.patch_embedding."),
    ("blocks.", "encoder.layers."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
)


def vision_name(name: str) -> str:
    """timm's name of a ViT's weight, which BLIP keeps → transformers'."""
    if name.startswith("norm."):
        return "post_layernorm." + name.removeprefix("norm.")
    for theirs, ours in VISION:
        name = name.replace(theirs, ours)
    return name
