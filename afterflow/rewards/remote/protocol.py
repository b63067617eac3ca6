"""How images, records and scores travel between a reward service and its clients: JSON or msgpack, nothing executable.

A request is {"reward", "records": [{"prompt", ...}, ...], "images": [image, ...]}; an image is {"png": bytes} or
{"raw": bytes, "shape": [H, W, 3] or [F, H, W, 3]}, its bytes as base64 where the request is JSON.  A reply is
{"version", "values": [number or null, ...], "parts": {name: [...]}, "why": {"row": reason}}.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import numpy as np

from ...system.errors import InputError
from ..base import Scored
from ..messages import MAX_VALUES, decode_json, decode_msgpack
from ..png import decode_base64, decode_png, png_pixels

REWARDS_KEY = "AFTERFLOW_REWARDS_KEY"
"""The environment variable with a service's key, on both sides."""
MSGPACK, JSON = "application/msgpack", "application/json"
MAX_REASON = 500
"""Characters of a reason that travel."""
MAX_PART_NAME = 100
"""Characters of the name of a part."""


def pack(content: Any) -> bytes:
    """Return a message as msgpack."""
    return msgpack.packb(content) or b""


def unpack(body: bytes | bytearray, kind: str, max_values: int = MAX_VALUES) -> Any:
    """Return the message in a body of this content type; raise InputError for what is no such, or becomes too much."""
    return (decode_msgpack if kind == MSGPACK else decode_json)(body, max_values)


def encode_image(image: np.ndarray) -> dict[str, Any]:
    """Return a uint8 image or clip as a message, without compression."""
    return {"raw": np.ascontiguousarray(image).tobytes(), "shape": list(image.shape)}


def image_pixels(message: Any, max_pixels: int) -> int:
    """Return how many pixels the image of a message has, by its header; raise InputError where it is not right."""
    if not isinstance(message, dict) or not ({"png", "raw"} & message.keys()):
        raise InputError("an image is an object with png, or with raw and shape")
    data = message["png"] if "png" in message else message["raw"]
    if not isinstance(data, str | bytes | memoryview):
        raise InputError("image data are bytes, or base64 in JSON")
    if "png" in message:
        pixels = png_pixels(decode_base64(data[:32]) if isinstance(data, str) else data)
    else:
        pixels = math.prod(raw_shape(message.get("shape"), max_pixels)[:-1])
    if pixels > max_pixels:
        raise InputError(f"an image has at most {max_pixels} pixels here, not {pixels}")
    return pixels


def raw_shape(shape: Any, max_pixels: int) -> list[int]:
    """Return a shape that is one of an image or a clip; raise InputError for any other."""
    if not isinstance(shape, list) or len(shape) not in (3, 4) or shape[-1] != 3:
        raise InputError("shape is [H, W, 3], or [F, H, W, 3] of a clip")
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in shape):
        raise InputError("shape is of positive whole numbers")
    if max(shape) > max_pixels:
        raise InputError(f"an image has at most {max_pixels} pixels here")
    return shape


def decode_image(message: dict, max_pixels: int) -> np.ndarray:
    """Return the image (H, W, 3) or clip (F, H, W, 3), uint8, of a message whose header `image_pixels` has checked."""
    if "png" in message:
        return decode_png(decode_bytes(message["png"]), max_pixels)
    raw, shape = decode_bytes(message["raw"]), message["shape"]
    if len(raw) != math.prod(shape):
        raise InputError(f"raw has {len(raw)} bytes, and its shape has {math.prod(shape)}")
    return np.frombuffer(raw, np.uint8).reshape(shape)


def decode_bytes(data: Any) -> bytes | memoryview:
    """Return bytes as they are, or decoded from base64; raise InputError for anything else."""
    return decode_base64(data) if isinstance(data, str) else data


def score_request(reward: str, images: Sequence[np.ndarray], records: Sequence[Mapping]) -> dict[str, Any]:
    """Return the message that asks a service for scores."""
    rows = {"records": [dict(record) for record in records], "images": [encode_image(image) for image in images]}
    return {"reward": reward, **rows}


def score_reply(scored: Scored, version: str) -> dict[str, Any]:
    """Return the message with the scores; what is no finite number is null, in JSON and msgpack alike."""
    column = lambda values: [float(value) if math.isfinite(value) else None for value in values]
    parts = {name: column(values) for name, values in scored.parts.items()}
    why = {str(row): reason[:MAX_REASON] for row, reason in scored.why.items()}
    return {"version": version, "values": column(scored.values), "parts": parts, "why": why}


def parse_reply(message: Any, count: int) -> Scored:
    """Return the scores of `count` images from a reply; raise InputError for a reply that is not about them."""
    if not isinstance(message, dict):
        raise InputError("its reply has another form")
    values, parts, why = (message.get(name) for name in ("values", "parts", "why"))
    if not isinstance(parts, dict) or not isinstance(why, dict) or not all(map(is_part_name, parts)):
        raise InputError("its reply has another form")
    reasons = {parse_row(row, count): short_reason(reason) for row, reason in why.items()}
    return Scored(
        parse_column(values, count), {name: parse_column(part, count) for name, part in parts.items()}, reasons
    )


def parse_column(values: Any, count: int) -> np.ndarray:
    """Return the numbers of a reply, one for each image, where null is NaN; raise InputError for anything else."""
    if not isinstance(values, list) or not all(value is None or type(value) in (int, float) for value in values):
        raise InputError("its reply has another form")
    if len(values) != count:
        raise InputError(f"its reply has {len(values)} scores for {count} images")
    try:
        return np.array([math.nan if value is None else float(value) for value in values])
    except OverflowError:
        raise InputError("its reply has a number that is too large") from None


def parse_row(row: Any, count: int) -> int:
    """Return the image that a reason is about; raise InputError where it is none."""
    if not isinstance(row, str) or not row.isdecimal() or len(row) > 9 or int(row) >= count:
        raise InputError("its reply has a reason that is about no image")
    return int(row)


def is_part_name(name: Any) -> bool:
    """Whether a name can be that of a part, which metrics and records are named by."""
    return isinstance(name, str) and 0 < len(name) <= MAX_PART_NAME and name.isprintable()


def short_reason(text: Any) -> str:
    """Return a server's text in one short line, without what a terminal would obey."""
    if not isinstance(text, str):
        raise InputError("its reply has a reason that is no text")
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text[:MAX_REASON])
