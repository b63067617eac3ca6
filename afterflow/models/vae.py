"""Autoencoders of diffusers in our terms: images are uint8 and channels last, latents have mean 0 and std 1."""

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderKLQwenImage, AutoencoderKLWan
from torch import Tensor, nn

Clips = AutoencoderKLWan | AutoencoderKLQwenImage


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) → (B, C, h, w)."""
    batch = at_once(images.shape[1] * images.shape[2], 64)
    parts = [vae.encode(pixels(images[i : i + batch], vae)).latent_dist.mode() for i in range(0, len(images), batch)]
    return (torch.cat(parts) - vae.config.shift_factor) * vae.config.scaling_factor


@torch.no_grad()
def decode_images(vae: AutoencoderKL, latents: Tensor) -> np.ndarray:
    """(B, C, h, w) → uint8 (B, H, W, 3)."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    batch = at_once(latents.shape[-1] * latents.shape[-2] * factor**2, 16)
    z = latents.float() / vae.config.scaling_factor + vae.config.shift_factor
    return np.concatenate([bytes_of(vae.decode(part).sample) for part in z.split(batch)])


@torch.no_grad()
def encode_clips(vae: Clips, clips: np.ndarray) -> Tensor:
    """uint8 (B, F, H, W, 3) → (B, C, f, h, w), by the autoencoders of Wan and Qwen-Image."""
    mean, std = statistics(vae)
    batch = at_once(int(np.prod(clips.shape[1:4])), 64)
    parts = [
        (vae.encode(pixels(clips[i : i + batch], vae)).latent_dist.mode() - mean) / std
        for i in range(0, len(clips), batch)
    ]
    return torch.cat(parts)


@torch.no_grad()
def decode_clips(vae: Clips, latents: Tensor) -> np.ndarray:
    """(B, C, f, h, w) → uint8 (B, F, H, W, 3)."""
    mean, std = statistics(vae)
    batch = at_once(256 * latents[0, 0].numel(), 16)  # 4 frames of 8 x 8 pixels to each
    return np.concatenate([bytes_of(vae.decode(part.float() * std + mean).sample) for part in latents.split(batch)])


def at_once(pixels: int, most: int) -> int:
    """Pictures of so many pixels in one pass: activations of some gigabytes, whatever their size."""
    return max(1, min(most, 2**21 // pixels))


def statistics(vae: Clips) -> tuple[Tensor, Tensor]:
    """Mean and std of each channel, (C, 1, 1, 1)."""
    config, like = vae.config, next(vae.parameters())
    of_channels = lambda values: like.new_tensor(values).view(-1, 1, 1, 1)
    return of_channels(config.latents_mean), of_channels(config.latents_std)


def pixels(images: np.ndarray, vae: nn.Module) -> Tensor:
    """uint8 (B, ..., H, W, 3) → (B, 3, ..., H, W) in [-1, 1]."""
    x = torch.from_numpy(images).to(next(vae.parameters()).device)
    return x.movedim(-1, 1) / 127.5 - 1


def bytes_of(x: Tensor) -> np.ndarray:
    """(B, 3, ..., H, W) in [-1, 1] → uint8 (B, ..., H, W, 3)."""
    return (x / 2 + 0.5).clamp(0, 1).mul(255).round().byte().movedim(1, -1).cpu().numpy()
