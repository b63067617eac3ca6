"""JPEG size, DDPO's first rewards (arXiv:2305.13301, §5.1): no model, no prompt, easily hacked, which is the point."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image


def incompressibility(images: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """Kilobytes (1000 bytes) of each image as JPEG of quality 95: (B, H, W, 3) → (B,)."""
    return np.array([_size(image) / 1000 for image in images])


def compressibility(images: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """Minus the kilobytes of each image as JPEG of quality 95: (B, H, W, 3) → (B,)."""
    return -incompressibility(images, records)


def _size(image: np.ndarray) -> int:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    return buffer.tell()
