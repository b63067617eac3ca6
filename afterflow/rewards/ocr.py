"""Whether the text that a prompt asks for can be read in the picture, by rapidocr (PP-OCR, in its wheel).

The text is what stands in the prompt's quotation marks.  Spaces and case do not count.
"""

import threading
import unicodedata
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..system.errors import InputError
from ..system.optional_dependencies import check_extra
from .base import Canary, Scored, reward
from .quotes import quoted_texts

KEYBOARD = str.maketrans(dict(zip("\u2018\u2019\u201a\u201b\u2032\u02bc\u00b4`", "''")))
KEYBOARD |= str.maketrans(dict(zip("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"""""""')))
KEYBOARD |= str.maketrans(dict(zip("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2044", "-------/")))
"""Signs of print → what stands for them on a keyboard, because no reader tells them apart."""
SELECTORS = frozenset(map(chr, range(0xFE00, 0xFE10)))
"""Variation selectors, which only choose how the character before them looks."""
MAX_ORDERS = 4
"""Number of texts of a prompt up to which the picture may show them in any order."""
PLAIN_CANVAS_BITS = 1.0
"""Bits of colour per pixel beside the text, below which a picture is an empty canvas; a gradient has more than 2."""


def check_quoted(record: dict) -> None:
    """Raise InputError where the prompt asks for no text."""
    if not "".join(map(fold_text, quoted_texts(record["prompt"]))):
        raise InputError(f'prompt {record["prompt"]!r} has no text in "double quotes"')


def check_quotes(record: dict) -> None:
    """Raise InputError where the prompt asks for no text, or for characters that the reader does not know."""
    check_quoted(record)
    texts = quoted_texts(record["prompt"])
    check_extra("reward ocr", _FIELDS["libraries"], _FIELDS["extra"])
    unknown = dict.fromkeys(c for text in texts for c in fold_known(text, alphabet()) if c not in alphabet())
    if unknown:
        names = ", ".join(f"{c!r} ({unicodedata.name(c, f'U+{ord(c):04X}')})" for c in list(unknown)[:5])
        raise InputError(
            f"prompt {record['prompt']!r} asks for characters that the reader of texts does not know and no picture "
            f"could be scored for: {names}; leave them out"
        )


def target_texts(record: Mapping) -> tuple[str, ...]:
    """Return the texts that the prompt asks for, folded; none where it asks for none."""
    folded = (fold_known(text, alphabet()) for text in quoted_texts(record["prompt"]))
    return tuple(text for text in folded if text)


def fold_text(text: str) -> str:
    """Return a text without spaces and invisible characters, in lower case, in one form of each character.

    Full-width letters become usual ones, and quotation marks and dashes of print those of a keyboard.
    """
    text = unicodedata.normalize("NFKC", text).translate(KEYBOARD)
    text = unicodedata.normalize("NFKC", text.casefold()).translate(KEYBOARD)
    return "".join(c for c in text if not c.isspace() and unicodedata.category(c) != "Cf" and c not in SELECTORS)


def fold_known(text: str, known: frozenset[str]) -> str:
    """Return a text folded, without accents on letters that are known only without."""
    letters = []
    for c in fold_text(text):
        bare = "".join(part for part in unicodedata.normalize("NFD", c) if not unicodedata.combining(part))
        letters.append(c if c in known or not set(bare) <= known else bare)
    return "".join(letters)


@cache
def alphabet() -> frozenset[str]:
    """Return the characters that the reader knows, folded."""
    return frozenset(c for known in _engines(1).submit(_characters).result() for c in fold_text(known))


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
        return fold_known("".join(self.lines), alphabet())


def _sign() -> np.ndarray:
    """A picture of a sign, 256 px."""
    y, x = np.mgrid[:256, :256]
    image = Image.fromarray(np.stack([90 + x // 3, 150 + y // 4, 200 - x // 4], -1).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.rectangle((28, 96, 228, 160), (245, 242, 230))
    draw.text((128, 128), "AFTERFLOW", (25, 25, 30), ImageFont.load_default(30), anchor="mm")
    return np.asarray(image)


_FIELDS: dict[str, Any] = {
    "needs": check_quotes,
    "client_needs": check_quoted,
    "extra": "ocr",
    "libraries": ("rapidocr", "onnxruntime", "rapidfuzz"),
    "canary": Canary(_sign, {"prompt": 'a sign that says "Afterflow"'}, 1.0, 0.02),
    "sees": "lines",
}


@reward("ocr", 0, 1, **_FIELDS)
def ocr_reward(images: np.ndarray, records: Sequence[dict]) -> Scored:
    """Return how near the picture's text is to the prompt's, in [0, 1]: (B, H, W, 3) → (B,).

    Every letter that is wrong, missing or too many costs its share, and so does an empty canvas.  Several texts may
    stand in any order.
    """
    read, targets = read_images(images), [target_texts(record) for record in records]
    near = np.array([nearness(r.text, t) for r, t in zip(read, targets)])
    canvas = np.array([r.canvas for r in read])
    parts = {
        "read": near,
        "exact": np.array([float(r.text in orders(t)) for r, t in zip(read, targets)]),
        "lines": np.array([float(len(r.lines)) for r in read]),
        "canvas": canvas,
    }
    return Scored(parts["read"] * canvas, parts)


def orders(texts: Sequence[str]) -> list[str]:
    """Return the texts as one, in every order; of more than `MAX_ORDERS` in their own alone."""
    return ["".join(order) for order in (permutations(texts) if len(texts) <= MAX_ORDERS else [texts])]


def nearness(read: str, targets: Sequence[str]) -> float:
    """Return 1 - Levenshtein distance / longer text, of the best order of the targets."""
    from rapidfuzz.distance import Levenshtein

    return max(1 - Levenshtein.distance(read, t) / max(len(read), len(t)) for t in orders(targets))


@reward("ocr_flowgrpo", 0, 1, **_FIELDS)
def ocr_flowgrpo_reward(images: np.ndarray, records: Sequence[dict]) -> Scored:
    """Return the score of flow_grpo's published formula, for comparability.

    Any picture with the text scores 1, whatever else it says.  The formula knows prompts with one text; of several it
    is the mean.
    """
    from rapidfuzz.distance import Levenshtein

    def score(read: str, target: str) -> float:
        distance = 0 if target in read else Levenshtein.distance(read, target)
        return 1 - min(distance, len(target)) / len(target)

    read = read_images(images)
    scores = [[score(r.text, text) for text in target_texts(record)] for r, record in zip(read, records)]
    lines = np.array([float(len(r.lines)) for r in read])
    return Scored(np.array([np.mean(row) for row in scores]), {"lines": lines})


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


def _characters() -> list[str]:
    """Return the characters of the reader's model, which is loaded with the first picture."""
    _read(_sign())
    return list(_thread.engine.text_rec.postprocess_op.character)[1:]  # the first stands for none


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
