"""Judge a clip against its record: what is there in every frame, which way it goes, and how smoothly."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from ..geneval_rules import Detection, Record
from .detector import detect
from .moving import DIRECTIONS, TRAVEL
from .verify import THRESHOLDS
from .world import Array

SEEN = 0.75
"""Share of the frames in which a clause must hold, the first and the last among them."""
SLACK = 0.5
"""Pixels by which steps may differ without a cost: boxes of whole pixels know centres no better."""


def verify_clip(record: Record, clip: NDArray[np.uint8]) -> dict[str, float]:
    """uint8 (F, S, S, 3) → strict, partial and smoothness, each in [0, 1].

    strict: each clause's objects, no more and no fewer, are there in most frames and moved its way by half of what a
    true clip moves, and further along than across.  smoothness is 1 where speed never changes, and falls by e for every
    pixel more that a step differs from the one before it; 0 where fewer than three frames show anything to follow.
    """
    size = clip.shape[1]
    threshold = THRESHOLDS[32 if size <= 32 else 64][1]
    frames = [[d for d in detect(frame).detections if d.score >= threshold] for frame in clip]
    judged = [_clause(clause, frames, size) for clause in record["include"]]
    strict, partial, smooth = (np.array(column) for column in zip(*judged))
    return {"strict": float(strict.all()), "partial": float(partial.mean()), "smoothness": float(smooth.mean())}


def _clause(clause: Record, frames: list[list[Detection]], size: int) -> tuple[bool, float, float]:
    centres = [_centres(clause, frame) for frame in frames]
    right = np.array([len(found) == clause["count"] for found in centres])
    if len(clause) and right.sum() < 2:
        return False, 0.5 * float(right.mean()), 0.0
    shown = [centres[i] for i in np.flatnonzero(right)]
    tracks = np.stack(_followed(shown))  # (shown frames, count, 2)
    share = np.ptp(np.flatnonzero(right)) / max(1, len(frames) - 1)
    moved = tracks[-1] - tracks[0]
    direction = np.array(DIRECTIONS[clause["moving"]])
    along, across = moved @ direction, np.abs(moved @ direction[::-1])
    whole = TRAVEL * size * share  # what a true clip moves between the frames that show it
    goes = bool((along > 0.5 * whole).all() and (along > across).all())
    there = bool(right[0] and right[-1] and right.mean() >= SEEN)
    progress = float(np.clip(along / whole, 0, 1).mean())
    return there and goes, 0.5 * float(right.mean()) + 0.5 * progress, _smoothness(tracks, np.flatnonzero(right))


def _centres(clause: Record, frame: list[Detection]) -> Array:
    """(n, 2): the objects of this class and colour."""
    boxes = [d.box for d in frame if (d.cls, d.color) == (clause["class"], clause["color"])]
    return np.array([((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in boxes]).reshape(-1, 2)


def _followed(centres: list[Array]) -> list[Array]:
    """The same objects in the same rows: each frame's in the order that moves them least."""
    found = [centres[0]]
    for now in centres[1:]:
        distance = np.linalg.norm(found[-1][:, None] - now[None], axis=-1)
        found.append(now[linear_sum_assignment(distance)[1]])
    return found


def _smoothness(tracks: Array, times: NDArray[np.integer]) -> float:
    if len(times) < 3:
        return 0.0
    speed = np.diff(tracks, axis=0) / np.diff(times)[:, None, None]
    jerk = np.linalg.norm(np.diff(speed, axis=0), axis=-1).mean()
    return float(np.exp(-max(0.0, jerk - SLACK)))
