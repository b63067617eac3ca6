"""Verifier of edited pictures: what was asked is done, and all else is untouched.

Both parts are measured, not judged: objects by the detector, signs by the reader, and the rest pixel by pixel against
the picture before the edit.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from ...system.errors import InputError
from ..geneval_rules import MAX_UNEXPLAINED, Detection, Record
from .detector import Mask, detect, dilate
from .edits import EDIT_TASKS, MOVES, SIZE, EditScene, render_scene
from .fidelity import edge_sharpness, falling
from .reader import read_sign
from .render import PlacedObject
from .verify import THRESHOLDS, agreement
from .world import Array, coverage

PLACE = 2.0
"""Pixels that the centre of an object may be off where it was to stay or to go."""
GROWTH = 1.2
"""Largest ratio of the sizes of an object before and after the edit."""
CLEAR_MOVE = 4.0
"""Pixels that a moved object goes at least."""
OBJECT_ERROR, GROUND_ERROR, PATCH_ERROR = 14.0, 5.0, 16.0
"""Largest difference in grey levels: means on an untouched object, on the ground, and on any 5x5 pixels of that."""
LETTER_ERROR = 30.0
"""Largest mean difference, in grey levels, on the pixels of a sign's letters, old and new, from the new sign."""
SHARPNESS = 0.75
"""Lowest share of its sharpness that a picture keeps."""
FADE = 10.0
"""Grey levels beyond a limit, or pixels beyond a distance, at which soft credit has fallen to 1/e."""


@dataclass(frozen=True)
class EditScores:
    """How well a picture is edited."""

    done: float
    """1 where what was asked is done, and nothing else is in the picture; else 0."""
    preserved: float
    """1 where every other object and the ground are untouched; else 0."""
    done_partly: float
    """Credit in [0, 1] for the objects or letters that were asked for."""
    preserved_partly: float
    """Credit in [0, 1] for what was to stay."""

    @property
    def strict(self) -> float:
        """1 where the request is done and all else untouched; else 0."""
        return self.done * self.preserved

    @property
    def partial(self) -> float:
        """Product of both credits: a picture that is returned as it was has none."""
        return self.done_partly * self.preserved_partly


def verify_edit(record: Record, image: NDArray[np.uint8]) -> EditScores:
    """Score an edited picture, uint8 (64, 64, 3), against its request."""
    before, after = EditScene.from_record(record["scene"]), EditScene.from_record(record["result"])
    if before.sign is not None:
        return _verify_sign(record, before, after, image)
    detections = detect(image)
    there = [d for d in detections.detections if d.score > THRESHOLDS[SIZE][0] * 0.6]
    touched = [o for o in before.objects if o not in after.objects]
    wanted = [o for o in after.objects if o not in before.objects]
    stays = [o for o in after.objects if o in before.objects]
    matches = _match_stays(stays, there)
    others = [d for d in there if id(d) not in {id(match) for match in matches if match is not None}]
    credits = list(_credits(record, touched, wanted, others))
    crowd = abs(len(there) - len(after.objects))
    alone = crowd == 0 and detections.unexplained <= MAX_UNEXPLAINED
    done_partly = float(np.mean(credits)) * math.exp(-crowd)
    done = float(alone and min(credits) == 1.0)
    zone = _zone([*touched, *(_outline(d) for d in others)])
    preserved, preserved_partly = _preservation(record, image, zone, stays)
    present = sum(match is not None for match in matches)
    preserved *= present == len(stays)
    return EditScores(done, preserved, done_partly, preserved_partly * (present / len(stays) if stays else 1.0))


def validate_edit(record: Any) -> None:
    """Raise InputError with one sentence that says why a record is no request of the editing world."""
    if not isinstance(record, dict) or record.get("tag") not in EDIT_TASKS:
        raise InputError(f"tag must be one of {', '.join(EDIT_TASKS)}")
    if not isinstance(record.get("prompt"), str):
        raise InputError("prompt must be a text")
    try:
        strict = verify_edit(record, render_scene(EditScene.from_record(record["result"]))).strict
    except Exception as error:  # whatever a stranger's numbers break
        raise InputError(f"scene and result are no edit of the editing world ({type(error).__name__})") from None
    if strict != 1:
        raise InputError("its result does not do what it asks of its scene, or does more")


def _credits(
    record: Record, touched: Sequence[PlacedObject], wanted: Sequence[PlacedObject], others: Sequence[Detection]
) -> Iterator[float]:
    """Yield the credit of each thing that was asked for: 1 where it is done."""
    task = record["tag"]
    free = list(others)
    for item in wanted:
        credit, best = max(((_credit(record, item, touched, d), i) for i, d in enumerate(free)), default=(0.0, -1))
        if credit > 0:
            free.pop(best)
        yield credit
    if task in ("remove", "recolor"):
        (gone,) = touched
        rest = [d for d in free if _off(d, gone.cx, gone.cy) < gone.r]
        yield 0.0 if rest else 1.0


def _credit(record: Record, item: PlacedObject, touched: Sequence[PlacedObject], d: Detection) -> float:
    """Return the credit of a detection for an object that was asked for: of what it is, and of where it is."""
    if d.cls != item.cls or d.color != item.color:
        return 0.0
    credit = min(1.0, d.score / THRESHOLDS[SIZE][0])
    if record["tag"] == "move":
        (old,) = touched
        return credit * _moved(record, old, d) * _same_size(d, item)
    if record["tag"] == "recolor":
        return credit * falling(_off(d, item.cx, item.cy), PLACE, FADE) * _same_size(d, item)
    if record["tag"] == "swap":
        old = next(o for o in touched if (o.cls, o.color) == (item.cls, item.color))
        way = math.hypot(old.cx - item.cx, old.cy - item.cy)
        rest = max(0.0, _off(d, item.cx, item.cy) - PLACE) / (way - PLACE)
        return credit * max(0.0, 1 - rest) * _same_size(d, item)
    return credit


def _moved(record: Record, old: PlacedObject, d: Detection) -> float:
    """Return the credit for the way an object went: far enough, and in the direction that was asked for."""
    word = next(word for word in MOVES if record["prompt"].endswith(word))
    dx, dy = (a - b for a, b in zip(_centre(d), (old.cx, old.cy)))
    along, across = (dx, dy) if word in ("left", "right") else (dy, dx)
    along = -along if word in ("left", "up") else along
    if along <= PLACE:
        return 0.0
    return min(1.0, (along - PLACE) / (CLEAR_MOVE - PLACE)) * falling(1.6 * abs(across), along, FADE)


def _same_size(d: Detection, item: PlacedObject) -> float:
    """Return 1 where a detection is as large as the object, less where it grew or shrank."""
    expected = _extent(item)
    ratio = max(d.box[2] - d.box[0], d.box[3] - d.box[1]) / expected
    return 1.0 if 1 / GROWTH <= ratio <= GROWTH else max(0.0, 1 - abs(math.log(ratio)))


def _match_stays(stays: Sequence[PlacedObject], there: Sequence[Detection]) -> list[Detection | None]:
    """Return the detection of each object that was to stay where it is; None where there is none."""
    matches: list[Detection | None] = []
    for item in stays:
        near = [
            d
            for d in there
            if (d.cls, d.color) == (item.cls, item.color)
            and d.score > THRESHOLDS[SIZE][0]
            and _off(d, item.cx, item.cy) <= PLACE
            and _same_size(d, item) == 1.0
        ]
        matches.append(near[0] if near else None)
    return matches


def _preservation(
    record: Record, image: NDArray[np.uint8], zone: Mask, stays: Sequence[PlacedObject] = ()
) -> tuple[float, float]:
    """Return whether all outside of the zone that the edit may touch is as it was, and how nearly."""
    source, expected = _pictures(record)
    difference = image.astype(np.float32) - source
    error, patches = (abs(scipy.ndimage.uniform_filter(difference, (n, n, 0))).max(-1) for n in (3, 5))
    objects = [_mask(item) & ~zone for item in stays]
    covered = np.any([_mask(item) for item in stays], 0) if stays else np.zeros_like(zone)
    ground = ~scipy.ndimage.maximum_filter(zone | dilate(covered, 1), 5)
    excesses = [float(error[mask].mean()) - OBJECT_ERROR for mask in objects if mask.any()]
    if ground.any():
        excesses += [float(error[ground].mean()) - GROUND_ERROR, float(patches[ground].max()) - PATCH_ERROR]
    sharp = edge_sharpness(image) / max(edge_sharpness(expected), 1e-6)
    preserved = max(excesses, default=0.0) <= 0 and sharp >= SHARPNESS
    credit = math.exp(-sum(max(0.0, excess) for excess in excesses) / FADE) * min(1.0, sharp / SHARPNESS)
    return float(preserved), credit


def _pictures(record: Record) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the picture before an edit, and one after it."""
    before, after = (_picture(EditScene.from_record(record[name])) for name in ("scene", "result"))
    return before, after


@lru_cache(maxsize=2048)
def _picture(scene: EditScene) -> NDArray[np.uint8]:
    return render_scene(scene)


@lru_cache(maxsize=2048)
def _corner(scene: EditScene) -> tuple[int, int]:
    """Return the left and upper edge of a sign's letters, in pixels."""
    box = read_sign(_picture(scene)).box
    return box[0], box[1]


def _verify_sign(record: Record, before: EditScene, after: EditScene, image: NDArray[np.uint8]) -> EditScores:
    """Score a sign that was to be retyped: it reads as asked, in the same colours and at the same place."""
    assert before.sign is not None and after.sign is not None
    target, (source, expected) = after.sign.text, _pictures(record)
    line, corner = read_sign(image), _corner(after)
    start = agreement(before.sign.text, target)
    gained = max(0.0, (agreement(line.text, target) - start) / (1 - start))
    # What a sign of the same length shares with the new one: its plate, but for the strokes of either text.
    strokes = dilate(abs(expected.astype(int) - source).max(-1) > 20, 1)
    preserved, preserved_partly = _preservation(record, image, strokes)
    off = max(abs(a - b) for a, b in zip(line.box[:2], corner)) if line.text else SIZE
    error = float(abs(expected[strokes].astype(np.float32) - image[strokes]).mean())
    done = float(line.text == target and line.clear and error <= LETTER_ERROR)
    preserved *= off <= 1
    return EditScores(done, preserved, gained, preserved_partly * falling(float(off), 1.0, FADE))


def _zone(items: Sequence[PlacedObject]) -> Mask:
    """Return the pixels that an edit of these objects, and their shadows, may touch."""
    zone = np.zeros((SIZE, SIZE), bool)
    for item in items:
        zone |= dilate(_mask(item), 4)
    return zone


@lru_cache(maxsize=4096)
def _mask(item: PlacedObject) -> Mask:
    return coverage(item.cls, SIZE, item.cx, item.cy, item.r, item.rot) > 0.1


def _outline(d: Detection) -> PlacedObject:
    """Return a square over a detection's box."""
    (cx, cy), half = _centre(d), max(d.box[2] - d.box[0], d.box[3] - d.box[1]) / 2
    return PlacedObject("square", d.color or "", cx, cy, half / 0.92, 0.0)


@lru_cache(maxsize=4096)
def _extent(item: PlacedObject) -> float:
    """Return the longer side of an object's box in pixels."""
    mask: Array = coverage(item.cls, SIZE, item.cx, item.cy, item.r, item.rot)
    spans = [profile.max() > 0 and np.flatnonzero(profile > 0.2) for profile in (mask.max(0), mask.max(1))]
    return max(float(span[-1] - span[0] + 1) for span in spans)


def _centre(d: Detection) -> tuple[float, float]:
    return (d.box[0] + d.box[2]) / 2, (d.box[1] + d.box[3]) / 2


def _off(d: Detection, cx: float, cy: float) -> float:
    """Return how far the centre of a detection is from a point, in pixels."""
    x, y = _centre(d)
    return math.hypot(x - cx, y - cy)
