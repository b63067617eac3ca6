"""Finished images noised again: the rows of methods that learn from the forward process alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .conditioning import Conditioning
from .device_copies import to_device
from .row_random import RowRandom

Together = Literal["row", "group", "image"]
"""What a microbatch never cuts: nothing, the images of a prompt at one time, or the times of an image."""


@dataclass(frozen=True)
class NoisedImages:
    """M rows, each an image of a rollout that is noised to one time.  Only the images themselves are in memory."""

    images: Tensor  # (I, ...) finished latents
    image: Tensor  # (M,) long: which of them a row is of
    seed: Tensor  # (M,) long: the seed of its noise
    t: Tensor  # (M,)
    advantage: Tensor  # (M,)
    unit: Tensor  # (M,) long: equal where rows belong together, which then follow each other
    cond: Conditioning  # M rows
    before: Tensor | None = None  # (M,) log-likelihoods by the policy before the first update, where there are several

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, rows: Tensor) -> "NoisedImages":
        there = to_device(rows, self.t.device)
        chosen = {name: getattr(self, name)[there] for name in ("t", "advantage")}
        chosen |= {name: getattr(self, name)[rows] for name in ("seed", "unit", "cond")}
        before = None if self.before is None else self.before[there]
        images = self.images[to_device(self.image[rows], self.images.device)]
        return NoisedImages(images, torch.arange(len(rows)), **chosen, before=before)

    def mass(self, rows: Tensor) -> float:
        """Return the number of these rows."""
        return float(len(rows))

    def x0(self) -> Tensor:
        """Return the image of each row, (M, ...) fp32."""
        return self.images[to_device(self.image, self.images.device)].float()

    def noise(self) -> Tensor:
        """Return the noise of each row, (M, ...) fp32; rows of one seed have the same."""
        seeds, position = self.seed.unique(return_inverse=True)
        drawn = RowRandom.seeded(seeds).normal(self.images.shape[1:], self.images.device)
        return drawn[to_device(position, drawn.device)]


def noised_images(
    leaves: Tensor,
    cond: Conditioning,
    t: Tensor,
    seed: Tensor,
    advantage: Tensor,
    together: Together,
) -> tuple[NoisedImages, Tensor, Tensor]:
    """Return the rows of P groups of G images, and of each unit that stays together its group and its number of rows.

    An image without an advantage has no row, nor has a group without spread, in which nothing is better.

    Args:
        leaves: Finished latents, (P, G, ...).
        cond: The P prompts.
        t: The times of each image, (P, T, G).
        seed: The seeds of their noise, (P, T, G) long.
        advantage: (P, G); NaN takes an image out.
        together: What a microbatch never cuts.
    """
    (P, G), T = leaves.shape[:2], t.shape[1]
    used = trainable_images(advantage)
    p, j, i = torch.meshgrid(torch.arange(P), torch.arange(T), torch.arange(G), indexing="ij")
    axes = (0, 2, 1) if together == "image" else (0, 1, 2)
    order = lambda value: value.permute(axes).flatten()
    rows = order(used[:, None].expand(P, T, G))
    p, j, i, t, seed = (order(value)[rows] for value in (p, j, i, t, seed))
    key = {"row": (p * T + j) * G + i, "group": p * T + j, "image": p * G + i}[together]
    units, unit, sizes = key.unique_consecutive(return_inverse=True, return_counts=True)
    group = units // {"row": T * G, "group": T, "image": G}[together]
    device = leaves.device
    made = NoisedImages(
        leaves.flatten(0, 1),
        p * G + i,
        seed,
        to_device(t, device),
        to_device(advantage[p, i], device),
        unit,
        cond[p],
    )
    return made, group, sizes


def trainable_images(advantage: Tensor) -> Tensor:
    """Return which images (P, G) are learnt from: those with an advantage, in groups where not all have the same."""
    known = advantage.isfinite()
    low, high = (advantage.where(known, limit) for limit in (torch.inf, -torch.inf))
    return known & (high.amax(1, keepdim=True) > low.amin(1, keepdim=True))


def mean_of_units(values: Tensor, unit: Tensor) -> Tensor:
    """Return the mean of each unit's values, at each of its rows, (M,) → (M,)."""
    _, position, count = unit.unique(return_inverse=True, return_counts=True)
    position, count = to_device(position, values.device), to_device(count, values.device)
    sums = values.new_zeros(len(count)).index_add(0, position, values)
    return (sums / count)[position]


def row_seeds(shape: Sequence[int], one_time: bool, one_image: bool, sources: Sequence[torch.Generator]) -> Tensor:
    """Return the seeds of the noise of rows, (P, T, G) long.

    Args:
        shape: T and G.
        one_time: Whether the times of an image share their noise.
        one_image: Whether the images of a prompt do.
        sources: P generators.
    """
    drawn = [1 if one else size for one, size in zip((one_time, one_image), shape)]
    seeds = torch.stack([torch.randint(2**62, drawn, generator=source) for source in sources])
    return seeds.expand(-1, *shape)
