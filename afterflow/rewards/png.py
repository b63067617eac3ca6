"""PNG images on their way to and from other processes."""

import base64
import io

import numpy as np
from PIL import Image

from ..system.pictures import read_picture


def encode_png(image: np.ndarray) -> str:
    """Return a uint8 image (H, W, 3) as PNG in base64; JPEG would change what is judged."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def decode_png(data: bytes, max_pixels: int) -> np.ndarray:
    """Return a PNG as uint8 (H, W, 3); raise InputError where it is too large or no PNG.

    It is decoded after its size is known, because a few kilobytes can claim to be gigapixels.
    """
    return read_picture(data, "png", formats=("PNG",), max_pixels=max_pixels)
