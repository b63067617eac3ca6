"""Fidelity Q of an image: how much it looks like the renderer's work, whatever it shows.

Q is 1 for a clean render and falls with noise, mottling, blur, colours outside of the world and speckle. Keep
it out of the training reward: what is rewarded stops being a measure.
"""

import math
from dataclasses import astuple, dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from .detector import REJECT, Mask, Segmentation, background_plane, dilate, noise_std, regions, segment
from .world import COLORS, Array

# A local range above this, in grey levels, is an edge.
_EDGE = 45


@dataclass(frozen=True)
class FidelityFactors:
    """The factors of Q, in [0, 1]; Q is their product."""

    noise: float
    """1 where no texture away from edges is stronger than the sensor grain."""
    mottle: float
    """1 where the background is a plane without blotches."""
    sharpness: float
    """1 where edges are about a pixel wide."""
    color: float
    """1 where flat areas are background or near the palette, and the background is the world's grey."""
    speckle: float
    """1 where there are no tiny islands of another colour."""


def fidelity(image: NDArray[np.uint8]) -> float:
    """Return Q of an image, uint8 (S, S, 3), in [0, 1]."""
    return math.prod(astuple(fidelity_factors(image)))


def edge_sharpness(image: NDArray[np.uint8]) -> float:
    """Return 1 for an image, uint8 (S, S, 3), whose edges are about a pixel wide, and less for a blurred one."""
    pixels = image.astype(np.float32)
    return _sharpness(pixels, _local_span(pixels))


def fidelity_factors(image: NDArray[np.uint8]) -> FidelityFactors:
    """Return the five factors of an image, uint8 (S, S, 3), which are 1 for a clean render."""
    pixels = image.astype(np.float32)
    span = _local_span(pixels)
    plane = background_plane(pixels)
    seg = segment(image)
    return FidelityFactors(
        noise=falling(_texture_std(pixels, span), 1.5, 4.5),
        mottle=falling(_mottle(pixels, plane, span), 1.1, 5.0),
        sharpness=_sharpness(pixels, span),
        color=falling(_off_palette(seg, plane, span), 0.0, 0.03),
        speckle=falling(_islands(seg), 12 if len(image) <= 32 else 28, 25.0),
    )


def falling(value: float, free: float, scale: float) -> float:
    """1 up to `free`, then an exponential decay."""
    return math.exp(-max(0.0, value - free) / scale)


def _local_span(pixels: Array) -> Array:
    """Largest range of a channel within 5x5 pixels: (S, S, 3) → (S, S)."""
    high = scipy.ndimage.maximum_filter(pixels, (5, 5, 1))
    return (high - scipy.ndimage.minimum_filter(pixels, (5, 5, 1))).max(-1)


def _texture_std(pixels: Array, span: Array) -> float:
    """Strength of the second difference away from edges, in grey levels."""
    clear = ~dilate(span > _EDGE, 2)
    if clear.mean() <= 0.12:
        return noise_std(pixels)
    second = np.array([1.0, -2.0, 1.0], np.float32)
    curvature = scipy.ndimage.convolve1d(
        scipy.ndimage.convolve1d(pixels, second, 0, mode="reflect"), second, 1, mode="reflect"
    )
    strength = abs(curvature[clear]) / 6
    # The mean square also sees texture that is zero at most pixels.
    return max(1.4826 * float(np.median(strength)), 0.55 * float(np.sqrt((strength**2).mean())))


def _mottle(pixels: Array, plane: Array, span: Array) -> float:
    """Low-pass residual of the background to its plane, in grey levels."""
    residual = pixels - plane
    flat = (abs(residual).max(-1) < 26) & ~dilate(span > _EDGE, 1)
    if flat.sum() <= 40:
        return 30.0
    return float(np.sqrt((scipy.ndimage.gaussian_filter(residual, (1.2, 1.2, 0))[flat] ** 2).mean()))


def _sharpness(pixels: Array, span: Array) -> float:
    """Share of an edge's range that its steepest one-pixel step takes, rescaled to [0, 1]."""
    across, down = abs(np.diff(pixels, axis=1)).max(-1), abs(np.diff(pixels, axis=0)).max(-1)
    step = np.zeros(span.shape, np.float32)
    for part, diff in ((step[:, 1:], across), (step[:, :-1], across), (step[1:], down), (step[:-1], down)):
        np.maximum(part, diff, out=part)
    strong = span > 40
    if strong.sum() <= 12:
        return 0.0
    share = np.median((scipy.ndimage.maximum_filter(step, 3) / np.maximum(span, 1))[strong])
    return float(np.clip((share - 0.22) / (0.52 - 0.22), 0, 1))


def _off_palette(seg: Segmentation, plane: Array, span: Array) -> float:
    """Share of flat pixels that have no colour of the world, plus what is odd about the background."""
    level = plane.mean()
    tint = abs(plane.mean((0, 1)) - level).max()
    odd = max(0.0, 132 - level, level - 194) / 40 + max(0.0, tint - 16) / 20
    foreign = ((span < 40) & ~seg.background & (seg.distance > 18)).mean()
    return float(foreign + 0.5 * max(0.0, 0.25 - seg.background.mean()) + 0.03 * odd)


def _islands(seg: Segmentation) -> int:
    """How many regions of one or two pixels the map of colours has."""
    return sum(_small_regions(mask) for mask in _classes(seg))


def _classes(seg: Segmentation) -> list[Mask]:
    colored = ~seg.background & (seg.distance < REJECT)
    return [seg.background, *(colored & (seg.color == index) for index in range(len(COLORS)))]


def _small_regions(mask: Mask) -> int:
    return int((np.bincount(regions(mask).ravel())[1:] <= 2).sum())
