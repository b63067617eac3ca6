"""Style of images of the shapes world: how near each is to one small colourless object in an empty picture.

It asks for the opposite of what most prompts count and colour, whatever the prompt is.  So a model that is rewarded for
both must give up some of one for the other: a red object, and two objects, have less style than one black object.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from .detector import regions, segment
from .world import Array, lab

MARGIN = 0.25
"""Margin that has full credit, as a share of the side.  The largest object leaves .33 where it is in the middle."""
CHROMA = 40.0
"""Chroma in Lab at which `muted` is 1/e: red has 81, pink 43, brown 34, black and white 1 and less."""
SMALLEST_MARK = 1 / 128
"""Share of an image that a mark covers at least: 8 pixels of 32 px, a quarter of the smallest object."""


@dataclass(frozen=True)
class StyleParts:
    """The parts of the style of N images, (N,) each in [0, 1]; all are 0 where an image shows nothing."""

    few: Array
    """1 over the number of marks."""
    muted: Array
    """1 where the marks have no colour, and less by the mean chroma of their pixels."""
    margin: Array
    """1 where no mark is nearer to the border than MARGIN, and in proportion below that."""

    @property
    def style(self) -> Array:
        """The mean of the three."""
        return (self.few + self.muted + self.margin) / 3


def style_parts(images: NDArray[np.uint8]) -> StyleParts:
    """Return the parts of the style of N images, uint8 (N, S, S, 3).

    A mark is a connected group of pixels that are not background by the verifier's segmentation, for which a shadow is
    background.  Groups smaller than SMALLEST_MARK are noise.
    """
    labels = np.array([_label_marks(image) for image in images]).reshape(images.shape[:3])
    marked, count = labels > 0, labels.max((1, 2), initial=0)
    colors = lab(images)[..., 1:]
    chroma = (np.hypot(colors[..., 0], colors[..., 1]) * marked).sum((1, 2)) / np.maximum(marked.sum((1, 2)), 1)
    size = images.shape[1]
    nearest = np.where(marked, _border_distance(size), size).min((1, 2))
    shown = count > 0
    return StyleParts(
        few=shown / np.maximum(count, 1),
        muted=shown * np.exp(-chroma / CHROMA),
        margin=shown * np.minimum(nearest / (MARGIN * size), 1.0),
    )


def _label_marks(image: NDArray[np.uint8]) -> NDArray[np.integer]:
    """Number the marks of an image from 1: (S, S, 3) → (S, S), 0 outside."""
    labels = regions(~segment(image).background)
    large = np.bincount(labels.ravel()) >= SMALLEST_MARK * labels.size
    large[0] = False
    return np.where(large, large.cumsum(), 0)[labels]


@cache
def _border_distance(size: int) -> NDArray[np.integer]:
    """Number of pixels between each pixel and the border, (S, S): 0 in the first row."""
    to_end = np.minimum(np.arange(size), np.arange(size)[::-1])
    return np.minimum(to_end[:, None], to_end[None, :])
