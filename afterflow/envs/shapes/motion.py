"""Verifier of clips: objects in every frame, their directions, and how smoothly they move."""

import numpy as np
import scipy
from numpy.typing import NDArray

from ..geneval_rules import Detection, Record
from .detector import detect
from .moving import DIRECTIONS, TRAVEL
from .verify import THRESHOLDS
from .world import Array

SEEN = 0.75
"""Share of the frames in which a clause must hold, the first and the last included."""
SLACK = 0.5
"""Difference of two steps, in pixels, that costs nothing: centres of pixel boxes are not more accurate."""


def verify_clip(record: Record, clip: NDArray[np.uint8]) -> dict[str, float]:
    """Judge a clip, uint8 (F, S, S, 3), against its record; return strict, partial and smoothness in [0, 1].

    strict is 1 where every clause's objects, no more and no fewer, are visible in enough frames, have moved in its
    direction by half of what a true clip moves, and further along it than across it.  smoothness is 1 where the speed
    never changes, and falls by a factor e for every pixel by which a step differs from the one before.  It is 0 where
    fewer than three frames show the objects.
    """
    size = clip.shape[1]
    threshold = THRESHOLDS[32 if size <= 32 else 64][1]
    frames = [[d for d in detect(frame).detections if d.score >= threshold] for frame in clip]
    judged = [_clause(clause, frames, size) for clause in record["include"]]
    strict, partial, smooth = (np.array(column) for column in zip(*judged))
    return {"strict": float(strict.all()), "partial": float(partial.mean()), "smoothness": float(smooth.mean())}


def _clause(clause: Record, frames: list[list[Detection]], size: int) -> tuple[bool, float, float]:
    centres = [_centres(clause, frame) for frame in frames]
    right = np.array([len(visible) == clause["count"] for visible in centres])
    if right.sum() < 2:
        return False, 0.5 * float(right.mean()), 0.0
    shown = [centres[i] for i in np.flatnonzero(right)]
    tracks = np.stack(_tracks(shown))  # (shown frames, count, 2)
    share = np.ptp(np.flatnonzero(right)) / max(1, len(frames) - 1)
    moved = tracks[-1] - tracks[0]
    direction = np.array(DIRECTIONS[clause["moving"]])
    forward, sideways = moved @ direction, np.abs(moved @ direction[::-1])
    whole = TRAVEL * size * share  # what a true clip moves between the frames that show it
    goes = bool((forward > 0.5 * whole).all() and (forward > sideways).all())
    present = bool(right[0] and right[-1] and right.mean() >= SEEN)
    progress = float(np.clip(forward / whole, 0, 1).mean())
    return present and goes, 0.5 * float(right.mean()) + 0.5 * progress, _smoothness(tracks, np.flatnonzero(right))


def _centres(clause: Record, frame: list[Detection]) -> Array:
    """Return the centres (n, 2) of the objects of this class and colour."""
    boxes = [d.box for d in frame if (d.cls, d.color) == (clause["class"], clause["color"])]
    return np.array([((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in boxes]).reshape(-1, 2)


def _tracks(centres: list[Array]) -> list[Array]:
    """Order the objects of every frame so that they move least from the frame before."""
    tracks = [centres[0]]
    for now in centres[1:]:
        distance = np.linalg.norm(tracks[-1][:, None] - now[None], axis=-1)
        tracks.append(now[scipy.optimize.linear_sum_assignment(distance)[1]])
    return tracks


def _smoothness(tracks: Array, times: NDArray[np.integer]) -> float:
    if len(times) < 3:
        return 0.0
    speed = np.diff(tracks, axis=0) / np.diff(times)[:, None, None]
    jerk = np.linalg.norm(np.diff(speed, axis=0), axis=-1).mean()
    return float(np.exp(-max(0.0, jerk - SLACK)))
