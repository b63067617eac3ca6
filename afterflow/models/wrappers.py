"""Velocity → Velocity: guidance, chunks, precision.  No algorithm asks which of them are on."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..sampling.conditioning import Conditioning, Velocity, linear_guidance
from ..sampling.device_copies import to_device

Combine = Callable[[Tensor, Tensor, float], Tensor]


def guided(velocity: Velocity, scale: float, combine: Combine = linear_guidance) -> Velocity:
    """Guide a velocity by the one without a prompt, both in one forward pass (arXiv:2207.12598).

    Gradients flow through both.  scale = 1 costs no second row.
    """
    if scale == 1:
        return velocity

    def v(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        both = replace(cond, index=torch.cat([cond.unprompted().index, cond.index]))
        empty, full = velocity(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return combine(empty, full, scale)

    return v


def identity(value: Any) -> Any:
    """Return `value`: the number of passes where no other process needs more, the network where it is not sharded."""
    return value


def in_chunks(velocity: Velocity, size: int, all_passes: Callable[[int], int] = identity) -> Velocity:
    """Make forward passes of exactly `size` rows, the last one padded.

    Matrix products of another shape round differently, so a rollout and its replay must use one shape for
    their ratio to be exactly 1.  Rows may lie on another device than the prompts; velocities come back there.
    all_passes: number of passes here → number to make, where other processes hold shards of the weights and need more.
    """

    def v(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        rows = torch.arange(len(x))
        chunks = rows.split(size)
        out = []
        for chunk in (*chunks, *[rows[:1]] * (all_passes(len(chunks)) - len(chunks))):
            padded = torch.cat([chunk, chunk[-1:].expand(size - len(chunk))])
            chosen = to_device(padded, x.device)
            inputs = to_device(x[chosen], cond.device), to_device(t[chosen], cond.device)
            predicted = velocity(*inputs, cond[padded])
            out.append(predicted[: len(chunk)].to(x.device))
        return torch.cat(out[: len(chunks)])

    return v


def in_context(velocity: Velocity, context: Callable[[], AbstractContextManager]) -> Velocity:
    """Make every call inside a fresh context: mixed precision, or an adapter switched off."""

    def v(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        with context():
            return velocity(x, t, cond)

    return v
