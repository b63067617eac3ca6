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
    mean: Tensor  # (B, ...)
    std: Tensor  # (B, 1, ..., 1), of the whole step (√Δt included), the same in every coordinate


class Kernel(Protocol):
    def __call__(self, x: Tensor, v: Tensor, t: Tensor, s: Tensor, eta: Tensor) -> Gaussian:
        """p(x_s | x_t) for x, v (B, ...) and times t > s and noise level eta, all (B,)."""
        ...


def flow_sde(x: Tensor, v: Tensor, t: Tensor, s: Tensor, eta: Tensor) -> Gaussian:
    """Flow-GRPO (arXiv:2505.05470, eq. 9): diffusion g = η √(t / (1 - t)).

    g is infinite at t = 1, so there the denominator borrows the next time, as the authors' code does;
    the first step from pure noise then has std η whatever the schedule.
    """
    g = eta * (t / (1 - torch.where(t == 1, s, t))).sqrt()
    return _euler_maruyama(x, v, t, s, g)


def dance_sde(x: Tensor, v: Tensor, t: Tensor, s: Tensor, eta: Tensor) -> Gaussian:
    """DanceGRPO (arXiv:2505.07818): constant diffusion g = η."""
    return _euler_maruyama(x, v, t, s, eta)


def wan_sde(x: Tensor, v: Tensor, t: Tensor, s: Tensor, eta: Tensor) -> Gaussian:
    """flow_grpo's SDE for Wan 2.1: g = η t.  The published setting is η = the second time of the schedule."""
    return _euler_maruyama(x, v, t, s, eta * t)


def _euler_maruyama(x: Tensor, v: Tensor, t: Tensor, s: Tensor, g: Tensor) -> Gaussian:
    """One step of dx = [v + g²/2t (x + (1 - t) v)] dt + g dw, backwards in time."""
    x, v = x.float(), v.float()
    step, g, t_ = expand(t - s, x), expand(g, x), expand(t, x)
    drift = v + g**2 / (2 * t_) * predict_noise(x, v, t)
    return Gaussian(x - drift * step, g * step.sqrt())


def cps(x: Tensor, v: Tensor, t: Tensor, s: Tensor, eta: Tensor) -> Gaussian:
    """Coefficient-preserving sampling (arXiv:2509.05952): swap part of the noise for fresh noise.

    η lives on [0, 1]; at s = 0 nothing is left to swap, so the step onto the image has no density.
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
    """How far the mean of a step moves for each unit of velocity, (B,): all kernels are linear in it."""
    zero = torch.zeros(len(t), 1, device=t.device)
    return (kernel(zero, zero + 1, t, s, eta).mean - kernel(zero, zero, t, s, eta).mean)[:, 0]


def velocity_of(kernel: Kernel, mean: Tensor, x: Tensor, t: Tensor, s: Tensor, eta: Tensor) -> Tensor:
    """The velocity (B, ...) whose step from x has this mean."""
    still = kernel(x, torch.zeros_like(x, dtype=torch.float32), t, s, eta).mean
    return (mean - still) / expand(velocity_slope(kernel, t, s, eta), x)


def log_prob(p: Gaussian, x: Tensor) -> Tensor:
    """log p(x) per coordinate, (B, ...) → (B,).

    The mean, not the sum, over coordinates: the ratios of the papers' code live on this scale, and
    their clip ranges with them.
    """
    z = (x.float() - p.mean) / p.std
    return (-0.5 * z**2 - p.std.log() - 0.5 * math.log(2 * math.pi)).flatten(1).mean(1)


def variance_free(p: Gaussian, x: Tensor) -> Tensor:
    """flow_grpo's log-probability of CPS: -(x - mean)² per coordinate, (B, ...) → (B,).

    It drops the variance, so log-ratios are 2 std² times the true ones: a clip range chosen for it
    holds for no other density.
    """
    return -((x.float() - p.mean) ** 2).flatten(1).mean(1)


def kl(p: Gaussian, q: Gaussian) -> Tensor:
    """KL(p ‖ q) per coordinate, (B,), for two policies' kernels of one step, whose std agree."""
    return ((p.mean - q.mean) ** 2 / (2 * p.std**2)).flatten(1).mean(1)
