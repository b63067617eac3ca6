"""PNG images on their way to and from other processes."""

import base64
import io
import struct

import numpy as np
from PIL import Image

from ..system.errors import InputError
from ..system.pictures import read_picture

SIGNATURE = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
"""The first bytes of every PNG, before its width and height."""


def encode_png(image: np.ndarray) -> str:
    """Return a uint8 image (H, W, 3) as PNG in base64; JPEG would change what is judged."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def decode_base64(text: str) -> bytes:
    """Return the bytes in base64; raise InputError where it is none."""
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError) as error:
        raise InputError("image data are no base64") from error


def png_pixels(data: bytes | memoryview) -> int:
    """Return the number of pixels that a PNG says it has; raise InputError for what is no PNG."""
    if len(data) < 24 or bytes(data[:16]) != SIGNATURE:
        raise InputError("png: not a readable PNG")
    width, height = struct.unpack(">II", data[16:24])
    return width * height


def decode_png(data: bytes | memoryview, max_pixels: int) -> np.ndarray:
    """Return a PNG as uint8 (H, W, 3); raise InputError where it is too large or no PNG, in words of ours alone.

    It is decoded after its size is known, because a few kilobytes can claim to be gigapixels.
    """
    if png_pixels(data) > max_pixels:
        raise InputError(f"png: an image has at most {max_pixels} pixels here")
    try:
        return read_picture(bytes(data), "png", formats=("PNG",), max_pixels=max_pixels)
    except InputError as error:
        raise InputError("png: not a readable PNG") from error  # what the decoder says goes to no client
