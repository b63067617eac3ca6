"""Make the parts of a tiny Stable Diffusion 3 from the world's own pictures, as a diffusers pipeline.

The autoencoder and the text encoders are trained here; the transformer keeps its random weights.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
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

from ...envs.geneval_rules import Record
from ...envs.shapes.prompts import draw, facts, hard_negative, held_out
from ...envs.shapes.render import render_batch
from ...envs.shapes.verify import verify
from ...envs.shapes.world import CHARS, TAGS
from ..vae import to_pixels
from .autoencoder import make_autoencoder, reconstruct, train_autoencoder
from .text import (
    PROJECTION,
    WIDTHS,
    CaptionedImages,
    PictureTower,
    edit_accuracy,
    make_text_encoder,
    probe_spelling,
    train_text_encoders,
)
from .tokenizer import make_tokenizer

PICTURE_SIZE = 32
SIGN_SHARE = 0.45
"""Share of signs among the training pictures: one-pixel strokes are the hardest thing to keep."""
_log = logging.getLogger(__name__)


def transformer_config(layers: int = 6, heads: int = 4) -> dict[str, object]:
    """Arguments of an SD3Transformer2DModel of 3.5 M parameters, with 16 latent tokens at 32 px and 64 at 64 px."""
    return {
        "sample_size": PICTURE_SIZE // 2,
        "patch_size": 4,
        "in_channels": 4,
        "out_channels": 4,
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
    """Assemble the parts to diffusers' pipeline, without a T5."""
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


def untrained_tiny_sd3() -> StableDiffusion3Pipeline:
    """Return the whole pipeline with random weights, for tests of plumbing."""
    encoders = [make_text_encoder(width) for width in WIDTHS]
    return assemble(make_autoencoder(), encoders, SD3Transformer2DModel(**transformer_config()))


def draw_records(split: str, count: int, rng: np.random.Generator) -> list[Record]:
    """Draw records of every tag, `SIGN_SHARE` of them signs."""
    shapes = [tag for tag in TAGS if tag != "text"]
    signs = rng.random(count) < SIGN_SHARE
    tags = ["text" if sign else shapes[rng.integers(len(shapes))] for sign in signs]
    return [draw(split, tag, rng, PICTURE_SIZE) for tag in tags]


def edit(record: Record, rng: np.random.Generator) -> Record:
    """Change one fact of a record, or none where that fact is held out, which training may not see."""
    edited = hard_negative(record, rng)
    return record if any(held_out(fact) for fact in facts(edited)) else edited


def make_pairs(records: Sequence[Record], rng: np.random.Generator) -> CaptionedImages:
    """Render the records, and edit each of their prompts."""
    images, prompts = render_batch(records, PICTURE_SIZE, rng), [record["prompt"] for record in records]
    return CaptionedImages(images, prompts, [edit(record, rng)["prompt"] for record in records])


def milliseconds(call: Callable[[], object], images: int) -> float:
    """Milliseconds per image of the third call; the first two only warm up."""
    for _ in range(2):
        call()
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start) / images


def measure_autoencoder(
    vae: AutoencoderKL, records: Sequence[Record], images: np.ndarray, generator: torch.Generator
) -> dict[str, float]:
    """Share of pictures that satisfy their prompt after encode, noise and decode, and the milliseconds of each."""
    is_sign = np.array([record["tag"] == "text" for record in records])
    figures = {}
    for noise in (0.0, 0.1, 0.2, 0.3):
        again = np.concatenate(
            [reconstruct(vae, part, noise, generator) for part in np.array_split(images, len(images) // 50)]
        )
        strict = np.array([verify(record, image)["strict"] for record, image in zip(records, again)])
        figures |= {f"signs_{noise}": strict[is_sign].mean(), f"shapes_{noise}": strict[~is_sign].mean()}
        figures[f"pixel_error_{noise}"] = np.abs(again.astype(float) - images).mean()
    with torch.no_grad():
        x = to_pixels(images[:64])
        z = vae.encode(x).latent_dist.mode()
        figures["encode_ms"] = milliseconds(lambda: vae.encode(x), len(x))
        figures["decode_ms"] = milliseconds(lambda: vae.decode(z), len(x))
    return {name: float(value) for name, value in figures.items()}


@torch.no_grad()
def measure_text(
    encoders: Sequence[CLIPTextModelWithProjection], tower: PictureTower, pairs: CaptionedImages, strings: Sequence[str]
) -> dict[str, float]:
    """Accuracies of both encoders, named by their widths."""
    figures = {}
    for width, encoder, picture in zip(WIDTHS, encoders, tower(to_pixels(pairs.images))):
        accuracy = probe_spelling(encoder, strings) | {"edit_accuracy": edit_accuracy(encoder, picture, pairs)}
        figures |= {f"{name}_{width}": value for name, value in accuracy.items()}
    return figures


def write_report(folder: Path, report: dict[str, object]) -> None:
    """Write how the parts were made and what they measured: parts.json beside the pipeline."""
    text = json.dumps(report, indent=1)
    (folder / "parts.json").write_text(text + "\n", encoding="utf-8", newline="\n")
    _log.info(text)


def build_tiny_sd3(
    folder: Path, seed: int = 0, pictures: int = 20_000, autoencoder_steps: int = 3000, text_steps: int = 700
) -> StableDiffusion3Pipeline:
    """Train the parts of a tiny SD3 on renders of the train split, and save the pipeline.

    Args:
        folder: where the pipeline goes, and its report as parts.json.
        seed: seed of the pictures, of the parts' first weights and of their training.
        pictures: number of pictures that are rendered to train on.
        autoencoder_steps: updates of the autoencoder.
        text_steps: updates of the text encoders.
    """
    start = time.perf_counter()
    torch.manual_seed(seed)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    train = make_pairs(draw_records("train", pictures, rng), rng)
    records = draw_records("test", 2000, rng)
    test = make_pairs(records, rng)
    strings = ["".join(rng.choice(CHARS, 4)) for _ in range(2000)]
    seconds = {"render": time.perf_counter() - start}

    vae = train_autoencoder(train.images, autoencoder_steps, generator)
    figures = measure_autoencoder(vae, records, test.images, generator)
    seconds["autoencoder"] = time.perf_counter() - start - sum(seconds.values())

    encoders, tower = train_text_encoders(train, text_steps, generator)
    figures |= measure_text(encoders, tower, test, strings)
    seconds["text"] = time.perf_counter() - start - sum(seconds.values())

    pipeline = assemble(vae, encoders, SD3Transformer2DModel(**transformer_config()))
    pipeline.save_pretrained(folder)
    steps = {"autoencoder": autoencoder_steps, "text": text_steps}
    write_report(folder, {"seed": seed, "pictures": pictures, "steps": steps, "seconds": seconds, "figures": figures})
    return pipeline
