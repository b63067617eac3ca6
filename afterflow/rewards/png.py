"""PNG images on their way to and from other processes."""

import base64
import io

import numpy as np
from PIL import Image

from ..system.errors import InputError


def encode_png(image: np.ndarray) -> str:
    """Return a uint8 image (H, W, 3) as PNG in base64; JPEG would change what is judged."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def decode_png(data: bytes, max_pixels: int) -> np.ndarray:
    """Return a PNG as uint8 (H, W, 3); raise InputError where it is too large or no PNG.

    It is decoded after its size is known, because a few kilobytes can claim to be gigapixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width * image.height <= max_pixels:
                return np.asarray(image.convert("RGB"))
    except Image.DecompressionBombError:
        pass
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError("png is not a readable PNG") from error
    raise InputError(f"an image has at most {max_pixels} pixels here")
