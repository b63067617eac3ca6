"""What the distance of two velocities is worth at each step (arXiv:2605.08063, arXiv:2605.15055).

Student and teacher step from the same state with the same std, so the KL of their Gaussians is a multiple of
‖v_S - v_T‖²: the squared slope of the mean in the velocity over twice the variance.
"""

from typing import Literal

import torch
from torch import Tensor

from ..sampling.kernels import Kernel, velocity_slope

StepWeight = Literal["ode", "kl", "flow_grpo", "v", "x0"]


def step_weight(name: StepWeight, kernel: Kernel, t: Tensor, s: Tensor, eta: Tensor) -> Tensor:
    """ω (B,) of steps t → s, for distances that are means over coordinates.

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


def squared_distance(v: Tensor, other: Tensor) -> Tensor:
    """‖v - other‖² per coordinate, fp32, (B, ...) → (B,)."""
    return ((v.float() - other.float()) ** 2).flatten(1).mean(1)


def self_normalised(v: Tensor, other: Tensor) -> Tensor:
    """‖v - other‖² over the detached mean of |v - other|, (B, ...) → (B,): far and near states then pull alike."""
    error = (v.float() - other.float()).flatten(1)
    return (error**2).mean(1) / error.detach().abs().mean(1).clamp(min=1e-6)
