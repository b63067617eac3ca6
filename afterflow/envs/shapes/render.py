"""Renderer of records: objects or a sign on a grey gradient, with shading, soft shadows and sensor grain.

Background, shading, shadow, grain and layout are never named in a prompt and never rewarded: a policy that
hacks its reward destroys them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..geneval_rules import Record
from .world import COLORS, GLYPHS, PALETTE, PALETTE_LAB, SIZES, Array, coverage

ImageArray = NDArray[np.uint8]

SHADOW = 0.24
"""Share of the light that the middle of a shadow takes."""
SHADING = 0.07
"""Change of an object's light from its centre to its edge."""
GRAIN_STD = 1.0
"""Standard deviation of the sensor grain, in grey levels."""
# Shapes with thin parts need more pixels than a disc to be told apart.
_THIN = ("ring", "star", "heart", "cross")
# A sign must be readable in grey: plate and ink differ by more than this in L*.
_SIGN_COLORS = [
    (plate, ink)
    for plate, light in zip(COLORS, PALETTE_LAB[:, 0], strict=True)
    for ink, other in zip(COLORS, PALETTE_LAB[:, 0], strict=True)
    if abs(light - other) > 45
]


@dataclass(frozen=True)
class PlacedObject:
    """An object with its position in an image, in pixels."""

    cls: str
    """Shape of the object."""
    color: str
    """Name of its colour in the palette."""
    cx: float
    """Centre, from the left."""
    cy: float
    """Centre, from the top."""
    r: float
    """Radius."""
    rot: float
    """Rotation in radians."""


def render_image(record: Record, size: int, rng: np.random.Generator) -> ImageArray:
    """Render a true image of the record, uint8 (size, size, 3); what it leaves open is random.

    Raises ValueError for another size than 32 or 64, and where the objects or the text find no room.
    """
    if size not in SIZES:
        raise ValueError(f"size must be 32 or 64, not {size}")
    canvas = background(size, rng)
    if record["tag"] == "text":
        draw_sign(canvas, record["text"], rng)
    else:
        draw_objects(canvas, place_objects(record, size, rng))
    return develop(canvas, rng)


def render_batch(records: Sequence[Record], size: int, rng: np.random.Generator) -> ImageArray:
    """Render one image of each of B records: uint8 (B, size, size, 3)."""
    return np.stack([render_image(record, size, rng) for record in records])


def background(size: int, rng: np.random.Generator) -> Array:
    """Draw a tinted grey plane, float32 (size, size, 3)."""
    base = rng.uniform(148, 178) + rng.uniform(-10, 10, 3)
    slope_x, slope_y = rng.uniform(-14, 14, 2)
    u = np.linspace(-1, 1, size)
    plane = slope_x * u[None, :] + slope_y * u[:, None]
    return (base + plane[..., None]).astype(np.float32)


def develop(canvas: Array, rng: np.random.Generator) -> ImageArray:
    """Add grain and quantise: float (S, S, 3) → uint8 (S, S, 3)."""
    grain = rng.standard_normal(canvas.shape, np.float32) * np.float32(GRAIN_STD)
    return np.clip(np.rint(canvas + grain), 0, 255).astype(np.uint8)


def draw_objects(canvas: Array, objects: Sequence[PlacedObject]) -> None:
    """Paint every object, in place, on the patch that it and its shadow touch."""
    for item in objects:
        reach = int(np.ceil(item.r * 1.1)) + 5
        x0, y0 = int(item.cx) - reach, int(item.cy) - reach
        mask = coverage(item.cls, 2 * reach + 1, item.cx - x0, item.cy - y0, item.r, item.rot)
        _paint(canvas, mask, x0, y0, PALETTE[item.color], (item.cx - x0, item.cy - y0), item.r)


def draw_sign(canvas: Array, text: str, rng: np.random.Generator, colors: tuple[str, str] | None = None) -> None:
    """Paint a plate with the text on it, in place; the strokes are two pixels wide where they fit."""
    size = len(canvas)
    plate, ink = colors or sign_colors(rng)
    scale = 2 if 12 * len(text) + 6 <= size else 1
    width, height = scale * (6 * len(text) - 1), 7 * scale
    margin = min(2 * scale, (size - width - 1) // 2)
    if margin < 1:
        raise ValueError(f"the text {text!r} is too long for an image of {size} px")
    # Across in the middle, down on a grid of 8 pixels: a model of few patches is to learn spelling, and with signs
    # at any pixel it had drawn 0.8 M of them and not one right.
    x0 = (size - width) // 2
    y0 = 8 * int(rng.integers(1, (size - height - margin - 1) // 8 + 1))
    pad = margin + 5
    mask = np.zeros((height + 2 * pad, width + 2 * pad), np.float32)
    mask[pad - margin : pad + height + margin, pad - margin : pad + width + margin] = 1
    _paint(canvas, mask, x0 - pad, y0 - pad, PALETTE[plate], (pad + width / 2, pad + height / 2), width / 2)
    strokes = np.repeat(np.repeat(lettering(text), scale, 0), scale, 1) > 0
    canvas[y0 : y0 + height, x0 : x0 + width][strokes] = PALETTE[ink]


def sign_colors(rng: np.random.Generator) -> tuple[str, str]:
    """Draw the colours of a plate and of its ink."""
    return _SIGN_COLORS[rng.integers(len(_SIGN_COLORS))]


def lettering(text: str) -> Array:
    """Draw a line of L glyphs one empty column apart: (7, 6L - 1) of 0 and 1."""
    return np.concatenate([np.pad(GLYPHS[char], ((0, 0), (0, 1))) for char in text], 1)[:, :-1]


def place_objects(record: Record, size: int, rng: np.random.Generator) -> list[PlacedObject]:
    """Place the objects of the record at random, by rejection, so that they neither touch nor break a relation.

    Raises ValueError where they find no room.
    """
    wanted = [(clause, index) for index, clause in enumerate(record["include"]) for _ in range(clause["count"])]
    for _ in range(400):
        objects = _attempt(record, wanted, size, rng)
        if objects is not None:
            return objects
    raise ValueError(f"could not place {len(wanted)} objects in {size} px; ask for fewer")


def _attempt(record: Record, wanted: list, size: int, rng: np.random.Generator) -> list[PlacedObject] | None:
    """Try one layout; None when an object finds no room among 60 random positions."""
    scale = size / 64
    gap = max(3.0 * scale, 2.2)
    objects, owners = [], []
    xyr = np.empty((len(wanted), 3))
    for k, (clause, index) in enumerate(wanted):
        r = _radius(clause["class"], len(wanted), size, rng)
        centre = r + 1.5 + _proposals(len(wanted), rng) * (size - 2 * r - 4)
        offset = centre[:, None] - xyr[None, :k, :2]
        free = (np.hypot(offset[..., 0], offset[..., 1]) > (r + xyr[:k, 2]) * 1.12 + gap).all(1)
        if "position" in clause:
            relation, target = clause["position"]
            anchors = [j for j, owner in enumerate(owners) if owner == target]
            free &= _stands(relation, offset[:, anchors]).all(1)
        if not free.any():
            return None
        xyr[k] = *centre[free.argmax()], r
        color = clause.get("color") or COLORS[rng.integers(len(COLORS))]
        cx, cy = xyr[k, :2].tolist()
        objects.append(PlacedObject(clause["class"], color, cx, cy, r, float(rng.uniform(-0.2, 0.2))))
        owners.append(index)
    return objects


def _proposals(n_objects: int, rng: np.random.Generator) -> Array:
    """Draw (60, 2) positions in the unit square to try."""
    if n_objects < 5 or rng.random() < 0.5:
        return rng.random((60, 2))
    # Five objects hardly ever find room by chance in 32 px, so every other proposal is near a die's five.
    spots = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [0.5, 0.5]])[rng.integers(5, size=60)]
    return np.clip(spots + rng.uniform(-0.12, 0.12, (60, 2)), 0, 1)


def _radius(cls: str, n_objects: int, size: int, rng: np.random.Generator) -> float:
    scale = size / 64
    low, high = (6.2, 11.0) if n_objects <= 2 else (5.4, 8.2)
    r = float(rng.uniform(max(low * scale, 3.6), high * scale))
    return max(r, smallest_radius(cls, size, n_objects))


def smallest_radius(cls: str, size: int, n_objects: int = 1) -> float:
    """Return the radius in pixels below which a shape cannot be told apart; 0 for shapes without thin parts."""
    thin = 7.0 if size == 64 else 4.6 if n_objects < 5 else 4.2
    return thin if cls in _THIN else 0.0


def _stands(relation: str, offset: Array) -> NDArray[np.bool_]:
    """Return whether (..., 2) offsets from the target show the relation clearly: (...)."""
    dx, dy = offset[..., 0], offset[..., 1]
    parallel, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    sign = -1 if relation in ("left of", "above") else 1
    return sign * parallel > 1.6 * abs(across)


def _paint(canvas: Array, mask: Array, x0: int, y0: int, rgb: tuple, centre: tuple, r: float) -> None:
    """Blend one shaded colour and its shadow into the canvas through a mask whose corner lies at (x0, y0)."""
    size, (height, width) = len(canvas), mask.shape
    shadow = _shadow_kernel(height) @ mask @ _shadow_kernel(width).T
    rows = slice(max(0, -y0), min(height, size - y0))
    cols = slice(max(0, -x0), min(width, size - x0))
    mask, shadow = mask[rows, cols, None], shadow[rows, cols, None]
    x = np.arange(cols.start, cols.stop, dtype=np.float32) + np.float32(0.5 - centre[0])
    y = np.arange(rows.start, rows.stop, dtype=np.float32) + np.float32(0.5 - centre[1])
    slope = np.clip((x[None, :] + y[:, None]) / np.float32(2 * r), -1, 1)
    shade = 1 - np.float32(SHADING) * slope[..., None]
    color = np.minimum(np.asarray(rgb, np.float32) * shade, 255)
    patch = canvas[y0 + rows.start : y0 + rows.stop, x0 + cols.start : x0 + cols.stop]
    patch *= (1 - np.float32(SHADOW) * shadow * (1 - mask)) * (1 - mask)
    patch += color * mask


@cache
def _shadow_kernel(n: int) -> Array:
    """(n, n): moves a column 1.3 px down and blurs it by a Gaussian of 0.9 px."""
    tap = np.arange(-4, 5)
    blur = np.exp(-0.5 * (tap / 0.9) ** 2)
    taps = 0.7 * np.pad(blur, (1, 2)) + 0.3 * np.pad(blur, (2, 1))
    kernel = sum(weight * np.eye(n, k=-shift) for weight, shift in zip(taps / blur.sum(), range(-4, 8), strict=True))
    return np.asarray(kernel, np.float32)
