"""How images, records and scores travel between a reward service and its clients: JSON or msgpack, nothing executable.

A request is {"reward", "records": [{"prompt", ...}, ...], "images": [image, ...]}; an image is {"png": bytes} or
{"raw": bytes, "shape": [H, W, 3] or [F, H, W, 3]}, its bytes as base64 where the request is JSON.  A reply is
{"version", "values": [number or null, ...], "parts": {name: [...]}, "why": {"row": reason}}.
"""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..base import Scored

REWARDS_KEY = "AFTERFLOW_REWARDS_KEY"
"""The environment variable with a service's key, on both sides."""
MSGPACK, JSON = "application/msgpack", "application/json"


def pack(content: Any) -> bytes:
    import msgpack

    return msgpack.packb(content) or b""


def unpack(body: bytes, kind: str) -> Any:
    """ValueError for what is neither msgpack nor JSON."""
    import msgpack

    try:
        return msgpack.unpackb(body) if kind.startswith(MSGPACK) else json.loads(body)
    except (ValueError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise ValueError(f"the body is not {'msgpack' if kind.startswith(MSGPACK) else 'JSON'}") from error


def encode_image(image: np.ndarray) -> dict[str, Any]:
    return {"raw": np.ascontiguousarray(image).tobytes(), "shape": list(image.shape)}


def decode_image(image: Any, most: int) -> np.ndarray:
    """uint8 (H, W, 3) or (F, H, W, 3) of at most so many pixels; ValueError for anything else."""
    if not isinstance(image, dict) or not ({"png", "raw"} & image.keys()):
        raise ValueError("an image is an object with png, or with raw and shape")
    if "png" in image:
        return decode_png(decode_bytes(image["png"]), most)
    shape = image.get("shape")
    if not isinstance(shape, list) or len(shape) not in (3, 4) or shape[-1] != 3:
        raise ValueError("shape is [H, W, 3], or [F, H, W, 3] of a clip")
    if not all(isinstance(side, int) and not isinstance(side, bool) and 0 < side <= most for side in shape):
        raise ValueError("shape is of positive whole numbers")
    if math.prod(shape[:-1]) > most:
        raise ValueError(f"an image has at most {most} pixels here, not {math.prod(shape[:-1])}")
    raw = decode_bytes(image["raw"])
    if len(raw) != math.prod(shape):
        raise ValueError(f"raw has {len(raw)} bytes, and its shape has {math.prod(shape)}")
    return np.frombuffer(raw, np.uint8).reshape(shape)


def decode_bytes(data: Any) -> bytes:
    """Bytes, or base64 of them."""
    if isinstance(data, bytes):
        return data
    if not isinstance(data, str):
        raise ValueError("image data are bytes, or base64 in JSON")
    try:
        return base64.b64decode(data, validate=True)
    except ValueError as error:
        raise ValueError("image data are no base64") from error


def decode_png(data: bytes, most: int) -> np.ndarray:
    """Decoded after its size is known: a few kilobytes can claim to be gigapixels."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width * image.height <= most:
                return np.asarray(image.convert("RGB"))
    except Image.DecompressionBombError:
        pass
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError("png is not a readable PNG") from error
    raise ValueError(f"an image has at most {most} pixels here")


def score_reply(scored: Scored, version: str) -> dict[str, Any]:
    """NaN, which JSON does not have, as null."""
    column = lambda values: [None if math.isnan(value) else float(value) for value in values]
    parts = {name: column(values) for name, values in scored.parts.items()}
    why = {str(row): reason for row, reason in scored.why.items()}
    return {"version": version, "values": column(scored.values), "parts": parts, "why": why}


def parse_reply(found: Any, count: int) -> Scored:
    """What a service said of so many images; ValueError for a reply that is not about them."""
    column = lambda values: np.array([math.nan if value is None else float(value) for value in values])
    try:
        values, why = column(found["values"]), {int(row): str(reason) for row, reason in found["why"].items()}
        parts = {str(name): column(part) for name, part in found["parts"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError("its reply has another form") from error
    if any(len(each) != count for each in (values, *parts.values())) or not all(0 <= row < count for row in why):
        raise ValueError(f"its reply has {len(values)} scores for {count} images")
    return Scored(values, parts, why)


def score_request(reward: str, images: Sequence[np.ndarray], records: Sequence[Mapping]) -> dict[str, Any]:
    return {
        "reward": reward,
        "records": [dict(record) for record in records],
        "images": [encode_image(i) for i in images],
    }
