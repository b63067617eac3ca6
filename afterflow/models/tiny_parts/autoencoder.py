"""The tiny autoencoder: 32 px pictures to 16x16 latents of 4 channels.

Every rollout of a reinforcement learner ends in its decoder, so it is narrow and has no attention. It halves
the picture only once: with two halvings and 16 channels, which is as many numbers, the decoder learned strokes
of one pixel far more slowly (pixel error 16.5 against 8.9 on signs after 40 s). The transformer takes patches of
4x4 latents instead of 2x2.

It is trained on latents that were moved by noise, because a sampler never lands on the latent that the
encoder would have given: small errors of a transformer must stay small errors of the picture.
"""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from ..vae import to_pixels
from .fit import Fit

KL_WEIGHT = 1e-4
"""Weight of the KL, a mean over latent coordinates; enough to keep the channels alike in scale."""

LATENT_NOISE = 0.2
"""Largest noise of training, in standard deviations of the latents; every picture draws a level below it."""


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


def to_images(x: Tensor) -> np.ndarray:
    """Round pictures or clips: (B, 3, ..., S, S) in [-1, 1] → uint8 (B, ..., S, S, 3)."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(1, -1).numpy()


def distance(x: Tensor, y: Tensor) -> Tensor:
    """Distance of pictures or clips (B, 3, ..., S, S), a scalar: squares and a little L1.

    Squares find the strokes of a sign within minutes, and L1 keeps planes even.  L1 alone first learns the median of a
    sign, a plate without strokes.
    """
    return 4 * F.mse_loss(x, y) + 0.3 * F.l1_loss(x, y)


def autoencoder_loss(vae: AutoencoderKL, x: Tensor, generator: torch.Generator) -> Tensor:
    """Distance after decoding disturbed latents, plus the KL to a unit Gaussian: (B, 3, S, S) → scalar."""
    posterior = vae.encode(x).latent_dist
    z = posterior.sample(generator)
    level = LATENT_NOISE * torch.rand(len(z), 1, 1, 1, generator=generator)
    z = z + level * z.std().detach() * torch.randn(z.shape, generator=generator)
    kl = posterior.kl().mean() / z[0].numel()
    return distance(vae.decode(z).sample, x) + KL_WEIGHT * kl


def train_autoencoder(images: np.ndarray, steps: int, generator: torch.Generator) -> AutoencoderKL:
    """Return an autoencoder trained on uint8 images (N, S, S, 3), with its shift and scale measured and set."""
    vae = make_autoencoder().train()

    def loss_of(rows: Tensor) -> Tensor:
        return autoencoder_loss(vae, to_pixels(images[rows.numpy()]), generator)

    Fit("autoencoder", steps, batch=16, peak=4e-3, weight_decay=1e-3)(vae, loss_of, len(images), generator)
    standardize(vae.eval(), images[:2048])
    return vae


@torch.no_grad()
def standardize(vae: AutoencoderKL, images: np.ndarray) -> None:
    """Set SD3's two numbers, so that (z - shift_factor) * scaling_factor has mean 0 and std 1."""
    z = torch.cat([vae.encode(to_pixels(part)).latent_dist.mean for part in np.array_split(images, 16)])
    vae.register_to_config(shift_factor=z.mean().item(), scaling_factor=1 / z.std().item())


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: np.ndarray, noise: float, generator: torch.Generator) -> np.ndarray:
    """Encode pictures, move them by `noise` standard deviations, decode them: uint8 (B, S, S, 3) → the same."""
    z = vae.encode(to_pixels(images)).latent_dist.mode()
    z = z + noise / vae.config.scaling_factor * torch.randn(z.shape, generator=generator)
    return to_images(vae.decode(z).sample)
