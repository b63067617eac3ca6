"""Read a line of 5x7 glyphs: normalised correlation with each glyph, then the best evenly spaced chain."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from afterflow.shapes.world import CHARS, GLYPHS, Array

# A glyph must correlate better than this to lengthen a chain.
FLOOR = 0.62
# Windows flatter than this standard deviation, in grey levels, hold no ink.
_FLAT = 8.0


@dataclass(frozen=True)
class Reading:
    text: str = ""
    """What the strongest line says; a place where no glyph fits is '?'."""
    confidence: float = 0.0
    """Mean correlation of its glyphs, in [0, 1]."""
    rival: float = 0.0
    """How strong the strongest line elsewhere is: about 0.38 a clean glyph."""
    contrast: float = 0.0
    """Difference of ink and plate in grey levels."""
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    """x0, y0, x1, y1 of the letters in pixels."""
    scale: int = 1
    """Pixels per stroke."""


def read(image: NDArray[np.uint8]) -> Reading:
    """Any uint8 (S, S, 3) → its most convincing line of text."""
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    best, strength = Reading(), 0.0
    for scale in (1, 2) if len(image) > 32 else (1,):
        fit, contrast = _correlate(grey, scale)
        for sign in (1, -1):
            reading, energy = _best_line(fit * sign, contrast, scale)
            if energy > strength:
                best, strength = reading, energy
    return best


@cache
def _templates() -> Array:
    """(63, C) glyphs with a quiet cell around them, zero mean and unit norm."""
    padded = np.array([np.pad(GLYPHS[char], 1).ravel() for char in CHARS])
    padded -= padded.mean(1, keepdims=True)
    return (padded / np.linalg.norm(padded, axis=1, keepdims=True)).T.astype(np.float32)


def _correlate(grey: Array, scale: int) -> tuple[Array, Array]:
    """Correlation of every window with every glyph (H, W, C) in [-1, 1], and its standard deviation (H, W)."""
    cells, squares = _box_sum(grey, scale), _box_sum(grey * grey, scale)
    size = len(cells) - 8 * scale, len(cells) - 6 * scale
    n = 63 * scale**2
    windows = sliding_window_view(cells, (8 * scale + 1, 6 * scale + 1))[..., ::scale, ::scale]
    windows = windows.reshape(-1, 63)
    mean = windows.sum(1) / n
    square = sliding_window_view(squares, (8 * scale + 1, 6 * scale + 1))[..., ::scale, ::scale].sum((-1, -2))
    std = np.sqrt(np.maximum(square.ravel() / n - mean**2, 0))
    # The template is constant over a cell, so its norm over pixels is `scale` times that over cells.
    fit = (windows @ _templates()) / (scale * np.sqrt(np.float32(n)) * np.maximum(std, 1e-6))[:, None]
    fit[std < _FLAT] = 0
    return fit.reshape(*size, -1), std.reshape(size)


def _box_sum(grey: Array, scale: int) -> Array:
    """Sums of scale x scale pixels at every place."""
    if scale == 1:
        return grey
    rows = grey[1:] + grey[:-1]
    return rows[:, 1:] + rows[:, :-1]


def _best_line(fit: Array, std: Array, scale: int) -> tuple[Reading, float]:
    """The chain of glyphs one advance apart with the largest summed excess over FLOOR, and that sum."""
    advance = 6 * scale
    glyph, score = fit.argmax(-1), fit.max(-1)
    energy, chained = _chain(score - FLOOR, advance)
    y, last = np.unravel_index(energy.argmax(), energy.shape)
    if energy[y, last] <= 0:
        return Reading(), 0.0
    length = int(chained[y, last])
    xs = last - advance * np.arange(length - 1, -1, -1)
    chars = "".join(CHARS[glyph[y, x]] if score[y, x] > FLOOR else "?" for x in xs)
    elsewhere = np.concatenate([energy[: max(0, y - advance)], energy[y + advance + 1 :]])
    left, top = int(xs[0]) + scale, int(y) + scale
    reading = Reading(
        text=chars.strip("?"),
        confidence=float(score[y, xs].mean()),
        rival=max(0.0, float(elsewhere.max(initial=0.0))),
        contrast=2 * float(np.median(std[y, xs])),
        box=(left, top, left + advance * length - scale, top + 7 * scale),
        scale=scale,
    )
    return reading, float(energy[y, last])


def _chain(gain: Array, advance: int) -> tuple[Array, NDArray[np.int32]]:
    """Best sum of gains of a chain that ends at each place (H, W), and the number of its links (H, W)."""
    energy, links = gain.copy(), np.ones(gain.shape, np.int32)
    # Columns one advance apart depend on each other, those within a block do not.
    for start in range(advance, gain.shape[1], advance):
        stop = min(start + advance, gain.shape[1])
        before = energy[:, start - advance : stop - advance]
        longer = before > 0
        energy[:, start:stop] += np.where(longer, before, 0)
        links[:, start:stop] += np.where(longer, links[:, start - advance : stop - advance], 0)
    return energy, links
