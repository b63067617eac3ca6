"""Detect the objects of an image with classical vision, and measure the share that they leave unexplained.

Robust background plane → palette colour of each pixel → connected regions → alpha matte along the line from
background to object → the matte, resampled to its bounding box, against a bank of templates.
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from ..geneval_rules import Detection
from .world import COLORS, PALETTE_LAB, SHAPES, Array, coverage, lab

Mask = NDArray[np.bool_]

REJECT = 27.0
"""Distance in Lab beyond which a pixel has no palette colour; blue and purple are 29.5 apart."""
_SIDE = 24
_DIAMETERS = (7.5, 9.0, 11.0, 14.0, 18.0, 23.0, 30.0)
_NEIGHBOURS = [(dy, dx) for dy in (0, 1, 2) for dx in (0, 1, 2) if (dy, dx) != (1, 1)]
_EIGHT = np.ones((3, 3), bool)


@dataclass(frozen=True)
class DetectionResult:
    """The objects of an image, and how much of it they leave unexplained."""

    detections: tuple[Detection, ...]
    """Detections, the most confident first; every region with an object's colour is one, of whatever shape."""
    unexplained: float
    """Share of the image that is neither background nor part of a detection."""


class Segmentation(NamedTuple):
    """The pixels of an image, split into background and palette colours."""

    pixels: Array
    """Pixels (S, S, 3), denoised where the image is noisy."""
    plane: Array
    """Background (S, S, 3) as it would be without objects."""
    background: Mask
    """Mask (S, S) of the background and its shadows."""
    color: NDArray[np.integer]
    """Index (S, S) of the nearest palette colour."""
    distance: Array
    """Distance (S, S) to that colour in Lab."""


def detect(image: NDArray[np.uint8]) -> DetectionResult:
    """Detect the objects of an image, uint8 (S, S, 3), and the share of it that they leave unexplained."""
    seg, size = segment(image), len(image)
    colors = np.where(~seg.background & (seg.distance < REJECT), seg.color, -1)
    owner, region_colors = _label_regions(colors, _min_area(size))
    explained = np.zeros((size, size), bool)
    detections = []
    grown = _grow(owner, seg.background) if region_colors else owner
    for label, box in enumerate(scipy.ndimage.find_objects(grown), 1):
        window, color = _pad(box, size), region_colors[label - 1]
        matte = _matte(seg.pixels[window], seg.plane[window], owner[window] == label, grown[window] == label)
        detection = _describe(matte, colors[window], color, (window[1].start, window[0].start))
        if detection is not None and matte.sum() >= _min_area(size):
            detections.append(detection)
            explained[window] |= matte > 0.3
    detections.sort(key=lambda d: -d.score)
    return DetectionResult(tuple(detections), clutter(~seg.background & ~dilate(explained, 2)))


def segment(image: NDArray[np.uint8]) -> Segmentation:
    """Split an image, uint8 (S, S, 3), into a lit grey plane and palette colours."""
    pixels = image.astype(np.float32)
    sigma, slack = noise_std(pixels), 0.0
    if sigma > 4.0 and len(image) > 32:
        pixels = scipy.ndimage.median_filter(pixels, (3, 3, 1))
        image = pixels.astype(np.uint8)
    elif sigma > 2.0:
        # A median filter would eat the shapes of a small picture, so the tolerance widens instead.
        slack = min(0.22, 2.6 * (sigma - 1) / 160)
    plane = background_plane(pixels)
    color, distance = _nearest_color(image)
    return Segmentation(pixels, plane, _is_background(pixels, plane, slack), color, distance)


def noise_std(pixels: Array) -> float:
    """Estimate the standard deviation of the pixel noise of (S, S, 3) robustly, without the edges."""
    across = pixels[:, 2:] - 2 * pixels[:, 1:-1] + pixels[:, :-2]
    second = (across[2:] - 2 * across[1:-1] + across[:-2]).ravel() / 6
    second = abs(second - _median(second))
    return 1.4826 * _median(second)


def background_plane(pixels: Array) -> Array:
    """Fit the plane per channel that most pixels follow, starting from the border: (S, S, 3) → (S, S, 3)."""
    size = len(pixels)
    x, border = _plane_basis(size)
    y = pixels.reshape(-1, 3)
    median = np.median(y[border], 0)
    flat = coef = np.stack([median, np.zeros(3), np.zeros(3)]).astype(np.float32)
    for tolerance, among in ((30, border), (22, True), (16, True), (12, True)):
        follows = (largest(abs(y - x @ coef)) < tolerance) & among
        if follows.sum() < 12:
            coef = flat
            break
        xw = x * follows[:, None]
        coef = np.linalg.solve(xw.T @ x + 1e-6 * np.eye(3), xw.T @ y).astype(np.float32)
    coef[1:] = np.clip(coef[1:], -22, 22)
    return (x @ coef).reshape(size, size, 3)


def clutter(unexplained: Mask) -> float:
    """Return the share of the image that clusters of unexplained pixels cover; a lone noisy pixel is no cluster."""
    labels = regions(unexplained)
    areas = np.bincount(labels.ravel())[1:]
    smallest = 4 if len(unexplained) <= 32 else 7
    return float(areas[areas >= smallest].sum() / unexplained.size)


def regions(mask: Mask, structure: Mask | None = None) -> NDArray[np.int32]:
    """Number the connected regions of a mask from 1: (S, S) → (S, S), 0 outside."""
    labels = np.zeros(mask.shape, np.int32)
    scipy.ndimage.label(mask, structure, output=labels)
    return labels


def dilate(mask: Mask, steps: int) -> Mask:
    """Grow a mask by its four neighbours, `steps` times."""
    for _ in range(steps):
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        grown[:, 1:] |= mask[:, :-1]
        grown[:, :-1] |= mask[:, 1:]
        mask = grown
    return mask


def _min_area(size: int) -> int:
    return 16 if size <= 32 else 30


def _median(values: Array) -> float:
    middle = values.size // 2
    return float(np.partition(values, middle)[middle])


def largest(values: Array) -> Array:
    """(..., 3) → (...): numpy is slow along an axis this short."""
    return np.maximum(np.maximum(values[..., 0], values[..., 1]), values[..., 2])


@cache
def _plane_basis(size: int) -> tuple[Array, Mask]:
    """(S², 3) of ones, x and y in [-1, 1], and the (S²,) border pixels."""
    u = np.linspace(-1, 1, size, dtype=np.float32)
    y, x = np.meshgrid(u, u, indexing="ij")
    border = np.ones((size, size), bool)
    width = max(1, size // 32)
    border[width:-width, width:-width] = False
    return np.stack([np.ones_like(x), x, y], -1).reshape(-1, 3), border.ravel()


def _is_background(pixels: Array, plane: Array, slack: float) -> Mask:
    """(S, S): a pixel that the plane explains up to a shadow, which dims all channels alike."""
    ratio = pixels / np.maximum(plane, 1)
    level = (ratio[..., 0] + ratio[..., 1] + ratio[..., 2]) / 3
    spread = largest(abs(ratio - level[..., None]))
    lit = (level > 0.66 - 0.5 * slack) & (level < 1.12 + 0.5 * slack)
    return lit & (spread < 0.085 + slack + 0.05 * abs(1 - level))


@cache
def _color_table() -> tuple[NDArray[np.int8], Array]:
    """Nearest palette colour and its Lab distance for 64³ colours, each standing for a cube 4 levels wide."""
    level = np.arange(64) * 4 + 1.5
    point = lab(np.stack(np.meshgrid(level, level, level, indexing="ij"), -1)).reshape(-1, 3)
    distance = np.stack([np.linalg.norm(point - center, axis=-1) for center in PALETTE_LAB])
    return distance.argmin(0).astype(np.int8), distance.min(0).astype(np.float32)


def _nearest_color(image: NDArray[np.uint8]) -> tuple[NDArray[np.int8], Array]:
    """uint8 (S, S, 3) → palette index (S, S) and Lab distance (S, S)."""
    q = (image >> 2).astype(np.int32)
    index = (q[..., 0] << 12) | (q[..., 1] << 6) | q[..., 2]
    nearest, distance = _color_table()
    return nearest[index], distance[index]


def _label_regions(colors: NDArray[np.integer], min_area: int) -> tuple[NDArray[np.int32], list[int]]:
    """Label (S, S) the regions of one colour that own enough core pixels, and list their colours.

    A core pixel has at least five of its eight neighbours in its own colour: fringes and noise have none.
    """
    size = len(colors)
    padded = np.full((size + 2, size + 2), -2, colors.dtype)
    padded[1:-1, 1:-1] = colors
    alike = sum((padded[dy : dy + size, dx : dx + size] == colors).view(np.int8) for dy, dx in _NEIGHBOURS)
    core = (colors >= 0) & (alike >= 5)
    owner, region_colors = np.zeros((size, size), np.int32), []
    for color in np.unique(colors[core]):
        labels = regions(colors == color, _EIGHT)
        cores = np.bincount(labels[core & (colors == color)])
        for label in np.flatnonzero(cores >= max(4, min_area / 4)):
            region_colors.append(int(color))
            owner[labels == label] = len(region_colors)
    return owner, region_colors


def _grow(owner: NDArray[np.int32], background: Mask) -> NDArray[np.int32]:
    """Let each region claim its fringe: pixels within 2.6 px, or 1.5 where they may be a shadow."""
    distance, nearest = np.empty(owner.shape), np.empty((2, *owner.shape), np.int32)
    scipy.ndimage.distance_transform_edt(owner == 0, return_indices=True, distances=distance, indices=nearest)
    return np.where(distance <= np.where(background, 1.5, 2.6), owner[nearest[0], nearest[1]], 0)


def _pad(box: tuple[slice, slice], size: int) -> tuple[slice, slice]:
    rows, cols = box
    return slice(max(0, rows.start - 1), min(size, rows.stop + 1)), slice(
        max(0, cols.start - 1), min(size, cols.stop + 1)
    )


def _describe(matte: Array, colors: NDArray[np.integer], color: int, corner: tuple[int, int]) -> Detection | None:
    """Name and score the shape of a matte whose top left is at `corner`, or None where it is a sliver."""
    extent = matte_extent(matte)
    if extent is None:
        return None
    x0, y0, x1, y1 = extent
    width, height = x1 - x0, y1 - y0
    shape, iou = _match(_resample(matte, extent), max(width, height))
    inner = matte > 0.85
    purity = float((colors[inner] == color).mean()) if inner.any() else 0.0
    aspect = min(width, height) / max(width, height)
    box = (x0 + corner[0], y0 + corner[1], x1 + corner[0], y1 + corner[1])
    return Detection(shape, iou * purity * min(1.0, aspect / 0.72), box, COLORS[color])


def _matte(pixels: Array, plane: Array, core: Mask, reach: Mask) -> Array:
    """How much of each pixel is the object, (h, w) in [0, 1]: its position on the line from plane to object."""
    line = pixels[core].mean(0) - plane
    offset = pixels - plane
    alpha = np.clip((offset * line).sum(-1) / np.maximum((line * line).sum(-1), 1), 0, 1)
    # A pixel far off the line has a colour of its own and is no part of this object.
    beside = offset - alpha[..., None] * line
    keep = reach & ((beside * beside).sum(-1) < 60**2) & (alpha >= 0.12)
    return np.where(keep, alpha, 0)


def matte_extent(matte: Array) -> tuple[float, float, float, float] | None:
    """Sub-pixel bounding box x0, y0, x1, y1 of a matte, or None below two pixels."""
    spans = []
    for profile in (matte.max(0), matte.max(1)):
        at = np.flatnonzero(profile > 0.2)
        if not len(at):
            return None
        start, stop = at[0] + 1 - profile[at[0]], at[-1] + profile[at[-1]]
        if stop - start < 2:
            return None
        spans.append((float(start), float(stop)))
    (x0, x1), (y0, y1) = spans
    return x0, y0, x1, y1


def _resample(matte: Array, extent: tuple[float, float, float, float]) -> Array:
    """The bounding box of a matte on a fixed grid, bilinear: (h, w) → (_SIDE²,)."""
    x0, y0, x1, y1 = extent
    rows = _bilinear(y0, y1, matte.shape[0])
    cols = _bilinear(x0, x1, matte.shape[1])
    return (rows @ matte @ cols.T).ravel()


def _bilinear(start: float, stop: float, n: int) -> Array:
    """(_SIDE, n) weights that read n pixels at _SIDE points between two edges."""
    at = start + (np.arange(_SIDE, dtype=np.float32) + 0.5) * ((stop - start) / _SIDE) - 0.5
    return np.maximum(0, 1 - abs(at[:, None] - np.arange(n, dtype=np.float32))).astype(np.float32)


@cache
def _bank(diameter: float) -> tuple[Array, Array]:
    """Templates (8, R, _SIDE²) of every shape at R poses, and their sums (8, R)."""
    size = int(diameter + 6)
    poses = [(rot, shift) for rot in (-0.2, -0.1, 0.0, 0.1, 0.2) for shift in ((0.0, 0.0), (0.33, 0.66))]
    bank = [[_template(shape, size, diameter / 2, rot, shift) for rot, shift in poses] for shape in SHAPES]
    templates = np.array(bank, np.float32)
    return templates, templates.sum(-1)


def _template(shape: str, size: int, r: float, rot: float, shift: tuple[float, float]) -> Array:
    matte = coverage(shape, size, size / 2 + shift[0], size / 2 + shift[1], r, rot)
    extent = matte_extent(matte)
    assert extent is not None
    return _resample(matte, extent)


def _match(mask: Array, diameter: float) -> tuple[str, float]:
    """The shape whose templates overlap the (_SIDE²,) mask best, and that soft IoU."""
    nearest = min(_DIAMETERS, key=lambda d: abs(np.log(d / diameter)))
    templates, sums = _bank(nearest)
    shared = np.minimum(templates, mask).sum(-1)
    iou = (shared / (sums + mask.sum() - shared)).max(1)
    best = int(iou.argmax())
    return SHAPES[best], float(iou[best])
