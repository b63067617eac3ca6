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

from .base import Canary, Scored, reward

PLAIN = 1.0
"""Bits of colour per pixel beside the text, below which a picture is an empty canvas; a gradient has more than 2."""


def needs_quotes(record: dict) -> None:
    if not target(record):
        raise ValueError(f'prompt {record["prompt"]!r} has no text in "double quotes"')


def target(record: dict) -> str:
    found = re.search('"([^"]*)"', record["prompt"])
    return folded(found.group(1)) if found else ""


def folded(text: str) -> str:
    return re.sub(r"\s", "", text).lower()


@dataclass(frozen=True)
class Reading:
    """What a picture says."""

    lines: tuple[str, ...]
    """In reading order."""
    canvas: float
    """In [0, 1]: 0 where there is nothing but text on one colour."""

    @property
    def text(self) -> str:
        return folded("".join(self.lines))


def _sign() -> np.ndarray:
    """A picture of a sign, 256 px."""
    y, x = np.mgrid[:256, :256]
    image = Image.fromarray(np.stack([90 + x // 3, 150 + y // 4, 200 - x // 4], -1).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.rectangle((28, 96, 228, 160), (245, 242, 230))
    draw.text((128, 128), "AFTERFLOW", (25, 25, 30), ImageFont.load_default(30), anchor="mm")
    return np.asarray(image)


READS = {"extra": "ocr", "libraries": ("rapidocr", "onnxruntime", "rapidfuzz")}
RECORD = {"prompt": 'a sign that says "Afterflow"'}


@reward("ocr", 0, 1, needs=needs_quotes, **READS, canary=Canary(_sign, RECORD, 1.0, 0.02))
def ocr(images: np.ndarray, records: Sequence[dict]) -> Scored:
    """How near what is read is to what was asked for, in [0, 1]: less for each letter that is wrong, missing or too
    many, and for an empty canvas: (B, H, W, 3) → (B,)."""
    from rapidfuzz.distance import Levenshtein

    read, asked = readings(images), [target(record) for record in records]
    near = [1 - Levenshtein.distance(r.text, t) / max(len(r.text), len(t)) for r, t in zip(read, asked)]
    canvas = np.array([r.canvas for r in read])
    parts = {
        "read": np.array(near),
        "exact": np.array([float(r.text == t) for r, t in zip(read, asked)]),
        "lines": np.array([float(len(r.lines)) for r in read]),
        "canvas": canvas,
    }
    return Scored(parts["read"] * canvas, parts)


@reward("ocr_flowgrpo", 0, 1, needs=needs_quotes, **READS, canary=Canary(_sign, RECORD, 1.0, 0.02))
def ocr_flowgrpo(images: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """flow_grpo's published formula, for comparability: any picture that also says something else scores 1."""
    from rapidfuzz.distance import Levenshtein

    scores = []
    for read, asked in zip(readings(images), [target(record) for record in records]):
        distance = 0 if asked in read.text else Levenshtein.distance(read.text, asked)
        scores.append(1 - min(distance, len(asked)) / len(asked))
    return np.array(scores)


def readings(images: np.ndarray) -> list[Reading]:
    """What B pictures say; as many are read at a time as torch has threads."""
    return list(_readers(torch.get_num_threads()).map(_reading, images))


_own = threading.local()


@cache
def _readers(count: int) -> ThreadPoolExecutor:
    """Threads that each have an engine of one thread."""
    from rapidocr import RapidOCR

    one = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
    options = {"Global.log_level": "critical", "Global.use_cls": False, **one}

    def begin() -> None:
        _own.engine = RapidOCR(params=options)

    return ThreadPoolExecutor(count, initializer=begin)


def _reading(image: np.ndarray) -> Reading:
    found = _own.engine(np.ascontiguousarray(image[..., ::-1]))  # it wants BGR
    boxes = [] if found.boxes is None else found.boxes
    return Reading(tuple(found.txts or ()), canvas(image, boxes))


def canvas(image: np.ndarray, boxes: Sequence[np.ndarray]) -> float:
    """How far colours beside the text are from being one, in [0, 1]: bits of 4096 colours, until there are `PLAIN`."""
    beside = Image.new("1", image.shape[1::-1], 1)
    for box in boxes:
        ImageDraw.Draw(beside).polygon([tuple(corner) for corner in box], fill=0)
    r, g, b = (image[np.asarray(beside)] // 16).astype(np.int64).T
    if not len(r):
        return 0.0
    share = np.bincount(256 * r + 16 * g + b)
    share = share[share > 0] / len(r)
    bits = (share * np.log2(1 / share)).sum()
    return float(min(1.0, bits / PLAIN))
