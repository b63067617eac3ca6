"""Poses of objects: the box that an object fills, and the object that a detection shows."""

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from ..geneval_rules import Box, Detection
from .detector import matte_extent
from .render import PlacedObject
from .world import PALETTE, Array, coverage

TURNS = (-0.2, -0.1, 0.0, 0.1, 0.2)
"""Rotations in radians that are tried where the rotation of an object is open."""
_UNIT = 8.0
"""Radius in pixels with which a fit starts."""


def centre(box: Box) -> tuple[float, float]:
    """Return the middle of a box."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def longer_side(box: Box) -> float:
    """Return the longer side of a box in pixels."""
    return max(box[2] - box[0], box[3] - box[1])


@lru_cache(maxsize=4096)
def object_box(item: PlacedObject) -> Box:
    """Return the box that an object fills, measured as the detector measures it."""
    matte, left, top = _crop(item, 5)
    box = matte_extent(matte)
    assert box is not None
    return box[0] + left, box[1] + top, box[2] + left, box[3] + top


def shown_object(d: Detection, known: PlacedObject | None, image: Array, canvas: Array) -> PlacedObject:
    """Return the object that a detection shows.

    Args:
        d: the detection.
        known: the object where all but its place is known; None where its size and rotation are open.
        image: the picture, (S, S, 3).
        canvas: the picture as it would be without the object, (S, S, 3).
    """
    if known is None:
        turns = (0.0,) if d.cls in ("circle", "ring") else TURNS
        items = [_filling(d, PlacedObject(d.cls, d.color or "", 0.0, 0.0, _UNIT, turn)) for turn in turns]
        first = min(items, key=lambda item: _misfit(item, image, canvas, 2))
        # Thin tips are lost in another size, so it is fitted again in its own, where that is nearer.
        return min((first, _filling(d, first)), key=lambda item: _misfit(item, image, canvas, 4))
    (x, y), (known_x, known_y) = centre(d.box), centre(object_box(known))
    return replace(known, cx=known.cx + x - known_x, cy=known.cy + y - known_y)


def _filling(d: Detection, item: PlacedObject) -> PlacedObject:
    """Return the object in the place and of the size with which it fills the box of a detection."""
    x0, y0, x1, y1 = object_box(item)
    scale = math.sqrt((d.box[2] - d.box[0]) * (d.box[3] - d.box[1]) / ((x1 - x0) * (y1 - y0)))
    (x, y), (item_x, item_y) = centre(d.box), centre((x0, y0, x1, y1))
    return replace(item, cx=x + scale * (item.cx - item_x), cy=y + scale * (item.cy - item_y), r=scale * item.r)


def _misfit(item: PlacedObject, image: Array, canvas: Array, per_pixel: int) -> float:
    """Return by how much the coverage of an object differs from what is seen of its colour, summed over its pixels."""
    matte, left, top = _crop(item, per_pixel)
    rows, cols = (slice(max(0, start), start + len(matte)) for start in (top, left))
    ground = canvas[rows, cols]
    line, offset = np.asarray(PALETTE[item.color], np.float32) - ground, image[rows, cols] - ground
    alpha = np.clip((offset * line).sum(-1) / np.maximum((line * line).sum(-1), 1), 0, 1)
    height, width = alpha.shape
    return float(abs(alpha - matte[max(0, -top) :, max(0, -left) :][:height, :width]).sum())


def _crop(item: PlacedObject, per_pixel: int) -> tuple[Array, int, int]:
    """Return the coverage of the square of pixels around an object, and the left and upper edge of that."""
    reach = math.ceil(item.r * 1.1) + 2
    left, top = math.floor(item.cx) - reach, math.floor(item.cy) - reach
    matte = coverage(item.cls, 2 * reach + 1, item.cx - left, item.cy - top, item.r, item.rot, per_pixel)
    return matte, left, top
