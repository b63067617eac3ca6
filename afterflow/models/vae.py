"""Autoencoders of diffusers in our terms: images are uint8 and channels last, latents have mean 0 and std 1."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage, AutoencoderKLWan

    ClipVAE = AutoencoderKLWan | AutoencoderKLQwenImage


@torch.no_grad()
def encode_images(vae: "AutoencoderKL", images: np.ndarray) -> Tensor:
    """Encode images: uint8 (B, H, W, 3) → (B, C, h, w)."""
    batch = batch_size(images.shape[1] * images.shape[2])
    parts = [vae.encode(to_pixels(images[i : i + batch], vae)).latent_dist.mode() for i in range(0, len(images), batch)]
    return (torch.cat(parts) - vae.config.shift_factor) * vae.config.scaling_factor


@torch.no_grad()
def decode_images(vae: "AutoencoderKL", latents: Tensor) -> np.ndarray:
    """Decode images: (B, C, h, w) → uint8 (B, H, W, 3)."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    pixels = latents.shape[-1] * latents.shape[-2] * factor**2
    z = latents.float() / vae.config.scaling_factor + vae.config.shift_factor
    return decode_in_equal_batches(vae, z, pixels)


@torch.no_grad()
def encode_patches(vae: "AutoencoderKLFlux2", images: np.ndarray) -> Tensor:
    """Encode images by the autoencoder of FLUX.2: uint8 (B, H, W, 3) → normalised patches of 2x2 (B, 4C, h/2, w/2)."""
    batch = batch_size(images.shape[1] * images.shape[2])
    parts = [vae.encode(to_pixels(images[i : i + batch], vae)).latent_dist.mode() for i in range(0, len(images), batch)]
    return normalised_patches(vae, torch.cat(parts))


@torch.no_grad()
def decode_patches(vae: "AutoencoderKLFlux2", latents: Tensor) -> np.ndarray:
    """Decode normalised patches by the autoencoder of FLUX.2: (B, 4C, h/2, w/2) → uint8 (B, H, W, 3)."""
    mean, std = patch_statistics(vae)
    z = functional.pixel_shuffle(latents.float() * std + mean, 2)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return decode_in_equal_batches(vae, z, z.shape[-1] * z.shape[-2] * factor**2)


def normalised_patches(vae: "AutoencoderKLFlux2", z: Tensor) -> Tensor:
    """Bring latents to patches of 2x2 with the mean 0 and the variance 1: (B, C, h, w) → (B, 4C, h/2, w/2)."""
    mean, std = patch_statistics(vae)
    return (functional.pixel_unshuffle(z, 2) - mean) / std


def patch_statistics(vae: "AutoencoderKLFlux2") -> tuple[Tensor, Tensor]:
    """Mean and std of the channels of patches, (4C, 1, 1) each."""
    mean, variance = vae.bn.running_mean, vae.bn.running_var
    assert mean is not None and variance is not None
    return mean.view(-1, 1, 1), (variance + vae.config.batch_norm_eps).sqrt().view(-1, 1, 1)


@torch.no_grad()
def encode_clips(vae: "ClipVAE", clips: np.ndarray) -> Tensor:
    """Encode clips by the autoencoder of Wan or Qwen-Image: uint8 (B, F, H, W, 3) → (B, C, f, h, w).

    An image (B, H, W, 3) is a clip of one frame.
    """
    clips = clips if clips.ndim == 5 else clips[:, None]
    mean, std = channel_statistics(vae)
    batch = batch_size(int(np.prod(clips.shape[1:4])))
    parts = [
        (vae.encode(to_pixels(clips[i : i + batch], vae)).latent_dist.mode() - mean) / std
        for i in range(0, len(clips), batch)
    ]
    return torch.cat(parts)


@torch.no_grad()
def decode_clips(vae: "ClipVAE", latents: Tensor) -> np.ndarray:
    """Decode clips by the autoencoder of Wan or Qwen-Image: (B, C, f, h, w) → uint8 (B, F, H, W, 3)."""
    mean, std = channel_statistics(vae)
    side = vae.config.get("scale_factor_spatial", 8)
    pixels = 4 * side**2 * latents[0, 0].numel()  # a latent stands for 4 frames
    return decode_in_equal_batches(vae, latents.float() * std + mean, pixels)


def encode_frames(vae: "ClipVAE", images: np.ndarray) -> Tensor:
    """Encode images as clips of one frame: uint8 (B, H, W, 3) → (B, C, h, w)."""
    return encode_clips(vae, images)[:, :, 0]


def decode_frames(vae: "ClipVAE", latents: Tensor) -> np.ndarray:
    """Decode images as clips of one frame: (B, C, h, w) → uint8 (B, H, W, 3)."""
    return decode_clips(vae, latents[:, :, None])[:, 0]


def decode_in_equal_batches(vae: "AutoencoderKL | ClipVAE", z: Tensor, pixels: int) -> np.ndarray:
    """Decode z (B, ...), pictures of so many pixels, in batches of one size, the last of them filled up.

    Convolutions round otherwise in a batch of another size.  So a picture is the same to the last bit however many are
    decoded with it, and however many processes share them.  Large pictures are decoded one by one.
    """
    batch = max(1, min(16, 2**18 // pixels))
    filled = torch.cat([z, z[-1:].expand(-len(z) % batch, *z.shape[1:])])
    images = np.concatenate([to_uint8(vae.decode(part).sample) for part in filled.split(batch)])
    return images[: len(z)]


def batch_size(pixels: int) -> int:
    """Number of pictures of so many pixels to encode in one pass: some gigabytes of activations, at any size."""
    return max(1, min(64, 2**21 // pixels))


def channel_statistics(vae: "ClipVAE") -> tuple[Tensor, Tensor]:
    """Mean and std of the latents' channels, (C, 1, 1, 1) each."""
    like = next(vae.parameters())
    mean, std = (
        like.new_tensor(values).view(-1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std


def to_pixels(images: np.ndarray, vae: nn.Module | None = None) -> Tensor:
    """Scale images or clips, on the device of `vae`: uint8 (B, ..., H, W, 3) → (B, 3, ..., H, W) in [-1, 1]."""
    device = "cpu" if vae is None else next(vae.parameters()).device
    writable = images if images.flags.writeable else images.copy()  # of others torch warns
    return torch.from_numpy(writable).to(device).movedim(-1, 1) / 127.5 - 1


def to_uint8(x: Tensor) -> np.ndarray:
    """Round images or clips: (B, 3, ..., H, W) in [-1, 1] → uint8 (B, ..., H, W, 3)."""
    return (x / 2 + 0.5).clamp(0, 1).mul(255).round().byte().movedim(1, -1).cpu().numpy()
