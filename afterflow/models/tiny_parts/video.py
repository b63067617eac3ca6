"""Make the parts of a tiny Wan 2.1 from the moving world's own clips, as a diffusers pipeline.

The autoencoder and the text encoder are trained here; the transformer keeps its random weights.

Wan's autoencoder takes an eighth of every side and a quarter of the frames.  Ours takes half of both, so that nine
frames of 32 px are five of 16 x 16 latents with 4 channels, and 80 tokens: with a quarter of both and 8 channels it
kept the motion but not the shapes (39 % of clips still fit their prompts after 2500 updates of 8 clips).

UMT5 was made by filling gaps in texts, which needs a decoder and a language.  Ours is trained to state the
facts of each clause from its tokens alone, because a transformer that draws has to read them there.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from ...envs.geneval_rules import Record
from ...envs.shapes.motion import verify_clip
from ...envs.shapes.moving import DIRECTIONS, MOVING_TAGS, draw_moving, render_clip
from ...envs.shapes.world import COLORS, SHAPES
from ..vae import channel_statistics, to_pixels
from .autoencoder import KL_WEIGHT, LATENT_NOISE, distance, to_images
from .build import write_report
from .fit import Fit
from .text import token_ids
from .tokenizer import EOS_ID, PAD_ID, make_tokenizer

CLIP_SIZE, CLIP_FRAMES, LATENT_CHANNELS, TEXT_WIDTH = 32, 9, 4, 64
CLAUSES = 2
"""Largest number of clauses in a prompt."""
FACTS = {"class": SHAPES, "color": COLORS, "moving": tuple(DIRECTIONS), "count": (1, 2)}
"""Facts of a clause, and the values of each."""
WORDS = ("moving", "up", "down")
"""Words of prompts that the still world does not have."""


def make_video_autoencoder() -> AutoencoderKLWan:
    """An untrained autoencoder: (B, 3, 1 + 2k, S, S) in [-1, 1] ↔ (B, 4, 1 + k, S / 2, S / 2)."""
    return AutoencoderKLWan(
        base_dim=16,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
        scale_factor_spatial=2,
        scale_factor_temporal=2,
    )


def make_umt5() -> UMT5EncoderModel:
    """An untrained encoder: ids (B, L) → (B, L, 64)."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(make_tokenizer(WORDS)),
            d_model=TEXT_WIDTH,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=PAD_ID,
            eos_token_id=EOS_ID,
        )
    )


def make_video_transformer(layers: int = 6, heads: int = 4) -> WanTransformer3DModel:
    """An untrained transformer of 1.6 M parameters, with 80 tokens for nine frames of 32 px."""
    return WanTransformer3DModel(
        patch_size=(1, 4, 4),
        num_attention_heads=heads,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=3 * 32 * heads,
        num_layers=layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )


def assemble_video(vae: AutoencoderKLWan, encoder: UMT5EncoderModel, transformer: WanTransformer3DModel) -> WanPipeline:
    """Assemble the parts to diffusers' pipeline, with the scheduler of the released one."""
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
    )
    tokenizer = make_tokenizer(WORDS)
    return WanPipeline(tokenizer=tokenizer, text_encoder=encoder, vae=vae, scheduler=scheduler, transformer=transformer)


def draw_clips(split: str, count: int, rng: np.random.Generator) -> tuple[list[Record], np.ndarray]:
    """Draw records of every tag in turn, and their clips, uint8 (N, 9, 32, 32, 3)."""
    records = [draw_moving(split, MOVING_TAGS[i % len(MOVING_TAGS)], rng) for i in range(count)]
    return records, np.stack([render_clip(record, CLIP_FRAMES, CLIP_SIZE, rng) for record in records])


def video_autoencoder_loss(vae: AutoencoderKLWan, x: Tensor, generator: torch.Generator) -> Tensor:
    """Distance after decoding disturbed latents, plus the KL to a unit Gaussian: (B, 3, F, S, S) → scalar."""
    posterior = vae.encode(x).latent_dist
    z = posterior.sample(generator)
    level = LATENT_NOISE * torch.rand(len(z), 1, 1, 1, 1, generator=generator)
    z = z + level * z.std().detach() * torch.randn(z.shape, generator=generator)
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    return distance(vae.decode(z).sample, x) + KL_WEIGHT * kl


def train_video_autoencoder(clips: np.ndarray, steps: int, generator: torch.Generator) -> AutoencoderKLWan:
    """Return an autoencoder trained on uint8 clips (N, F, S, S, 3), its channels' mean and std measured and set."""
    vae = make_video_autoencoder().train()

    def loss_of(rows: Tensor) -> Tensor:
        return video_autoencoder_loss(vae, to_pixels(clips[rows.numpy()]), generator)

    Fit("autoencoder", steps, batch=8, peak=3e-3, weight_decay=1e-3)(vae, loss_of, len(clips), generator)
    standardize_channels(vae.eval(), clips[:1024])
    return vae


@torch.no_grad()
def standardize_channels(vae: AutoencoderKLWan, clips: np.ndarray) -> None:
    """Set Wan's statistics, so that (z - mean) / std has mean 0 and std 1 in every channel."""
    z = torch.cat([vae.encode(to_pixels(part)).latent_dist.mean for part in np.array_split(clips, len(clips) // 16)])
    vae.register_to_config(
        latents_mean=z.mean((0, 2, 3, 4)).tolist(), latents_std=z.std((0, 2, 3, 4), correction=0).tolist()
    )


@torch.no_grad()
def reconstruct_clips(vae: AutoencoderKLWan, clips: np.ndarray, noise: float, generator: torch.Generator) -> np.ndarray:
    """Encode clips, move them by `noise` standard deviations, decode them: uint8 (B, F, S, S, 3) → the same."""
    z = vae.encode(to_pixels(clips)).latent_dist.mode()
    z = z + noise * channel_statistics(vae)[1] * torch.randn(z.shape, generator=generator)
    return to_images(vae.decode(z).sample)


class ClauseReader(nn.Module):
    """A text encoder with one query and one linear classifier for each fact of each clause."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = make_umt5()
        self.queries = nn.Parameter(torch.randn(CLAUSES, len(FACTS), TEXT_WIDTH) / TEXT_WIDTH**0.5)
        self.heads = nn.ModuleList(nn.Linear(TEXT_WIDTH, len(values)) for values in FACTS.values())

    def forward(self, ids: Tensor) -> list[Tensor]:
        """Token ids (B, L) → the logits of each fact, (B, clauses, values)."""
        mask = ids != PAD_ID
        states = self.encoder(ids, attention_mask=mask.long()).last_hidden_state
        scores = torch.einsum("cfd,bld->bcfl", self.queries, states).masked_fill(~mask[:, None, None], -torch.inf)
        pooled = torch.einsum("bcfl,bld->bcfd", scores.softmax(-1), states)
        return [head(pooled[:, :, i]) for i, head in enumerate(self.heads)]


def fact_labels(records: Sequence[Record]) -> Tensor:
    """Index of each fact's value, (B, clauses, facts); -100 where there is no such clause."""
    labels = torch.full((len(records), CLAUSES, len(FACTS)), -100)
    for b, record in enumerate(records):
        for c, clause in enumerate(record["include"]):
            labels[b, c] = torch.tensor([values.index(clause[fact]) for fact, values in FACTS.items()])
    return labels


def train_umt5(records: Sequence[Record], steps: int, generator: torch.Generator, batch: int = 64) -> ClauseReader:
    """Return a text encoder that was trained on records, within its reader."""
    ids = token_ids(make_tokenizer(WORDS), [record["prompt"] for record in records])
    labels, reader = fact_labels(records), ClauseReader().train()

    def loss_of(rows: Tensor) -> Tensor:
        facts = zip(reader(ids[rows]), labels[rows].unbind(-1))
        return torch.stack([F.cross_entropy(logits.flatten(0, 1), label.flatten()) for logits, label in facts]).mean()

    Fit("text", steps, batch, peak=3e-3, max_norm=None)(reader, loss_of, len(ids), generator)
    return reader.eval()


@torch.no_grad()
def fact_accuracy(reader: ClauseReader, records: Sequence[Record]) -> dict[str, float]:
    """Share of clauses whose fact is predicted rightly, fact by fact."""
    ids = token_ids(make_tokenizer(WORDS), [record["prompt"] for record in records])
    labels, figures = fact_labels(records), {}
    for name, logits, label in zip(FACTS, reader(ids), labels.unbind(-1)):
        present = label >= 0
        figures[f"text_{name}"] = (logits.argmax(-1) == label)[present].float().mean().item()
    return figures


def measure_video_autoencoder(
    vae: AutoencoderKLWan, records: Sequence[Record], clips: np.ndarray, generator: torch.Generator
) -> dict[str, float]:
    """Share of clips that satisfy their prompt after encode, noise and decode, and their smoothness."""
    figures = {}
    for noise in (0.0, 0.1, 0.2):
        again = np.concatenate(
            [reconstruct_clips(vae, part, noise, generator) for part in np.array_split(clips, max(1, len(clips) // 25))]
        )
        verdicts = [verify_clip(record, clip) for record, clip in zip(records, again)]
        for name in ("strict", "smoothness"):
            figures[f"{name}_{noise}"] = float(np.mean([verdict[name] for verdict in verdicts]))
        figures[f"pixel_error_{noise}"] = float(np.abs(again.astype(float) - clips).mean())
    return figures


def build_tiny_wan(
    folder: Path, seed: int = 0, clips: int = 4000, autoencoder_steps: int = 3000, text_steps: int = 1000
) -> WanPipeline:
    """Train the parts of a tiny Wan on renders of the train split, and save the pipeline.

    Args:
        folder: where the pipeline goes, and its report as parts.json.
        seed: seed of the clips, of the parts' first weights and of their training.
        clips: number of clips that are rendered to train on.
        autoencoder_steps: updates of the autoencoder.
        text_steps: updates of the text encoder.
    """
    start = time.perf_counter()
    torch.manual_seed(seed)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    records, shown = draw_clips("train", clips, rng)
    unseen, test = draw_clips("test", max(8, clips // 13), rng)
    vae = train_video_autoencoder(shown, autoencoder_steps, generator)
    figures = measure_video_autoencoder(vae, unseen, test, generator)
    seconds = {"autoencoder": time.perf_counter() - start}
    reader = train_umt5(records, text_steps, generator)
    figures |= fact_accuracy(reader, unseen)
    seconds["text"] = time.perf_counter() - start - seconds["autoencoder"]
    pipeline = assemble_video(vae, reader.encoder, make_video_transformer())
    pipeline.save_pretrained(folder)
    steps = {"autoencoder": autoencoder_steps, "text": text_steps}
    write_report(folder, {"seed": seed, "clips": clips, "steps": steps, "seconds": seconds, "figures": figures})
    return pipeline
