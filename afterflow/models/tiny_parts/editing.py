"""Make the parts of a tiny FLUX.2-klein from the editing world's own pictures, as a diffusers pipeline.

The autoencoder and the text encoder are trained here; the transformer keeps its random weights.

The autoencoder takes a quarter of every side and has 16 channels, a third of the numbers of a picture, which are 64
patches of 64 numbers.  With 8 channels the ground drifted by 5 grey levels after 1600 updates of 16 pictures, as much
as an edit that is to leave it alone may.  With an eighth of every side it lost the shapes.

klein reads a language model after its layers 9, 18 and 27.  Ours is one of 27 narrow layers, and is trained as a
language model is, to continue requests.  Its embeddings start as large as what its layers add, so that states still say
which word stands where.

A few directions hold nearly all of what such a model's states are, the same for every request: of two that differ in a
colour they differ by a fifth.  So the transformer's first layer starts with weights that make all directions alike.
With random ones it had learned to copy, and no word, after 3000 updates of 64 edits.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from ...envs.geneval_rules import Record
from ...envs.shapes.edit_verifier import verify_edit
from ...envs.shapes.edits import EDIT_TASKS, EditScene, draw_edit, render_scene
from ..vae import to_pixels
from .autoencoder import autoencoder_loss, to_images
from .build import write_report
from .fit import Fit
from .tokenizer import BOS_ID, EOS_ID, PAD_ID, make_tokenizer

LATENT_CHANNELS, TEXT_WIDTH, TEXT_LAYERS, TEXT_TOKENS = 16, 32, 27, 16
REQUEST_WORDS = (
    *("make", "remove", "add", "move", "to", "it", "swap", "change", "left", "right", "up", "down"),
    *("two", "three", "four"),
)
"""Words of requests that prompts of the still world do not all have."""
SHOWN_REQUESTS = 700
"""Number of requests whose states are looked at, a hundred of each task."""
STATES_FLOOR = 1e-3
"""What is added to the size of a direction of states, as a share of their mean, so that no noise is made large."""
CHAT = "{% for message in messages %}{{ message.content }}{% endfor %}"
"""Template of a chat: the request alone."""


def make_patch_autoencoder() -> AutoencoderKLFlux2:
    """An untrained autoencoder: (B, 3, S, S) in [-1, 1] ↔ (B, 16, S / 4, S / 4)."""
    return AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=LATENT_CHANNELS,
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def make_request_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer of requests, with a chat around them that adds nothing."""
    tokenizer = make_tokenizer(REQUEST_WORDS)
    tokenizer.chat_template = CHAT
    return tokenizer


def make_language_model() -> Qwen3ForCausalLM:
    """An untrained language model of 27 layers of width 32."""
    config = Qwen3Config(
        vocab_size=len(make_request_tokenizer()),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=TEXT_WIDTH // 2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    model = Qwen3ForCausalLM(config)
    nn.init.normal_(model.model.embed_tokens.weight, std=0.5)
    return model


def make_editing_transformer(double: int = 2, single: int = 4, heads: int = 4) -> Flux2Transformer2DModel:
    """An untrained transformer of 2 M parameters, with 64 tokens for a picture of 64 px and as many for its input."""
    return Flux2Transformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=32,
        num_attention_heads=heads,
        joint_attention_dim=3 * TEXT_WIDTH,
        timestep_guidance_channels=64,
        axes_dims_rope=(8, 8, 8, 8),
        rope_theta=100,
        guidance_embeds=False,
    )


def assemble_editing(
    vae: AutoencoderKLFlux2, encoder: Qwen3ForCausalLM, transformer: Flux2Transformer2DModel
) -> Flux2KleinPipeline:
    """Assemble the parts to diffusers' pipeline, with a constant shift of its times."""
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0),
        vae=vae,
        text_encoder=encoder,
        tokenizer=make_request_tokenizer(),
        transformer=transformer,
    )


@torch.no_grad()
def even_out_states(pipeline: Flux2KleinPipeline, requests: Sequence[str]) -> None:
    """Set the weights that read text so that states of these requests have the same size in every direction."""
    states = pipeline.encode_prompt(list(requests), max_sequence_length=TEXT_TOKENS)[0].flatten(0, 1).double()
    sizes, directions = torch.linalg.eigh(states.T @ states / len(states))
    weight = pipeline.transformer.context_embedder.weight
    mixed = torch.randn(weight.shape, dtype=torch.float64) / weight.shape[1] ** 0.5
    weight.copy_(mixed @ (directions / (sizes + STATES_FLOOR * sizes.mean()).sqrt()) @ directions.T)


def draw_edits(split: str, count: int, rng: np.random.Generator) -> tuple[list[Record], np.ndarray]:
    """Draw requests of every task in turn, and pictures after them, uint8 (N, 64, 64, 3)."""
    records = [draw_edit(split, EDIT_TASKS[i % len(EDIT_TASKS)], rng) for i in range(count)]
    return records, np.stack([render_scene(EditScene.from_record(record["result"])) for record in records])


def train_patch_autoencoder(images: np.ndarray, steps: int, generator: torch.Generator) -> AutoencoderKLFlux2:
    """Return an autoencoder trained on uint8 images (N, 64, 64, 3), with the statistics of its patches measured."""
    vae = make_patch_autoencoder().train()

    def loss_of(rows: Tensor) -> Tensor:
        return autoencoder_loss(vae, to_pixels(images[rows.numpy()]), generator)

    Fit("autoencoder", steps, batch=16, peak=4e-3, weight_decay=1e-3)(vae, loss_of, len(images), generator)
    measure_patches(vae.eval(), images[:2048])
    return vae


@torch.no_grad()
def measure_patches(vae: AutoencoderKLFlux2, images: np.ndarray) -> None:
    """Set the mean and the variance of each channel of patches of 2x2."""
    parts = np.array_split(images, max(1, len(images) // 64))
    z = torch.cat([vae.encode(to_pixels(part)).latent_dist.mean for part in parts])
    patches = nn.functional.pixel_unshuffle(z, 2).transpose(0, 1).flatten(1)
    assert vae.bn.running_mean is not None and vae.bn.running_var is not None
    vae.bn.running_mean.copy_(patches.mean(1))
    vae.bn.running_var.copy_(patches.var(1))


def train_language_model(requests: Sequence[str], steps: int, generator: torch.Generator) -> Qwen3ForCausalLM:
    """Return a language model trained to continue requests."""
    model, tokenizer = make_language_model().train(), make_request_tokenizer()
    encoded = tokenizer(list(requests), padding="max_length", max_length=TEXT_TOKENS, return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    labels = ids.masked_fill(mask == 0, -100)

    def loss_of(rows: Tensor) -> Tensor:
        return model(input_ids=ids[rows], attention_mask=mask[rows], labels=labels[rows]).loss

    Fit("language model", steps, batch=64, peak=3e-3)(model, loss_of, len(ids), generator)
    return model.eval()


@torch.no_grad()
def measure_patch_autoencoder(
    vae: AutoencoderKLFlux2, records: Sequence[Record], images: np.ndarray, generator: torch.Generator
) -> dict[str, float]:
    """Share of true edits that are still right after encode, noise and decode, by what is asked of them."""
    z = torch.cat(
        [vae.encode(to_pixels(part)).latent_dist.mode() for part in np.array_split(images, len(images) // 20)]
    )
    figures = {}
    for noise in (0.0, 0.1, 0.2):
        moved = z + noise * z.std() * torch.randn(z.shape, generator=generator)
        again = to_images(torch.cat([vae.decode(part).sample for part in moved.split(20)]))
        scores = [verify_edit(record, image) for record, image in zip(records, again)]
        for name in ("done", "preserved", "strict"):
            figures[f"{name}_{noise}"] = float(np.mean([getattr(score, name) for score in scores]))
        figures[f"pixel_error_{noise}"] = float(np.abs(again.astype(float) - images).mean())
    return figures


def build_tiny_klein(
    folder: Path, seed: int = 0, pictures: int = 6000, autoencoder_steps: int = 5000, text_steps: int = 800
) -> Flux2KleinPipeline:
    """Train the parts of a tiny FLUX.2-klein on edits of the train split, and save the pipeline.

    Args:
        folder: where the pipeline goes, and its report as parts.json.
        seed: seed of the edits, of the parts' first weights and of their training.
        pictures: number of edits that are rendered to train on.
        autoencoder_steps: updates of the autoencoder.
        text_steps: updates of the language model.
    """
    start = time.perf_counter()
    torch.manual_seed(seed)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    records, images = draw_edits("train", pictures, rng)
    tests, true = draw_edits("test", 20 * len(EDIT_TASKS), rng)
    seconds = {"render": time.perf_counter() - start}

    vae = train_patch_autoencoder(images, autoencoder_steps, generator)
    figures = measure_patch_autoencoder(vae, tests, true, generator)
    seconds["autoencoder"] = time.perf_counter() - start - sum(seconds.values())

    encoder = train_language_model([record["prompt"] for record in records], text_steps, generator)
    seconds["text"] = time.perf_counter() - start - sum(seconds.values())

    pipeline = assemble_editing(vae, encoder, make_editing_transformer())
    even_out_states(pipeline, [record["prompt"] for record in records[:SHOWN_REQUESTS]])
    pipeline.save_pretrained(folder)
    steps = {"autoencoder": autoencoder_steps, "text": text_steps}
    write_report(folder, {"seed": seed, "pictures": pictures, "steps": steps, "seconds": seconds, "figures": figures})
    return pipeline
