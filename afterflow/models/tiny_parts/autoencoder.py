"""The tiny autoencoder: 32 px pictures to 16x16 latents of 4 channels.

Every rollout of a reinforcement learner ends in its decoder, so it is narrow and has no attention. It halves
the picture only once: with two halvings and 16 channels, which is as many numbers, the decoder learned strokes
of one pixel far more slowly (pixel error 16.5 against 8.9 on signs after 40 s). The transformer takes patches of
4x4 latents instead of 2x2.

It is trained on latents that were moved by noise, because a sampler never lands on the latent that the
encoder would have given: small errors of a transformer must stay small errors of the picture.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

KL_WEIGHT = 1e-4
"""Of the mean over latent coordinates; enough to keep the channels alike in scale."""

LATENT_NOISE = 0.2
"""The largest noise of training, in standard deviations of the latents; each picture draws its own level."""


def make_autoencoder() -> AutoencoderKL:
    """An untrained autoencoder: (B, 3, S, S) in [-1, 1] ↔ (B, 4, S / 2, S / 2)."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        shift_factor=0.0,
        scaling_factor=1.0,
    )


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 (B, S, S, 3) → (B, 3, S, S) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(x: Tensor) -> np.ndarray:
    """(B, 3, S, S) in [-1, 1] → uint8 (B, S, S, 3)."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def distance(x: Tensor, y: Tensor) -> Tensor:
    """Squares, which find the strokes of a sign within minutes, and a little L1, which keeps planes even.

    (B, 3, S, S) twice → scalar. L1 alone first learns the median of a sign, a plate without strokes.
    """
    return 4 * F.mse_loss(x, y) + 0.3 * F.l1_loss(x, y)


def autoencoder_loss(vae: AutoencoderKL, x: Tensor, generator: torch.Generator) -> Tensor:
    """Distance after decoding disturbed latents, plus the KL to a unit Gaussian; (B, 3, S, S) → scalar."""
    posterior = vae.encode(x).latent_dist
    z = posterior.sample(generator)
    level = LATENT_NOISE * torch.rand(len(z), 1, 1, 1, generator=generator)
    z = z + level * z.std().detach() * torch.randn(z.shape, generator=generator)
    kl = posterior.kl().mean() / z[0].numel()
    return distance(vae.decode(z).sample, x) + KL_WEIGHT * kl


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear over the first hundred steps, then half a cosine down to zero."""
    return peak * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))


def train_autoencoder(
    images: np.ndarray, steps: int, generator: torch.Generator, batch: int = 16, peak: float = 4e-3
) -> AutoencoderKL:
    """An autoencoder trained on uint8 images (N, S, S, 3), with its shift and scale measured and set."""
    vae = make_autoencoder().train()
    loss_of = lambda rows: autoencoder_loss(vae, to_tensor(images[rows]), generator)
    fit(vae, loss_of, len(images), steps, peak, batch, generator)
    standardize(vae.eval(), images[:2048])
    return vae


def fit(
    vae: nn.Module,
    loss_of: Callable[[np.ndarray], Tensor],
    examples: int,
    steps: int,
    peak: float,
    batch: int,
    generator: torch.Generator,
) -> None:
    """Descend the loss of random batches of rows."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=peak, weight_decay=1e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, peak)
        loss = loss_of(torch.randint(examples, (batch,), generator=generator).numpy())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 250 == 0 or step == steps - 1:
            print(f"autoencoder {step:5d}/{steps} loss {loss.item():.4f}", flush=True)


@torch.no_grad()
def standardize(vae: AutoencoderKL, images: np.ndarray) -> None:
    """Set SD3's two numbers, so that (z - shift_factor) * scaling_factor has mean 0 and std 1."""
    z = torch.cat([vae.encode(to_tensor(part)).latent_dist.mean for part in np.array_split(images, 16)])
    vae.register_to_config(shift_factor=z.mean().item(), scaling_factor=1 / z.std().item())


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: np.ndarray, noise: float, generator: torch.Generator) -> np.ndarray:
    """Encode, move by `noise` standard deviations, decode; uint8 (B, S, S, 3) → the same."""
    z = vae.encode(to_tensor(images)).latent_dist.mode()
    z = z + noise / vae.config.scaling_factor * torch.randn(z.shape, generator=generator)
    return to_images(vae.decode(z).sample)
