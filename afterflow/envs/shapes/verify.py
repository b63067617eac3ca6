"""Verifier of images against their records, by the rules of GenEval and of Flow-GRPO's text reward.

`official`, `strict` and the published rewards can be hacked as the real ones can: train on them. `closed`
also requires that nothing else is in the image: evaluate with it.
"""

import math

import numpy as np
from numpy.typing import NDArray

from ..geneval_rules import MODES, Record, score_detections
from .detector import clutter, detect, segment
from .reader import SignReading, read_sign

THRESHOLDS = {32: (0.66, 0.68), 64: (0.76, 0.78)}
"""Thresholds (detection, counting) by size; clean renders score at least 0.82 at 64 px and 0.74 at 32 px."""

# Nothing at all is left around a clean sign, so less than the smallest object of the world is suspicious.
_MAX_AROUND = 0.004


def verify(record: Record, image: NDArray[np.uint8]) -> dict[str, float]:
    """Score an image, uint8 (S, S, 3), under official, strict, closed, partial and partial_flowgrpo.

    For a sign, `official` is "contains the text", and partial_flowgrpo is Flow-GRPO's text reward, also given
    as ocr_flowgrpo.
    """
    if record["tag"] == "text":
        return _judge_sign(record["text"], image)
    result = detect(image)
    threshold, counting_threshold = THRESHOLDS[32 if len(image) <= 32 else 64]
    return {
        mode: score_detections(
            record,
            result.detections,
            mode,
            threshold=threshold,
            counting_threshold=counting_threshold,
            unexplained=result.unexplained,
        )
        for mode in MODES
    }


def text_reward_flowgrpo(text: str, target: str) -> float:
    """Compute Flow-GRPO's published text reward: edits count on the whole text, unless it contains the target."""
    edits = 0 if target in text else edit_distance(text, target)
    return 1 - min(edits, len(target)) / len(target)


def agreement(text: str, target: str) -> float:
    """Return the share of two texts' characters that need no edit, in [0, 1]."""
    return 1 - edit_distance(text, target) / max(len(text), len(target))


def edit_distance(a: str, b: str) -> int:
    """Compute Levenshtein's edit distance of two texts."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def _judge_sign(target: str, image: NDArray[np.uint8]) -> dict[str, float]:
    line = read_sign(image)
    exact = line.text == target
    alone = exact and line.clear and _around(image, line) < _MAX_AROUND
    visible = min(1.0, max(0.0, (line.contrast - 15) / 30))
    published = text_reward_flowgrpo(line.text, target)
    return {
        "official": float(target in line.text),
        "strict": float(exact),
        "closed": float(alone),
        "partial": agreement(line.text, target) * visible * math.exp(-max(0.0, line.rival - 0.3)),
        "partial_flowgrpo": published,
        "ocr_flowgrpo": published,
    }


def _around(image: NDArray[np.uint8], line: SignReading) -> float:
    """Return the share of the image outside of the sign that is not background."""
    other = ~segment(image).background
    x0, y0, x1, y1 = line.box
    # The plate, its anti-aliased edge and nothing more: a shadow counts as background.
    edge = 2 * line.scale + 1
    other[max(0, y0 - edge) : y1 + edge, max(0, x0 - edge) : x1 + edge] = False
    return clutter(other)
