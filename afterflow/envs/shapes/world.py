"""Contents of the shapes world: eight shapes, ten colours, four relations, a 5x7 font, and their geometry."""

from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.floating]

SIZES = (32, 64)
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star", "ring", "heart")
PALETTE = {
    "red": (215, 35, 35),
    "orange": (245, 135, 20),
    "yellow": (245, 225, 45),
    "green": (40, 160, 65),
    "blue": (40, 80, 215),
    "purple": (125, 45, 165),
    "pink": (248, 150, 195),
    "brown": (115, 68, 32),
    "black": (18, 18, 20),
    "white": (250, 250, 250),
}
COLORS = tuple(PALETTE)
RELATIONS = ("left of", "right of", "above", "below")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr", "text")


def world_size(height: int, width: int) -> int:
    """Return the size of the world's images of that height and width; ValueError where it has none."""
    if height != width or height not in SIZES:
        supported = " or ".join(f"{size} x {size}" for size in SIZES)
        raise ValueError(
            f"the shapes world has images of {supported} px, and the model draws {width} x {height}; set its size"
        )
    return height


_FONT = {
    "A": "01110 10001 10001 11111 10001 10001 10001",
    "B": "11110 10001 10001 11110 10001 10001 11110",
    "C": "01111 10000 10000 10000 10000 10000 01111",
    "D": "11110 10001 10001 10001 10001 10001 11110",
    "E": "11111 10000 10000 11110 10000 10000 11111",
    "F": "11111 10000 10000 11110 10000 10000 10000",
    "G": "01111 10000 10000 10011 10001 10001 01111",
    "H": "10001 10001 10001 11111 10001 10001 10001",
    "I": "11111 00100 00100 00100 00100 00100 11111",
    "J": "00111 00010 00010 00010 00010 10010 01100",
    "K": "10001 10010 10100 11000 10100 10010 10001",
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "M": "10001 11011 10101 10101 10001 10001 10001",
    "N": "10001 11001 10101 10101 10011 10001 10001",
    "O": "01110 10001 10001 10001 10001 10001 01110",
    "P": "11110 10001 10001 11110 10000 10000 10000",
    "Q": "01110 10001 10001 10001 10101 10010 01101",
    "R": "11110 10001 10001 11110 10100 10010 10001",
    "S": "01111 10000 10000 01110 00001 00001 11110",
    "T": "11111 00100 00100 00100 00100 00100 00100",
    "U": "10001 10001 10001 10001 10001 10001 01110",
    "V": "10001 10001 10001 10001 10001 01010 00100",
    "W": "10001 10001 10001 10101 10101 11011 10001",
    "X": "10001 10001 01010 00100 01010 10001 10001",
    "Y": "10001 10001 01010 00100 00100 00100 00100",
    "Z": "11111 00001 00010 00100 01000 10000 11111",
    "2": "01110 10001 00001 00110 01000 10000 11111",
    "3": "11110 00001 00001 01110 00001 00001 11110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "00110 01000 10000 11110 10001 10001 01110",
    "7": "11111 00001 00010 00100 01000 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00010 01100",
}
# 0 and 1 are left out: at one pixel a stroke they are O and I.
GLYPHS = {char: np.array([[float(bit) for bit in row] for row in rows.split()]) for char, rows in _FONT.items()}
CHARS = tuple(sorted(GLYPHS))

_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = np.array([0.95047, 1.0, 1.08883])


def lab(rgb: ArrayLike) -> Array:
    """Convert sRGB in 0..255, (..., 3), to CIE L*a*b* under D65, (..., 3)."""
    c = np.asarray(rgb, np.float64) / 255
    c = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    t = (c @ _XYZ.T) / _WHITE
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


PALETTE_RGB = np.array([PALETTE[color] for color in COLORS], np.float64)
PALETTE_LAB = lab(PALETTE_RGB)


def inside(shape: str, x: Array, y: Array) -> NDArray[np.bool_]:
    """Return whether points of the unit box [-1, 1]², y downwards, lie in the shape: (...), (...) → (...)."""
    match shape:
        case "circle":
            return x * x + y * y <= 1
        case "square":
            return (abs(x) <= 0.92) & (abs(y) <= 0.92)
        case "triangle":
            return (y <= 0.86) & (y >= -0.95) & (abs(x) <= (y + 0.95) / 1.81)
        case "diamond":
            return abs(x) + abs(y) <= 1
        case "cross":
            return (np.minimum(abs(x), abs(y)) <= 0.33) & (np.maximum(abs(x), abs(y)) <= 1)
        case "ring":
            r2 = x * x + y * y
            return (r2 <= 1) & (r2 >= 0.52**2)
        case "heart":
            x, y = abs(x) * 1.15, 0.15 - y * 1.2
            return x * x + (y - 0.62 * np.sqrt(x)) ** 2 <= 0.98
        case "star":
            return _in_star(x, y)
    raise ValueError(f"unknown shape {shape!r}; choose one of {', '.join(SHAPES)}")


def _in_star(x: Array, y: Array) -> NDArray[np.bool_]:
    """Return whether points lie in the star: five tips of radius 1 and notches of 0.47, one edge folded by symmetry."""
    fifth = np.float32(2 * np.pi / 5)
    angle = np.arctan2(x, -y)
    angle = abs((angle + fifth / 2) % fifth - fifth / 2)
    r = np.hypot(x, y)
    notch_x, notch_y = 0.47 * np.cos(fifth / 2), 0.47 * np.sin(fifth / 2)
    return (notch_x - 1) * r * np.sin(angle) - notch_y * (r * np.cos(angle) - 1) >= 0


@cache
def _subpixels(size: int, per_pixel: int) -> Array:
    return (np.arange(size * per_pixel, dtype=np.float32) + np.float32(0.5)) / per_pixel


def coverage(shape: str, size: int, cx: float, cy: float, r: float, rot: float = 0.0, per_pixel: int = 5) -> Array:
    """Compute the share of every pixel that the shape covers, (size, size) in [0, 1], anti-aliased.

    Args:
        shape: One of SHAPES.
        size: Pixels of a side.
        cx: Centre in pixels, from the left.
        cy: Centre in pixels, from the top.
        r: Radius in pixels.
        rot: Rotation in radians.
        per_pixel: Number of samples along a side of a pixel.
    """
    o = _subpixels(size, per_pixel)
    dx, dy = (o - np.float32(cx))[None, :] / np.float32(r), (o - np.float32(cy))[:, None] / np.float32(r)
    c, s = np.float32(np.cos(rot)), np.float32(np.sin(rot))
    covered = inside(shape, c * dx + s * dy, c * dy - s * dx).astype(np.float32)
    rows = covered.reshape(size, per_pixel, -1).sum(1)
    return rows.reshape(size, size, per_pixel).sum(2) / per_pixel**2
