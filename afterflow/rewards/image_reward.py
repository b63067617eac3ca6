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

from ..system.errors import InputError
from .base import RewardModels, Scored, Scorer, network_reward
from .canaries import CAPTIONED
from .clip import crop_square, merge_linear_layers, read_weights

IMAGE_REWARD = "THUDM/ImageReward"
BERT = "google-bert/bert-base-uncased"
RATING_MEAN = 0.16717362830052426
RATING_STD = 1.0333394966054072
"""Mean and standard deviation of its ratings, by which the released model normalises them."""
MAX_PROMPT_TOKENS = 35
"""Length at which a prompt is cut, in tokens."""
HEAD_WIDTH = 64
"""Width of an attention head, in the ViT and in BERT."""


@network_reward("image_reward", canary=CAPTIONED)
def image_reward(models: RewardModels) -> Scorer:
    """Score by ImageReward v1, about -2 to 2.  Prompts are cut after 35 tokens; part `cut` counts those."""
    from transformers import AutoTokenizer

    given = models.weights.get("image_reward")
    file = Path(given or hf_hub_download(IMAGE_REWARD, "ImageReward.pt"))
    stored = read_weights(file)
    vision, text = load_towers(stored)
    words = file.parent / "tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(words if words.is_dir() else BERT)
    weight, bias = merge_linear_layers(strip_prefix(stored, "mlp."))
    size = vision.config.image_size
    for tower in (vision, text):
        tower.to(models.torch_device, getattr(torch, models.dtype)).eval().requires_grad_(False)

    @torch.no_grad()
    def rate(images: np.ndarray, prompts: list[str]) -> Tensor:
        pixels = crop_square(images, size).to(models.torch_device, vision.dtype)
        seen = vision(pixel_values=pixels).last_hidden_state
        options = {"padding": "max_length", "truncation": True, "max_length": MAX_PROMPT_TOKENS, "return_tensors": "pt"}
        tokens = tokenizer(prompts, **options).to(models.torch_device)
        read = text(tokens.input_ids, attention_mask=tokens.attention_mask, encoder_hidden_states=seen)
        return read.last_hidden_state[:, 0].float().cpu() @ weight + bias

    def score(images: np.ndarray, records: Sequence[dict]) -> Scored:
        prompts = [record["prompt"] for record in records]
        rows = range(0, len(images), models.batch)
        rated = torch.cat([rate(images[i : i + models.batch], prompts[i : i + models.batch]) for i in rows])
        cut = [len(ids) > MAX_PROMPT_TOKENS for ids in tokenizer(prompts)["input_ids"]]
        return Scored((rated.numpy() - RATING_MEAN) / RATING_STD, {"cut": np.array(cut, np.float64)})

    return score


def load_towers(stored: Mapping[str, Tensor]) -> tuple[Any, Any]:
    """Return the ViT and the BERT of a checkpoint in BLIP's own names; raise InputError where it is not one."""
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    eye, words = (strip_prefix(stored, f"blip.{name}_encoder.") for name in ("visual", "text"))
    if "pos_embed" not in eye or "embeddings.word_embeddings.weight" not in words:
        raise InputError("it is no checkpoint of ImageReward: it lacks blip.visual_encoder and blip.text_encoder")
    wide, patch = eye["patch_embed.proj.weight"].shape[0], eye["patch_embed.proj.weight"].shape[-1]
    vision = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=wide,
            intermediate_size=eye["blocks.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=count_layers(eye, "blocks"),
            num_attention_heads=wide // HEAD_WIDTH,
            image_size=patch * round((eye["pos_embed"].shape[1] - 1) ** 0.5),
            patch_size=patch,
            layer_norm_eps=1e-6,  # timm's, with which BLIP was trained
        )
    )
    vocabulary, width = words["embeddings.word_embeddings.weight"].shape
    text = BlipTextModel(
        BlipTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            encoder_hidden_size=wide,
            intermediate_size=words["encoder.layer.0.intermediate.dense.weight"].shape[0],
            num_hidden_layers=count_layers(words, "encoder.layer"),
            num_attention_heads=width // HEAD_WIDTH,
            max_position_embeddings=words["embeddings.position_embeddings.weight"].shape[0],
            hidden_act="gelu",
            layer_norm_eps=1e-12,
        ),
        add_pooling_layer=False,
    )
    vision.load_state_dict({vision_name(name): value for name, value in eye.items()})
    text.load_state_dict({name: value for name, value in words.items() if not name.endswith("position_ids")})
    return vision, text


def strip_prefix(stored: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the weights whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}


def count_layers(stored: Mapping[str, Tensor], name: str) -> int:
    """Return how many layers, numbered after a name, the weights have."""
    numbers = (re.match(rf"{re.escape(name)}\.(\d+)\.", key) for key in stored)
    return 1 + max(int(match.group(1)) for match in numbers if match)


_VISION_NAMES = (
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
    """Return transformers' name of a ViT's weight for timm's, which BLIP keeps."""
    if name.startswith("norm."):
        return "post_layernorm." + name.removeprefix("norm.")
    for theirs, ours in _VISION_NAMES:
        name = name.replace(theirs, ours)
    return name
