"""Weights of the distance of two velocities at each step (arXiv:2605.08063, arXiv:2605.15055).

Student and teacher step from the same state with the same std, so the KL of their Gaussians is a multiple of
‖v_S - v_T‖²: the squared slope of the mean in the velocity over twice the variance.
"""

from typing import Literal

import torch
from torch import Tensor

from ..sampling.kernels import Kernel, velocity_slope

StepWeight = Literal["ode", "kl", "flow_grpo", "v", "x0"]


def step_weight(name: StepWeight, kernel: Kernel, t: Tensor, s: Tensor, eta: Tensor) -> Tensor:
    """Return ω (B,) of steps t → s, for distances that are means over coordinates.

    Args:
        name: One of the weights below.
        kernel: The kernel of the step.
        t: Times of the states, (B,).
        s: Times that the step leads to, (B,).
        eta: Noise levels, (B,).

    ode         ½ (t - s)²: half the squared distance of where the two steps of the ODE lead
    kl          the KL of the kernel's Gaussians at noise level eta
    flow_grpo   the same without the length of the step in the variance, as the released code has it
    v, x0       1 and t²: the distance of velocities, and of the images they point at
    """
    if name == "v":
        return torch.ones_like(t)
    if name == "x0":
        return t**2
    if name == "ode":
        return (t - s) ** 2 / 2
    zero = torch.zeros(len(t), 1, device=t.device)
    std = kernel(zero, zero, t, s, eta).std[:, 0]
    weight = velocity_slope(kernel, t, s, eta) ** 2 / (2 * std**2)
    return weight * (t - s) if name == "flow_grpo" else weight


def self_normalised(v: Tensor, other: Tensor) -> Tensor:
    """Return ‖v - other‖² over the detached mean of |v - other|, (B, ...) → (B,); far and near states pull alike."""
    error = (v.float() - other.float()).flatten(1)
    return (error**2).mean(1) / error.detach().abs().mean(1).clamp(min=1e-6)
