"""JPEG size, DDPO's first rewards (arXiv:2305.13301, §5.1): no model, no prompt, easily hacked, which is the point."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from .base import Canary, reward


def _waves() -> np.ndarray:
    """A smooth picture of 64 px."""
    y, x = np.mgrid[:64, :64] / 64
    channels = [np.sin(9 * x + 4 * y), np.cos(7 * y), np.sin(12 * x * y)]
    return np.rint(127.5 + 127 * np.stack(channels, -1)).astype(np.uint8)


# Encoders differ by some bytes.
@reward("jpeg_incompressibility", low=0.0, canary=Canary(_waves, {"prompt": ""}, 1.879, 0.15))
def incompressibility(images: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """Return the kilobytes (1000 bytes) of each image as JPEG of quality 95: (B, H, W, 3) → (B,)."""
    return np.array([_size(image) / 1000 for image in images])


@reward("jpeg_compressibility", high=0.0, canary=Canary(_waves, {"prompt": ""}, -1.879, 0.15))
def compressibility(images: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """Return minus the kilobytes of each image as JPEG of quality 95: (B, H, W, 3) → (B,)."""
    return -np.array([_size(image) / 1000 for image in images])


def _size(image: np.ndarray) -> int:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    return buffer.tell()
