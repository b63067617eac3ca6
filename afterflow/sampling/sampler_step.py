"""One step of a sampler from a noised image: where the roll-outs of SOAR (arXiv:2604.12617) lead."""

import torch
from torch import Tensor

from .conditioning import Conditioning, Velocity, linear_guidance
from .flow import expand
from .kernels import Kernel
from .row_random import RowRandom


def sampler_step(
    kernel: Kernel, x: Tensor, v: Tensor, times: tuple[Tensor, Tensor], eta: float, random: RowRandom | None
) -> Tensor:
    """Return the states that one step from x leads to, (B, ...): the ODE's, or with random numbers the SDE's.

    Args:
        kernel: The Gaussian of a stochastic step.
        x: States, (B, ...).
        v: Velocities there, (B, ...).
        times: t and s, between which each row steps, (B,) each.
        eta: Noise level of a stochastic step.
        random: Each row's random numbers; None: the step is the ODE's.
    """
    t, s = times
    if random is None:
        return x - expand(t - s, x) * v
    p = kernel(x, v, t, s, torch.full_like(t, eta))
    return p.mean + p.std * random.normal(x.shape[1:], x.device).to(x.dtype)


def counts_when_stochastic(t: Tensor, s: Tensor) -> Tensor:
    """Return 1 where a stochastic step from t to s counts, else 0, (B,).

    One onto the image leaves noise in it, and flow_sde's first one from near the noise flies off.
    """
    return ((s > 0) & (t < 0.99)).float()


@torch.no_grad()
def guided_prediction(velocity: Velocity, x: Tensor, t: Tensor, cond: Conditioning, v: Tensor, scale: float) -> Tensor:
    """Return v_∅ + g (v_c - v_∅), fp32, (B, ...), with one more forward pass, of the empty prompt; none where g is 1.

    Args:
        velocity: The velocity field.
        x: States, (B, ...).
        t: Their times, (B,).
        cond: The B prompts.
        v: v_c, the velocities with the prompts, (B, ...).
        scale: g, the guidance scale.
    """
    if scale == 1:
        return v.float()
    empty = velocity(x, t, cond.unprompted()).float()
    return linear_guidance(empty, v.float(), scale)
