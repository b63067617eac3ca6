"""Make the parts of a tiny Stable Diffusion 3 from the world's own pictures, and save them as a diffusers pipeline.

The autoencoder and the text encoders are trained here; the transformer keeps its random weights.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextModelWithProjection

from afterflow.shapes.prompts import Record, draw, facts, hard_negative, held_out
from afterflow.shapes.render import render_batch
from afterflow.shapes.world import TAGS
from afterflow.tiny.autoencoder import make_autoencoder, reconstruct, to_tensor, train_autoencoder
from afterflow.tiny.text import (
    PROJECTION,
    WIDTHS,
    Pairs,
    edit_accuracy,
    make_text_encoder,
    probe_spelling,
    train_text_encoders,
)
from afterflow.tiny.tokenizer import make_tokenizer

SIZE = 32
SIGN_SHARE = 0.45
"""Of the training pictures: one-pixel strokes are the hardest thing to keep."""


def transformer_config(layers: int = 6, heads: int = 4) -> dict[str, object]:
    """Arguments of SD3Transformer2DModel: 3.3 M parameters, at most 16 latent tokens at 32 px, 64 at 64 px."""
    return {
        "sample_size": SIZE // 4,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": layers,
        "num_attention_heads": heads,
        "attention_head_dim": 32,
        "qk_norm": "rms_norm",
        "joint_attention_dim": sum(WIDTHS),
        "caption_projection_dim": heads * 32,
        "pooled_projection_dim": len(WIDTHS) * PROJECTION,
        "pos_embed_max_size": 16,
    }


def assemble(
    vae: AutoencoderKL, encoders: Sequence[CLIPTextModelWithProjection], transformer: SD3Transformer2DModel
) -> StableDiffusion3Pipeline:
    """The parts as the pipeline that diffusers knows; there is no T5."""
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=make_tokenizer(),
        text_encoder_2=encoders[1],
        tokenizer_2=make_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def untrained() -> StableDiffusion3Pipeline:
    """The whole pipeline with random weights, for tests of plumbing."""
    encoders = [make_text_encoder(width) for width in WIDTHS]
    return assemble(make_autoencoder(), encoders, SD3Transformer2DModel(**transformer_config()))


def draw_records(split: str, count: int, rng: np.random.Generator) -> list[Record]:
    """Records of every tag, `SIGN_SHARE` of them signs."""
    shapes = [tag for tag in TAGS if tag != "text"]
    signs = rng.random(count) < SIGN_SHARE
    tags = ["text" if sign else shapes[rng.integers(len(shapes))] for sign in signs]
    return [draw(split, tag, rng, SIZE) for tag in tags]


def edit(record: Record, rng: np.random.Generator) -> Record:
    """One fact away; the record itself where that fact is held out, which training may not see."""
    edited = hard_negative(record, rng)
    return record if any(held_out(fact) for fact in facts(edited)) else edited


def make_pairs(records: Sequence[Record], rng: np.random.Generator) -> Pairs:
    prompts = [record["prompt"] for record in records]
    return Pairs(render_batch(records, SIZE, rng), prompts, [edit(record, rng)["prompt"] for record in records])


def measure_autoencoder(vae: AutoencoderKL, records, images, generator) -> dict[str, float]:
    raise NotImplementedError
