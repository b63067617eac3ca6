"""Sizes and tokens of latents: which sizes a model draws, and what FLUX and Qwen-Image have in common.

Those two have tokens of 2x2 latents, and a schedule that depends on how many there are.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..sampling.schedules import DynamicShift, LinearShift, Schedule
from ..system.errors import ConfigError, InputError

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler


def check_divides(pixels: int, unit: int, what: str = "size") -> None:
    """Raise ConfigError unless a side of so many pixels is a multiple of `unit`."""
    if pixels % unit or pixels <= 0:
        near = max(1, pixels // unit) * unit
        raise ConfigError(
            f"{what} = {pixels}: this model draws multiples of {unit} pixels, say {near} or {near + unit}"
        )


def latent_sides(size: int, width: int | None, factor: int, unit: int) -> tuple[int, int]:
    """Height and width of the latents, `factor` times smaller.  ConfigError unless both are multiples of `unit`."""
    check_divides(size, unit)
    if width is not None:
        check_divides(width, unit, "width")
    return size // factor, (size if width is None else width) // factor


def pack_latents(x: Tensor) -> Tensor:
    """Pack latents to tokens: (B, C, H, W) → (B, H/2 W/2, 4C)."""
    B, C, H, W = x.shape
    return x.view(B, C, H // 2, 2, W // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(B, H // 2 * (W // 2), 4 * C)


def unpack_latents(tokens: Tensor, like: Tensor) -> Tensor:
    """Unpack tokens to latents in the shape of `like`: (B, H/2 W/2, 4C) → (B, C, H, W)."""
    B, C, H, W = like.shape
    return tokens.view(B, H // 2, W // 2, C, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(B, C, H, W)


def packed_geometry(pipe: Any, config: Any, factor: int) -> tuple[tuple[int, int, int], Schedule]:
    """Return the latents' shape (C, H, W) at the size that `config` names, and the schedule for so many tokens.

    Raises ConfigError for a size that does not divide into tokens of 2x2 latents, `factor` pixels each.
    """
    H, W = latent_sides(config.size, config.width, factor, 2 * factor)
    return (pipe.transformer.config.in_channels // 4, H, W), packed_schedule(pipe.scheduler, H * W // 4)


def check_text_tokens(count: int, limit: int, model: str, least: int = 1) -> int:
    """Return the number of tokens that a text encoder reads.  ConfigError unless it is from `least` to `limit`."""
    if not least <= count <= limit:
        raise ConfigError(f"max_sequence_length = {count}: {model} reads {least} to {limit} tokens")
    return count


def packed_schedule(scheduler: "FlowMatchEulerDiscreteScheduler", tokens: int) -> Schedule:
    """Return the grid on which the stock pipeline draws so many tokens.  InputError for one we do not know."""
    config = scheduler.config
    if not config.use_dynamic_shifting:
        return LinearShift(config.shift)
    if config.time_shift_type != "exponential":
        raise InputError(
            f"the pipeline's scheduler shifts times by {config.time_shift_type!r}; only exponential is known"
        )
    low = (config.base_image_seq_len, config.base_shift)
    high = (config.max_image_seq_len, config.max_shift)
    return DynamicShift(tokens, low, high, config.shift_terminal or 0.0)
