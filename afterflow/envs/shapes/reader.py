"""Reader of a line of 5x7 glyphs: normalised correlation with each glyph, then the best evenly spaced chain."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from .world import CHARS, GLYPHS, Array

FLOOR = 0.62
"""Correlation above which a glyph lengthens a chain."""
# Windows flatter than this standard deviation, in grey levels, hold no ink.
_FLAT = 8.0


@dataclass(frozen=True)
class SignReading:
    """The line of text that the reader finds in an image."""

    text: str = ""
    """Text of the strongest line, with '?' where no glyph fits."""
    confidence: float = 0.0
    """Mean correlation of its glyphs, in [0, 1]."""
    rival: float = 0.0
    """Strength of the strongest other line: about 0.38 for a clean glyph."""
    contrast: float = 0.0
    """Difference of ink and plate in grey levels."""
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Corners x0, y0, x1, y1 of the letters in pixels."""
    scale: int = 1
    """Pixels per stroke."""

    @property
    def clear(self) -> bool:
        """Whether the line is strong, and no other is."""
        return self.rival < 0.5 and self.contrast > 45 and self.confidence > 0.8


def read_sign(image: NDArray[np.uint8]) -> SignReading:
    """Read the most convincing line of text in an image, uint8 (S, S, 3)."""
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    best, strength = SignReading(), 0.0
    for scale in (1, 2)[: len(image) // 32]:
        fit, std = _correlate(grey, scale)
        for signed in (fit, -fit):
            line, energy = _best_line(signed, std, scale)
            if energy > strength:
                best, strength = line, energy
    return best


@cache
def _templates() -> Array:
    """(C, 63) glyphs with a quiet cell around them, zero mean and unit norm."""
    padded = np.array([np.pad(GLYPHS[char], 1).ravel() for char in CHARS])
    padded -= padded.mean(1, keepdims=True)
    return (padded / np.linalg.norm(padded, axis=1, keepdims=True)).astype(np.float32)


def _correlate(grey: Array, scale: int) -> tuple[Array, Array]:
    """Correlation of each glyph with each window (C, H, W) in [-1, 1], and the windows' deviation (H, W)."""
    height, width = 9 * scale, 7 * scale
    n = height * width
    mean = _box_sum(grey, height, width) / n
    std = np.sqrt(np.maximum(_box_sum(grey * grey, height, width) / n - mean**2, 0)).astype(np.float32)
    cells = _box_sum(grey, scale, scale).astype(np.float32)
    windows = sliding_window_view(cells, (height - scale + 1, width - scale + 1))[..., ::scale, ::scale]
    # Templates are constant over a cell, so their norm over pixels is `scale` times that over cells.
    norm = scale * np.sqrt(np.float32(n)) * std
    gain = np.divide(1, norm, out=np.zeros_like(std), where=std >= _FLAT)
    return (_templates() @ windows.reshape(-1, 63).T).reshape(-1, *std.shape) * gain, std


def _box_sum(grey: Array, height: int, width: int) -> Array:
    """Sums over all windows of height x width pixels: (S, S) → (S - height + 1, S - width + 1)."""
    total = np.pad(grey.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    rows = total[height:] - total[:-height]
    return rows[:, width:] - rows[:, :-width]


def _best_line(fit: Array, std: Array, scale: int) -> tuple[SignReading, float]:
    """The chain of glyphs one advance apart with the largest summed excess over FLOOR, and that sum."""
    advance = 6 * scale
    score = fit.max(0)
    energy, links = _chain(score - FLOOR, advance)
    y, last = np.unravel_index(energy.argmax(), energy.shape)
    if energy[y, last] <= 0:
        return SignReading(), 0.0
    length = int(links[y, last])
    xs = last - advance * np.arange(length - 1, -1, -1)
    glyphs = fit[:, y, xs].argmax(0)
    chars = "".join(CHARS[glyph] if score[y, x] > FLOOR else "?" for glyph, x in zip(glyphs, xs, strict=True))
    elsewhere = np.concatenate([energy[: max(0, y - advance)], energy[y + advance + 1 :]])
    left, top = int(xs[0]) + scale, int(y) + scale
    line = SignReading(
        text=chars.strip("?"),
        confidence=float(score[y, xs].mean()),
        rival=max(0.0, float(elsewhere.max(initial=0.0))),
        contrast=2 * float(np.median(std[y, xs])),
        box=(left, top, left + advance * length - scale, top + 7 * scale),
        scale=scale,
    )
    return line, float(energy[y, last])


def _chain(gain: Array, advance: int) -> tuple[Array, NDArray[np.int32]]:
    """Return the best sum of gains of a chain that ends at a position (H, W), and the number of its links (H, W)."""
    energy, links = gain.copy(), np.ones(gain.shape, np.int32)
    # Columns one advance apart depend on each other, those within a block do not.
    for start in range(advance, gain.shape[1], advance):
        stop = min(start + advance, gain.shape[1])
        before = energy[:, start - advance : stop - advance]
        longer = before > 0
        energy[:, start:stop] += np.where(longer, before, 0)
        links[:, start:stop] += np.where(longer, links[:, start - advance : stop - advance], 0)
    return energy, links
