"""How images, records and scores travel between a reward service and its clients: JSON or msgpack, nothing executable.

A request is {"reward", "records": [{"prompt", ...}, ...], "images": [image, ...]}; an image is {"png": bytes} or
{"raw": bytes, "shape": [H, W, 3] or [F, H, W, 3]}, its bytes as base64 where the request is JSON.  A reply is
{"version", "values": [number or null, ...], "parts": {name: [...]}, "why": {"row": reason}}.
"""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import numpy as np

from ...system.errors import InputError
from ..base import Scored
from ..png import decode_png

REWARDS_KEY = "AFTERFLOW_REWARDS_KEY"
"""The environment variable with a service's key, on both sides."""
MSGPACK, JSON = "application/msgpack", "application/json"


def pack(content: Any) -> bytes:
    """Return a message as msgpack."""
    return msgpack.packb(content) or b""


def unpack(body: bytes, kind: str) -> Any:
    """Return the message in a body of this content type; raise InputError for what is neither msgpack nor JSON."""
    try:
        return msgpack.unpackb(body) if kind.startswith(MSGPACK) else json.loads(body)
    except (ValueError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise InputError(f"the body is not {'msgpack' if kind.startswith(MSGPACK) else 'JSON'}") from error


def encode_image(image: np.ndarray) -> dict[str, Any]:
    """Return a uint8 image or clip as a message, without compression."""
    return {"raw": np.ascontiguousarray(image).tobytes(), "shape": list(image.shape)}


def decode_image(message: Any, max_pixels: int) -> np.ndarray:
    """Return the image (H, W, 3) or clip (F, H, W, 3) of a message, uint8; raise InputError where it is not right."""
    if not isinstance(message, dict) or not ({"png", "raw"} & message.keys()):
        raise InputError("an image is an object with png, or with raw and shape")
    if "png" in message:
        return decode_png(decode_bytes(message["png"]), max_pixels)
    shape = message.get("shape")
    if not isinstance(shape, list) or len(shape) not in (3, 4) or shape[-1] != 3:
        raise InputError("shape is [H, W, 3], or [F, H, W, 3] of a clip")
    if not all(isinstance(side, int) and not isinstance(side, bool) and 0 < side <= max_pixels for side in shape):
        raise InputError("shape is of positive whole numbers")
    if math.prod(shape[:-1]) > max_pixels:
        raise InputError(f"an image has at most {max_pixels} pixels here, not {math.prod(shape[:-1])}")
    raw = decode_bytes(message["raw"])
    if len(raw) != math.prod(shape):
        raise InputError(f"raw has {len(raw)} bytes, and its shape has {math.prod(shape)}")
    return np.frombuffer(raw, np.uint8).reshape(shape)


def decode_bytes(data: Any) -> bytes:
    """Return bytes as they are, or decoded from base64; raise InputError for anything else."""
    if isinstance(data, bytes):
        return data
    if not isinstance(data, str):
        raise InputError("image data are bytes, or base64 in JSON")
    try:
        return base64.b64decode(data, validate=True)
    except ValueError as error:
        raise InputError("image data are no base64") from error


def score_request(reward: str, images: Sequence[np.ndarray], records: Sequence[Mapping]) -> dict[str, Any]:
    """Return the message that asks a service for scores."""
    rows = {"records": [dict(record) for record in records], "images": [encode_image(image) for image in images]}
    return {"reward": reward, **rows}


def score_reply(scored: Scored, version: str) -> dict[str, Any]:
    """Return the message with the scores; NaN, which JSON does not have, is null."""
    column = lambda values: [None if math.isnan(value) else float(value) for value in values]
    parts = {name: column(values) for name, values in scored.parts.items()}
    why = {str(row): reason for row, reason in scored.why.items()}
    return {"version": version, "values": column(scored.values), "parts": parts, "why": why}


def parse_reply(message: Any, count: int) -> Scored:
    """Return the scores of `count` images from a reply; raise InputError for a reply that is not about them."""
    column = lambda values: np.array([math.nan if value is None else float(value) for value in values])
    try:
        values, why = column(message["values"]), {int(row): str(reason) for row, reason in message["why"].items()}
        parts = {str(name): column(part) for name, part in message["parts"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError("its reply has another form") from error
    if any(len(part) != count for part in (values, *parts.values())) or not all(0 <= row < count for row in why):
        raise InputError(f"its reply has {len(values)} scores for {count} images")
    return Scored(values, parts, why)
