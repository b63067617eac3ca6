"""Whether the text that a prompt asks for can be read in the picture, by rapidocr (PP-OCR, in its wheel).

The text is what stands between the prompt's first pair of ".  Spaces and case do not count.
"""

import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..system.errors import InputError
from .base import Canary, Scored, reward

PLAIN_CANVAS_BITS = 1.0
"""Bits of colour per pixel beside the text, below which a picture is an empty canvas; a gradient has more than 2."""


def check_quotes(record: dict) -> None:
    """Raise InputError where the prompt asks for no text."""
    if not target_text(record):
        raise InputError(f'prompt {record["prompt"]!r} has no text in "double quotes"')


def target_text(record: dict) -> str:
    """Return the text that the prompt asks for, folded; empty where there is none."""
    match = re.search('"([^"]*)"', record["prompt"])
    return fold_text(match.group(1)) if match else ""


def fold_text(text: str) -> str:
    """Return a text without spaces, in lower case."""
    return re.sub(r"\s", "", text).lower()


@dataclass(frozen=True)
class OCRResult:
    """The text of a picture, and what is beside it."""

    lines: tuple[str, ...]
    """The lines of text, in reading order."""
    canvas: float
    """How far the picture is from an empty canvas, in [0, 1]: 0 where there is nothing but text on one colour."""

    @property
    def text(self) -> str:
        """Return all lines as one text, folded."""
        return fold_text("".join(self.lines))


def _sign() -> np.ndarray:
    """A picture of a sign, 256 px."""
    y, x = np.mgrid[:256, :256]
    image = Image.fromarray(np.stack([90 + x // 3, 150 + y // 4, 200 - x // 4], -1).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.rectangle((28, 96, 228, 160), (245, 242, 230))
    draw.text((128, 128), "AFTERFLOW", (25, 25, 30), ImageFont.load_default(30), anchor="mm")
    return np.asarray(image)


_FIELDS = {
    "needs": check_quotes,
    "extra": "ocr",
    "libraries": ("rapidocr", "onnxruntime", "rapidfuzz"),
    "canary": Canary(_sign, {"prompt": 'a sign that says "Afterflow"'}, 1.0, 0.02),
    "sees": "lines",
}


@reward("ocr", 0, 1, **_FIELDS)
def ocr_reward(images: np.ndarray, records: Sequence[dict]) -> Scored:
    """Return how near the picture's text is to the prompt's, in [0, 1]: (B, H, W, 3) → (B,).

    Every letter that is wrong, missing or too many costs its share, and so does an empty canvas.
    """
    from rapidfuzz.distance import Levenshtein

    read, targets = read_images(images), [target_text(record) for record in records]
    near = [1 - Levenshtein.distance(r.text, t) / max(len(r.text), len(t)) for r, t in zip(read, targets)]
    canvas = np.array([r.canvas for r in read])
    parts = {
        "read": np.array(near),
        "exact": np.array([float(r.text == t) for r, t in zip(read, targets)]),
        "lines": np.array([float(len(r.lines)) for r in read]),
        "canvas": canvas,
    }
    return Scored(parts["read"] * canvas, parts)


@reward("ocr_flowgrpo", 0, 1, **_FIELDS)
def ocr_flowgrpo_reward(images: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """Return the score of flow_grpo's published formula, for comparability.

    Any picture with the text scores 1, whatever else it says.
    """
    from rapidfuzz.distance import Levenshtein

    scores = []
    for read, target in zip(read_images(images), [target_text(record) for record in records]):
        distance = 0 if target in read.text else Levenshtein.distance(read.text, target)
        scores.append(1 - min(distance, len(target)) / len(target))
    return np.array(scores)


def read_images(images: np.ndarray) -> list[OCRResult]:
    """Read the texts of B pictures; as many are read at a time as torch has threads."""
    return list(_engines(torch.get_num_threads()).map(_read, images))


_thread = threading.local()


@cache
def _engines(count: int) -> ThreadPoolExecutor:
    """Return threads that have an engine of one thread."""
    from rapidocr import RapidOCR

    one = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
    options = {"Global.log_level": "critical", "Global.use_cls": False, **one}

    def begin() -> None:
        _thread.engine = RapidOCR(params=options)

    return ThreadPoolExecutor(count, initializer=begin)


def _read(image: np.ndarray) -> OCRResult:
    result = _thread.engine(np.ascontiguousarray(image[..., ::-1]))  # it wants BGR
    boxes = [] if result.boxes is None else result.boxes
    return OCRResult(tuple(result.txts or ()), canvas_score(image, boxes))


def canvas_score(image: np.ndarray, boxes: Sequence[np.ndarray]) -> float:
    """Return how far colours beside the text are from being one, in [0, 1].

    It counts bits of 4096 colours, until there are `PLAIN_CANVAS_BITS`.
    """
    beside = Image.new("1", image.shape[1::-1], 1)
    for box in boxes:
        ImageDraw.Draw(beside).polygon([tuple(corner) for corner in box], fill=0)
    r, g, b = (image[np.asarray(beside)] // 16).astype(np.int64).T
    if not len(r):
        return 0.0
    share = np.bincount(256 * r + 16 * g + b)
    share = share[share > 0] / len(r)
    bits = (share * np.log2(1 / share)).sum()
    return float(min(1.0, bits / PLAIN_CANVAS_BITS))
