"""Transition kernels: the Gaussian that one denoising step draws x_s from, given x_t.

η = 0 is the ODE for all of them.  The SDEs keep the marginals of the flow as steps shrink; CPS keeps
the noise level at any step size, but the marginals only where x_0 is certain.

Everything an algorithm asks of a step (its log-probability, its distance to a reference) is a
function of the kernel's mean and std, so no algorithm touches the SDE itself.  All of it is fp32:
errors in the mean are divided by std² before they meet an exponential.
"""

import math
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from .flow import expand, predict_noise, predict_x0


class Gaussian(NamedTuple):
    """A Gaussian from which one denoising step draws the next state."""

    mean: Tensor  # (B, ...)
    std: Tensor  # (B, 1, ..., 1), of the whole step (√Δt included), the same in every coordinate


class Kernel(Protocol):
    """A kernel turns a velocity into the distribution of the next state."""

    def __call__(self, x: Tensor, v: Tensor, t: Tensor, s: Tensor, eta: Tensor) -> Gaussian:
        """Return p(x_s | x_t).

        Args:
            x: States at t, (B, ...).
            v: Velocities there, (B, ...).
            t: Times of the states, (B,).
            s: Times that the step leads to, s < t, (B,).
            eta: Noise levels, (B,); 0 is the ODE.
        """
        ...


def flow_sde(x: Tensor, v: Tensor, t: Tensor, s: Tensor, eta: Tensor) -> Gaussian:
    """Return Flow-GRPO's step (arXiv:2505.05470, eq. 9): diffusion g = η √(t / (1 - t)).

    g is infinite at t = 1, so there the denominator borrows the next time, as the authors' code does.  The first
    step from pure noise then has std η whatever the schedule.

    Args: those of `Kernel`.
    """
    g = eta * (t / (1 - torch.where(t == 1, s, t))).sqrt()
    return _euler_maruyama(x, v, t, s, g)


def dance_sde(x: Tensor, v: Tensor, t: Tensor, s: Tensor, eta: Tensor) -> Gaussian:
    """Return DanceGRPO's step (arXiv:2505.07818): constant diffusion g = η.

    Args: those of `Kernel`.
    """
    return _euler_maruyama(x, v, t, s, eta)


def wan_sde(x: Tensor, v: Tensor, t: Tensor, s: Tensor, eta: Tensor) -> Gaussian:
    """Return the step of flow_grpo's SDE for Wan 2.1: g = η t.

    The published setting is η = the second time of the schedule.

    Args: those of `Kernel`.
    """
    return _euler_maruyama(x, v, t, s, eta * t)


def _euler_maruyama(x: Tensor, v: Tensor, t: Tensor, s: Tensor, g: Tensor) -> Gaussian:
    """Return one step of dx = [v + g²/2t (x + (1 - t) v)] dt + g dw, backwards in time."""
    x, v = x.float(), v.float()
    step, g, t_ = expand(t - s, x), expand(g, x), expand(t, x)
    drift = v + g**2 / (2 * t_) * predict_noise(x, v, t)
    return Gaussian(x - drift * step, g * step.sqrt())


def cps(x: Tensor, v: Tensor, t: Tensor, s: Tensor, eta: Tensor) -> Gaussian:
    """Return the step of coefficient-preserving sampling (arXiv:2509.05952): part of the noise becomes fresh noise.

    η lives on [0, 1].  At s = 0 nothing is left to swap, so the step onto the image has no density.

    Args: those of `Kernel`.
    """
    x, v = x.float(), v.float()
    s_, std = expand(s, x), expand(s * (eta * math.pi / 2).sin(), x)
    mean = (1 - s_) * predict_x0(x, v, t) + (s_**2 - std**2).sqrt() * predict_noise(x, v, t)
    return Gaussian(mean, std)


KernelName = Literal["flow_sde", "dance_sde", "wan_sde", "cps"]
KERNELS: dict[KernelName, Kernel] = {
    "flow_sde": flow_sde,
    "dance_sde": dance_sde,
    "wan_sde": wan_sde,
    "cps": cps,
}


def velocity_slope(kernel: Kernel, t: Tensor, s: Tensor, eta: Tensor) -> Tensor:
    """Return how far the mean of a step moves for each unit of velocity, (B,); all kernels are linear in it."""
    zero = torch.zeros(len(t), 1, device=t.device)
    return (kernel(zero, zero + 1, t, s, eta).mean - kernel(zero, zero, t, s, eta).mean)[:, 0]


def velocity_of(kernel: Kernel, mean: Tensor, x: Tensor, t: Tensor, s: Tensor, eta: Tensor) -> Tensor:
    """Return the velocity (B, ...) whose step from x has this mean.

    Args:
        kernel: The kernel of the step.
        mean: The mean of the step's Gaussian, (B, ...).
        x: States at t, (B, ...).
        t: Times of the states, (B,).
        s: Times that the step leads to, (B,).
        eta: Noise levels, (B,).
    """
    still = kernel(x, torch.zeros_like(x, dtype=torch.float32), t, s, eta).mean
    return (mean - still) / expand(velocity_slope(kernel, t, s, eta), x)


def log_prob(p: Gaussian, x: Tensor) -> Tensor:
    """Return log p(x) per coordinate, (B, ...) → (B,).

    It is the mean over coordinates, not the sum: the ratios of the papers' code live on this scale, and their clip
    ranges with them.
    """
    z = (x.float() - p.mean) / p.std
    return (-0.5 * z**2 - p.std.log() - 0.5 * math.log(2 * math.pi)).flatten(1).mean(1)


def variance_free(p: Gaussian, x: Tensor) -> Tensor:
    """Return flow_grpo's log-probability of CPS, -(x - mean)² per coordinate, (B, ...) → (B,).

    It drops the variance, so log-ratios are 2 std² times the true ones: a clip range chosen for it
    holds for no other density.
    """
    return -((x.float() - p.mean) ** 2).flatten(1).mean(1)


def kl(p: Gaussian, q: Gaussian) -> Tensor:
    """Return KL(p ‖ q) per coordinate, (B,), for two policies' kernels of one step, whose std agree."""
    return ((p.mean - q.mean) ** 2 / (2 * p.std**2)).flatten(1).mean(1)
