"""Rectified flow (arXiv:2209.03003; SD3, arXiv:2403.03206).

A straight line joins an image x_0 to a noise ε, and the model learns its velocity:

    x_t = (1 - t) x_0 + t ε        v = dx_t/dt = ε - x_0        t = 1 is noise, t = 0 is the image
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .row_random import RowRandom


def expand(t: Tensor, x: Tensor) -> Tensor:
    """Reshape t (B,) to (B, 1, ..., 1), ready to broadcast against x."""
    return t.view(-1, *[1] * (x.ndim - 1))


def interpolate(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return x_t on the line from x0 to noise, both (B, ...), at times t (B,)."""
    t = expand(t, x0)
    return (1 - t) * x0 + t * noise


def renoise(x: Tensor, noise: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Return the state at t >= s on the line from the state x (B, ...) at s to `noise`; s and t are (B,)."""
    return interpolate(x, noise, (t - s) / (1 - s))


def predict_x0(x: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """Return the image at the end of the line through x with velocity v; x, v are (B, ...), t is (B,)."""
    return x - expand(t, x) * v


def predict_noise(x: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """Return the noise at the other end of the same line."""
    return x + (1 - expand(t, x)) * v


def shifted(t: Tensor, shift: float) -> Tensor:
    """Move times towards the noise where shift > 1 (SD3, eq. 23); 0 and 1 stay where they are."""
    # Rounding puts some shifts of 1 a hair above it, where an SDE has the root of a negative number.
    return (shift * t / (1 + (shift - 1) * t)).clamp(max=1)


def logit_normal(random: RowRandom) -> Tensor:
    """Draw training times (B,), denser in the middle of the line (SD3, eq. 19, mean 0 and std 1)."""
    return random.normal(()).sigmoid()


def uniform(random: RowRandom) -> Tensor:
    """Draw training times (B,), spread evenly."""
    return random.uniform()


def mode(random: RowRandom, scale: float = 1.29) -> Tensor:
    """Draw training times (B,), denser in the middle but nowhere absent (SD3, eq. 20)."""
    u = random.uniform()
    return 1 - u - scale * ((math.pi / 2 * u).cos() ** 2 - 1 + u)


DensityName = Literal["logit_normal", "uniform", "mode"]
DENSITIES: dict[DensityName, Callable[[RowRandom], Tensor]] = {
    "logit_normal": logit_normal,
    "uniform": uniform,
    "mode": mode,
}
WeightingName = Literal["none", "sigma_sqrt", "cosmap"]


def weighting(name: WeightingName, t: Tensor) -> Tensor:
    """Return the weight of the loss at times t: 1, t^-2, or 2 / (π (1 - 2t + 2t²)) (SD3, section 3.1)."""
    if name == "sigma_sqrt":
        return t**-2
    return 2 / (math.pi * (1 - 2 * t + 2 * t**2)) if name == "cosmap" else torch.ones_like(t)
