"""What the verifier of the shapes world saw in a stored picture: boxes, letters, and its verdict in words."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..envs.geneval_rules import Detection
from ..envs.shapes.detector import detect
from ..envs.shapes.edit_verifier import validate_edit, verify_edit
from ..envs.shapes.edits import EDIT_TASKS
from ..envs.shapes.edits import SIZE as EDIT_SIZE
from ..envs.shapes.prompts import validate
from ..envs.shapes.reader import read_sign
from ..envs.shapes.verify import THRESHOLDS, verify
from ..envs.shapes.world import SIZES, TAGS
from ..system.errors import InputError
from ..system.pictures import read_picture
from .curves import finite_or_none

FAINT = 0.3
"""Confidence below which a detection is not drawn."""
RECORD_KEYS = ("tag", "include", "exclude", "text", "prompt")
"""Keys of a record that the verifier reads."""


def sight(file: Path, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what the verifier saw in the picture of a file; None where the record is of another world.

    {"size": side in pixels, "boxes": [{"label", "score", "counts", "box"}], "letters": text with its box or None,
    "words": sentences}.
    """
    try:
        return _sight(file, file.stat().st_mtime_ns, json.dumps(record, sort_keys=True))
    except (OSError, InputError):
        return None


@lru_cache(maxsize=8192)
def _sight(file: Path, changed: int, record_text: str) -> dict[str, Any] | None:
    """Return what `sight` does; it is computed anew where the file changed at another time."""
    record = json.loads(record_text)
    tag = record.get("tag")
    if file.suffix == ".gif" or not isinstance(tag, str) or tag not in (*TAGS, *EDIT_TASKS):
        return None
    pixels = read_picture(file, file.name)
    side = len(pixels)
    if pixels.shape[0] != pixels.shape[1] or side not in SIZES:
        return None
    if tag in EDIT_TASKS:
        return edit_sight(record, pixels) if side == EDIT_SIZE else None
    known = {key: record[key] for key in RECORD_KEYS if key in record}
    validate(known)
    if tag == "text":
        seen = sign_sight(pixels)
        words = [f'"{known["text"]}" is wanted, "{seen["letters"]["text"] if seen["letters"] else ""}" is read']
    else:
        detections = detect(pixels).detections
        threshold = THRESHOLDS[side][tag == "counting"]
        seen, words = detection_sight(detections, threshold, side), clause_words(known, detections, threshold)
    return {**seen, "words": [*words, *verdict_words(verify(known, pixels))]}


def edit_sight(record: dict[str, Any], pixels: NDArray[np.uint8]) -> dict[str, Any]:
    """Return what the verifier of edits saw in an edited picture.  InputError where the record is no edit."""
    validate_edit(record)
    scores = verify_edit(record, pixels)
    threshold = THRESHOLDS[EDIT_SIZE][0]
    sign = record["scene"]["sign"] is not None
    seen = sign_sight(pixels) if sign else detection_sight(detect(pixels).detections, threshold, EDIT_SIZE)
    verdicts = {"done": scores.done, "preserved": scores.preserved, "partial": scores.partial}
    return {**seen, "words": verdict_words(verdicts)}


def detection_sight(detections: Sequence[Detection], threshold: float, side: int) -> dict[str, Any]:
    """Return the boxes of detections, with whether each is sure enough to count."""
    boxes = [
        {
            "label": f"{detection.color or ''} {detection.cls}".strip(),
            "score": finite_or_none(detection.score),
            "counts": detection.score > threshold,
            "box": [finite_or_none(edge) for edge in detection.box],
        }
        for detection in detections
        if detection.score >= FAINT
    ]
    return {"size": side, "boxes": boxes, "letters": None}


def sign_sight(pixels: NDArray[np.uint8]) -> dict[str, Any]:
    """Return the letters that the reader sees."""
    line = read_sign(pixels)
    letters = (
        {"text": line.text, "score": finite_or_none(line.confidence), "box": list(line.box)} if line.text else None
    )
    return {"size": len(pixels), "boxes": [], "letters": letters}


def clause_words(record: Mapping[str, Any], detections: Sequence[Detection], threshold: float) -> list[str]:
    """Return for each thing that a record includes how many are wanted, and how many are seen."""
    words = []
    for clause in record["include"]:
        color = clause.get("color")
        sure = [d for d in detections if d.cls == clause["class"] and d.score > threshold]
        seen = [d for d in sure if color is None or d.color == color]
        name = f"{color} {clause['class']}" if color else clause["class"]
        words.append(f"{name}: {clause['count']} wanted, {len(seen)} seen")
    return words


def verdict_words(verdicts: Mapping[str, float]) -> list[str]:
    """Return the verdicts that a reader looks for, in words."""
    shown = {name: verdicts[name] for name in ("strict", "closed", "done", "preserved") if name in verdicts}
    words = [f"{name}: {'yes' if value == 1 else 'no'}" for name, value in shown.items()]
    return [*words, f"partial: {verdicts['partial']:.2f}"]
