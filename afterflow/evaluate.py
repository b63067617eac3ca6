"""Pictures by the ODE, and what they are worth."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .cond import Cond, Velocity
from .kernels import flow_sde
from .models.base import Model
from .rollout import chain, draw, sample
from .seeds import generator


def starting_noise(cond: Cond, per_prompt: int, shape: Sequence[int], seed: int) -> Tensor:
    """(P, per_prompt, ...): depends on seed and the place of the prompt alone, so that two models can be paired."""
    sources = [generator(seed, "evaluation", p) for p in range(len(cond))]
    return draw(sources, per_prompt, torch.empty(len(cond), 1, *shape, device=cond.index.device))


def pictures(velocity: Velocity, model: Model, cond: Cond, noise: Tensor, steps: int) -> np.ndarray:
    """Noise (P, G, ...) → uint8 (P, G, H, W, 3) by the ODE on the pipeline's own grid."""
    plan = chain(model.schedule.times(steps), noise.shape[1], 0.0, ())
    leaves = sample(velocity, flow_sde, plan, cond, noise, ()).leaves
    images = model.decode(leaves.flatten(0, 1))
    return images.reshape(*leaves.shape[:2], *images.shape[1:])
