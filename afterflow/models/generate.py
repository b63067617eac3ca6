"""Pictures of prompts: starting noise, the ODE from it, and the decoded images."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..sampling.conditioning import Conditioning, Velocity, condition
from ..sampling.kernels import flow_sde
from ..sampling.rollout import chain, prompt_noise, sample
from ..sampling.seeds import generator
from .base import Model
from .wrappers import guided, in_chunks

CHUNK = 64
"""Images of one forward pass."""


def starting_noise(cond: Conditioning, per_prompt: int, shape: Sequence[int], seed: int) -> Tensor:
    """(P, per_prompt, ...): depends on seed and the place of the prompt alone, so that two models can be paired."""
    sources = [generator(seed, "evaluation", place) for place in cond.index.tolist()]
    return prompt_noise(sources, per_prompt, torch.empty(len(cond), 1, *shape, device=cond.index.device))


def solve_ode(velocity: Velocity, model: Model, cond: Conditioning, noise: Tensor, steps: int) -> Tensor:
    """Noise (P, G, ...) → latents of finished images (P, G, ...), by the ODE on the pipeline's own grid."""
    plan = chain(model.schedule.times(steps), noise.shape[1], 0.0, ())
    return sample(velocity, flow_sde, plan, cond, noise, ()).leaves


def decode_groups(model: Model, latents: Tensor) -> np.ndarray:
    """Latents (P, G, ...) → uint8 (P, G, H, W, 3)."""
    images = model.decode(latents.flatten(0, 1))
    return images.reshape(*latents.shape[:2], *images.shape[1:])


def latent_spread(latents: Tensor) -> dict[str, float]:
    """Of finished latents (P, G, ...): how far the images of a prompt are apart, and how far all are from their mean.

    Root mean squares over coordinates.  What learns from images may narrow both before any reward shows it.
    """
    x = latents.float().flatten(2)
    G = x.shape[1]
    found = {"std": (x - x.mean((0, 1))).square().mean().sqrt().item()}
    if G > 1:
        # Of two independent draws the squared distance is twice the variance.
        found["diversity"] = (2 * x.var(1).mean(-1)).sqrt().mean().item()
    return found


def draw_images(
    model: Model,
    records: Sequence[dict],
    per_prompt: int,
    steps: int,
    guidance: float,
    seed: int,
    rows: Sequence[int] | None = None,
) -> np.ndarray:
    """P records, or those in `rows` → uint8 (P, per_prompt, H, W, 3)."""
    cond = encode_records(model, records)
    if rows is not None:
        cond = cond[torch.tensor(rows)]
    chunk = min(CHUNK, len(cond) * per_prompt)
    velocity = in_chunks(guided(model.velocity(model.module), guidance, model.combine), chunk)
    return decode_groups(model, draw_latents(velocity, model, cond, per_prompt, steps, seed, chunk))


def encode_records(model: Model, records: Sequence[dict]) -> Conditioning:
    """One row per record; every text is encoded once, and the empty one with them.  Embeddings stay on the CPU."""
    texts = list(dict.fromkeys(record["prompt"] for record in records))
    embedding = model.encode([*texts, ""])
    place = {text: i for i, text in enumerate(texts)}
    device = next(model.module.parameters()).device
    rows = torch.tensor([place[record["prompt"]] for record in records], device=device)
    return condition(embedding.rows(slice(-1)), embedding.rows(slice(-1, None)).to(device), records, rows)


def draw_latents(
    velocity: Velocity, model: Model, cond: Conditioning, per_prompt: int, steps: int, seed: int, chunk: int
) -> Tensor:
    """P prompts → latents (P, per_prompt, ...); of what a rollout keeps, only about a chunk is ever in memory."""
    parts = []
    for rows in torch.arange(len(cond)).split(max(1, chunk // per_prompt)):
        noise = starting_noise(cond[rows], per_prompt, model.latent_shape, seed)
        parts.append(solve_ode(velocity, model, cond[rows], noise, steps))
    return torch.cat(parts)


def picture_size(model: Model) -> tuple[int, int]:
    """Height and width in pixels, asked of the decoder."""
    device = next(model.module.parameters()).device
    height, width = model.decode(torch.zeros(1, *model.latent_shape, device=device)).shape[-3:-1]
    return height, width
