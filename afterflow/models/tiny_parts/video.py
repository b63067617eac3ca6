"""Make the parts of a tiny Wan 2.1 from the moving world's own clips, as a diffusers pipeline.

The autoencoder and the text encoder are trained here; the transformer keeps its random weights.

Wan's autoencoder takes an eighth of every side and a quarter of the frames.  Ours takes half of both, so that nine
frames of 32 px are five of 16 x 16 latents with 4 channels, and 80 tokens: with a quarter of both and 8 channels it
kept where things go but not their shapes (39 % of clips still fit their prompts after 2500 updates of 8 clips).

UMT5 was made by filling gaps in texts, which needs a decoder and a language.  Ours has to tell what each clause says,
from its tokens alone and for each clause apart: what a transformer that draws has to find there.
"""

import json
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
from .autoencoder import KL_WEIGHT, LATENT_NOISE, distance, fit, learning_rate
from .text import token_ids
from .tokenizer import EOS_ID, PAD_ID, make_tokenizer

CLIP_SIZE, CLIP_FRAMES, LATENT_CHANNELS, TEXT_WIDTH = 32, 9, 4, 64
CLAUSES = 2
"""Most of them in a prompt."""
FACTS = {"class": SHAPES, "color": COLORS, "moving": tuple(DIRECTIONS), "count": (1, 2)}
"""Of a clause, and their values."""
WORDS = ("moving", "up", "down")
"""That the still world does not have."""


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
    """1.6 M parameters, 80 tokens for nine frames of 32 px."""
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
    """The parts as the pipeline that diffusers knows, with the scheduler of the released one."""
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
    )
    tokenizer = make_tokenizer(WORDS)
    return WanPipeline(tokenizer=tokenizer, text_encoder=encoder, vae=vae, scheduler=scheduler, transformer=transformer)


def draw_clips(split: str, count: int, rng: np.random.Generator) -> tuple[list[Record], np.ndarray]:
    """Records of every tag in turn, and their clips (N, 9, 32, 32, 3)."""
    records = [draw_moving(split, MOVING_TAGS[i % len(MOVING_TAGS)], rng) for i in range(count)]
    return records, np.stack([render_clip(record, CLIP_FRAMES, CLIP_SIZE, rng) for record in records])


def to_clips(clips: np.ndarray) -> Tensor:
    """uint8 (B, F, S, S, 3) → (B, 3, F, S, S) in [-1, 1]."""
    return torch.from_numpy(clips).movedim(-1, 1).float() / 127.5 - 1


def video_autoencoder_loss(vae: AutoencoderKLWan, x: Tensor, generator: torch.Generator) -> Tensor:
    """Distance after decoding disturbed latents, plus the KL to a unit Gaussian; (B, 3, F, S, S) → scalar."""
    posterior = vae.encode(x).latent_dist
    z = posterior.sample(generator)
    level = LATENT_NOISE * torch.rand(len(z), 1, 1, 1, 1, generator=generator)
    z = z + level * z.std().detach() * torch.randn(z.shape, generator=generator)
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    return distance(vae.decode(z).sample, x) + KL_WEIGHT * kl


def train_video_autoencoder(
    clips: np.ndarray, steps: int, generator: torch.Generator, batch: int = 8, peak: float = 3e-3
) -> AutoencoderKLWan:
    """An autoencoder trained on uint8 clips (N, F, S, S, 3), with the mean and std of its channels measured and set."""
    vae = make_video_autoencoder().train()
    loss_of = lambda rows: video_autoencoder_loss(vae, to_clips(clips[rows]), generator)
    fit(vae, loss_of, len(clips), steps, peak, batch, generator)
    standardize_channels(vae.eval(), clips[:1024])
    return vae


@torch.no_grad()
def standardize_channels(vae: AutoencoderKLWan, clips: np.ndarray) -> None:
    """Set Wan's statistics, so that (z - mean) / std has mean 0 and std 1 in every channel."""
    z = torch.cat([vae.encode(to_clips(part)).latent_dist.mean for part in np.array_split(clips, len(clips) // 16)])
    vae.register_to_config(
        latents_mean=z.mean((0, 2, 3, 4)).tolist(), latents_std=z.std((0, 2, 3, 4), correction=0).tolist()
    )


@torch.no_grad()
def reconstruct_clips(vae: AutoencoderKLWan, clips: np.ndarray, noise: float, generator: torch.Generator) -> np.ndarray:
    """Encode, move by `noise` standard deviations, decode; uint8 (B, F, S, S, 3) → the same."""
    z = vae.encode(to_clips(clips)).latent_dist.mode()
    std = z.new_tensor(vae.config.latents_std).view(-1, 1, 1, 1)
    z = z + noise * std * torch.randn(z.shape, generator=generator)
    x = vae.decode(z).sample
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(1, -1).numpy()


class ClauseReader(nn.Module):
    """What each clause says, read from the states of a text encoder: one query and one linear reader for each fact."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = make_umt5()
        self.queries = nn.Parameter(torch.randn(CLAUSES, len(FACTS), TEXT_WIDTH) / TEXT_WIDTH**0.5)
        self.heads = nn.ModuleList(nn.Linear(TEXT_WIDTH, len(known)) for known in FACTS.values())

    def forward(self, ids: Tensor) -> list[Tensor]:
        """(B, L) → for each fact, its logits (B, clauses, values)."""
        mask = ids != PAD_ID
        states = self.encoder(ids, attention_mask=mask.long()).last_hidden_state
        scores = torch.einsum("cfd,bld->bcfl", self.queries, states).masked_fill(~mask[:, None, None], -torch.inf)
        read = torch.einsum("bcfl,bld->bcfd", scores.softmax(-1), states)
        return [head(read[:, :, i]) for i, head in enumerate(self.heads)]


def fact_labels(records: Sequence[Record]) -> Tensor:
    """(B, clauses, facts): which value each has; -100 where there is no such clause."""
    labels = torch.full((len(records), CLAUSES, len(FACTS)), -100)
    for b, record in enumerate(records):
        for c, clause in enumerate(record["include"]):
            labels[b, c] = torch.tensor([known.index(clause[fact]) for fact, known in FACTS.items()])
    return labels


def train_umt5(
    records: Sequence[Record], steps: int, generator: torch.Generator, batch: int = 64, peak: float = 3e-3
) -> ClauseReader:
    """The encoder, within the reader it was trained with."""
    ids = token_ids(make_tokenizer(WORDS), [record["prompt"] for record in records])
    labels, reader = fact_labels(records), ClauseReader().train()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=peak, weight_decay=1e-2)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, peak)
        rows = torch.randint(len(ids), (batch,), generator=generator)
        found = zip(reader(ids[rows]), labels[rows].unbind(-1))
        loss = torch.stack([F.cross_entropy(logits.flatten(0, 1), label.flatten()) for logits, label in found]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"text {step:5d}/{steps} loss {loss.item():.4f}", flush=True)
    return reader.eval()


@torch.no_grad()
def fact_accuracy(reader: ClauseReader, records: Sequence[Record]) -> dict[str, float]:
    """Share of clauses of which each fact is read rightly."""
    ids = token_ids(make_tokenizer(WORDS), [record["prompt"] for record in records])
    labels, figures = fact_labels(records), {}
    for name, logits, label in zip(FACTS, reader(ids), labels.unbind(-1)):
        there = label >= 0
        figures[f"text_{name}"] = (logits.argmax(-1) == label)[there].float().mean().item()
    return figures


def measure_video_autoencoder(
    vae: AutoencoderKLWan, records: Sequence[Record], clips: np.ndarray, generator: torch.Generator
) -> dict[str, float]:
    """Share of clips that satisfy their prompt after encode, noise, decode, and their smoothness."""
    figures = {}
    for noise in (0.0, 0.1, 0.2):
        again = np.concatenate(
            [reconstruct_clips(vae, part, noise, generator) for part in np.array_split(clips, len(clips) // 25)]
        )
        verdicts = [verify_clip(record, clip) for record, clip in zip(records, again)]
        for name in ("strict", "smoothness"):
            figures[f"{name}_{noise}"] = float(np.mean([verdict[name] for verdict in verdicts]))
        figures[f"pixel_error_{noise}"] = float(np.abs(again.astype(float) - clips).mean())
    return figures


def build_tiny_wan(
    folder: Path, seed: int = 0, clips: int = 4000, autoencoder_steps: int = 3000, text_steps: int = 1000
) -> WanPipeline:
    """Train the parts on renders of the train split; save the pipeline, and the figures as its parts.json."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    records, shown = draw_clips("train", clips, rng)
    unseen, test = draw_clips("test", max(25, clips // 13), rng)
    vae = train_video_autoencoder(shown, autoencoder_steps, generator)
    figures = measure_video_autoencoder(vae, unseen, test, generator)
    seconds = {"autoencoder": time.perf_counter() - start}
    reader = train_umt5(records, text_steps, generator)
    figures |= fact_accuracy(reader, unseen)
    seconds["text"] = time.perf_counter() - start - seconds["autoencoder"]
    pipeline = assemble_video(vae, reader.encoder, make_video_transformer())
    pipeline.save_pretrained(folder)
    steps = {"autoencoder": autoencoder_steps, "text": text_steps}
    report = {"seed": seed, "clips": clips, "steps": steps, "seconds": seconds, "figures": figures}
    (folder / "parts.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1), flush=True)
    return pipeline
