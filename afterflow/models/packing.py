"""What FLUX and Qwen-Image have in common: tokens of 2x2 latents, and a schedule that knows how many there are."""

from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ..sampling.schedules import DynamicShift, LinearShift, Schedule


def pack_latents(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, H/2 W/2, 4C)."""
    B, C, H, W = x.shape
    return x.view(B, C, H // 2, 2, W // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(B, H // 2 * (W // 2), 4 * C)


def unpack_latents(tokens: Tensor, like: Tensor) -> Tensor:
    """The inverse, in the shape of `like`."""
    B, C, H, W = like.shape
    return tokens.view(B, H // 2, W // 2, C, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(B, C, H, W)


def packed_schedule(scheduler: FlowMatchEulerDiscreteScheduler, tokens: int) -> Schedule:
    """The grid on which the stock pipeline draws images of so many tokens."""
    config = scheduler.config
    if not config.use_dynamic_shifting:
        return LinearShift(config.shift)
    if config.time_shift_type != "exponential":
        raise ValueError(
            f"the pipeline's scheduler shifts times by {config.time_shift_type!r}; only exponential is known"
        )
    low = (config.base_image_seq_len, config.base_shift)
    high = (config.max_image_seq_len, config.max_shift)
    return DynamicShift(tokens, low, high, config.shift_terminal or 0.0)
