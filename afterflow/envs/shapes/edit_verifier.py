"""Verifier of edited pictures: what was asked is done, and all else is untouched.

Both parts are measured, not judged: objects by the detector, signs by the reader, and all pixels against a picture.
Where an edit may touch nothing that is the picture before it.  Elsewhere it is the scene that was to stay, with the
objects drawn in that are seen: what no object explains there is left over, or does not belong there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from ...system.errors import InputError
from ..geneval_rules import MAX_UNEXPLAINED, Detection, Record
from .detector import Mask, detect, dilate, largest
from .edits import EDIT_TASKS, MOVES, SIZE, EditScene, render_scene
from .fidelity import edge_sharpness, falling
from .poses import centre, longer_side, object_box, shown_object
from .reader import read_sign
from .render import PlacedObject, background, draw_objects
from .verify import THRESHOLDS, agreement
from .world import Array, coverage

PLACE, ARRIVAL = 1.0, 2.0
"""Pixels that the centre of an object may be off where it was to stay, and where it was to go."""
LEAST_SIZE, LARGEST_SIZE = 0.89, 1.09
"""Bounds of the ratio of an object's sizes after and before the edit.  An autoencoder takes off thin tips."""
CLEAR_MOVE = 4.0
"""Pixels that a moved object goes at least."""
OBJECT_ERROR, GROUND_ERROR = 12.0, 3.0
"""Largest mean difference in grey levels on an untouched object, and on the ground."""
PATCH_ERROR, NEW_ERROR = 16.0, 32.0
"""Largest difference in grey levels between the means of 5x5 pixels and what they are to show: anywhere, and within
three pixels of an object that was asked for.  Two colours of the world differ by 85 or more in a channel."""
PIXEL_ERROR, TEXTURE_ERROR = 32.0, 5.0
"""Largest difference in grey levels of a single pixel of the ground, and the largest mean of those."""
LETTER_ERROR = 30.0
"""Largest difference, in grey levels, on the pixels of a sign's letters, old and new, from the new sign: their mean,
and between the means of any 5x5 pixels."""
OLD_PERCENT = 25.0
"""Largest percentage of the old letters that is still in any 7x7 pixels of a sign."""
SHARPNESS = 0.75
"""Lowest share of its sharpness that a picture keeps."""
FADE = 10.0
"""Grey levels beyond a limit, or pixels beyond a distance, at which soft credit has fallen to 1/e."""
ZONE_FADE = 20.0
"""Grey levels beyond a limit at which soft credit for what was asked has fallen to 1/e."""
SLOPE = 0.1
"""Soft credit that a difference at its limit costs; it is lost in proportion below that."""


_Errors = list[tuple[float, float]]
"""Errors with their limits, in grey levels or percent."""
_Shown = tuple[Detection, PlacedObject | None]
"""A detection, and the object that it is where all but its place is known."""


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
    credits, shown = _credits(record, touched, wanted, others)
    crowd = abs(len(there) - len(after.objects))
    alone = crowd == 0 and detections.unexplained <= MAX_UNEXPLAINED
    zone = _zone([*touched, *(_outline(d) for d in others)])
    # Where objects are too many or too few the request is not done, whatever else is in the zone.
    errors = _errors_in_zone(EditScene(before.seed, tuple(stays)), shown, image, zone) if crowd == 0 else []
    done = float(alone and min(credits) == 1.0 and _within(errors))
    done_partly = float(np.mean(credits)) * math.exp(-crowd) * _soft(errors, ZONE_FADE)
    preserved, preserved_partly = _preservation(record, image, zone, [_mask(item) for item in stays])
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
) -> tuple[list[float], list[_Shown]]:
    """Return the credit of each thing that was asked for, 1 where it is done, and what each detection shows."""
    task = record["tag"]
    free, credits, shown = list(others), [], []
    for item in wanted:
        credit, best = max(((_credit(record, item, touched, d), i) for i, d in enumerate(free)), default=(0.0, -1))
        if credit > 0:
            shown.append((free.pop(best), None if task in ("add", "count") else item))
        credits.append(credit)
    if task in ("remove", "recolor"):
        (gone,) = touched
        credits.append(0.0 if any(_off(d, gone) < gone.r for d in free) else 1.0)
    return credits, [*shown, *((d, None) for d in free)]


def _credit(record: Record, item: PlacedObject, touched: Sequence[PlacedObject], d: Detection) -> float:
    """Return the credit of a detection for an object that was asked for: of what it is, and of where it is."""
    if d.cls != item.cls or d.color != item.color:
        return 0.0
    credit = min(1.0, d.score / THRESHOLDS[SIZE][0])
    if record["tag"] == "move":
        (old,) = touched
        return credit * _moved(record, old, d) * _same_size(d, item)
    if record["tag"] == "recolor":
        return credit * falling(_off(d, item), PLACE, FADE) * _same_size(d, item)
    if record["tag"] == "swap":
        old = next(o for o in touched if (o.cls, o.color) == (item.cls, item.color))
        way = math.hypot(old.cx - item.cx, old.cy - item.cy)
        rest = max(0.0, _off(d, item) - ARRIVAL) / (way - ARRIVAL)
        return credit * max(0.0, 1 - rest) * _same_size(d, item)
    return credit


def _moved(record: Record, old: PlacedObject, d: Detection) -> float:
    """Return the credit for the way an object went: far enough, and in the direction that was asked for."""
    word = next(word for word in MOVES if record["prompt"].endswith(word))
    dx, dy = (a - b for a, b in zip(centre(d.box), centre(object_box(old))))
    along, across = (dx, dy) if word in ("left", "right") else (dy, dx)
    along = -along if word in ("left", "up") else along
    if along <= PLACE:
        return 0.0
    return min(1.0, (along - PLACE) / (CLEAR_MOVE - PLACE)) * falling(1.6 * abs(across), along + PLACE, FADE)


def _same_size(d: Detection, item: PlacedObject) -> float:
    """Return 1 where a detection is as large as the object, less where it grew or shrank."""
    ratio = longer_side(d.box) / longer_side(object_box(item))
    return 1.0 if LEAST_SIZE <= ratio <= LARGEST_SIZE else max(0.0, 1 - abs(math.log(ratio)))


def _match_stays(stays: Sequence[PlacedObject], there: Sequence[Detection]) -> list[Detection | None]:
    """Return the detection of each object that was to stay where it is; None where there is none."""
    matches: list[Detection | None] = []
    for item in stays:
        near = [
            d
            for d in there
            if (d.cls, d.color) == (item.cls, item.color)
            and d.score > THRESHOLDS[SIZE][0]
            and _off(d, item) <= PLACE
            and _same_size(d, item) == 1.0
        ]
        matches.append(near[0] if near else None)
    return matches


def _errors_in_zone(scene: EditScene, shown: Sequence[_Shown], image: NDArray[np.uint8], zone: Mask) -> _Errors:
    """Return the errors of a picture in the zone that the edit may touch.

    What objects do not cover there is to be ground.  So the objects that detections show are drawn into the scene of
    all that was to stay, and the picture is compared with that.
    """
    pixels, ground = image.astype(np.float32), _canvas(scene)
    drawn = [shown_object(d, known, pixels, ground) for d, known in shown]
    canvas = ground.copy()
    draw_objects(canvas, drawn)
    difference, near = pixels - canvas, _zone(drawn, 3)
    # Means of 5x5 pixels that see the zone say nothing of what is to stay, so all of them are looked at here.
    seen = _spread(zone)
    patches, free = _patches(difference, 5), seen & ~near
    errors = _largest_in(patches, free, PATCH_ERROR) + _largest_in(patches, seen & near, NEW_ERROR)
    return errors + _texture_errors(difference, free & ~_spread(_zone(scene.objects, 1)))


def _preservation(record: Record, image: NDArray[np.uint8], zone: Mask, stays: Sequence[Mask]) -> tuple[float, float]:
    """Return whether all outside of the zone that the edit may touch is as it was, and how nearly."""
    before, after = EditScene.from_record(record["scene"]), EditScene.from_record(record["result"])
    difference = image.astype(np.float32) - _picture(before)
    patches, error, free = _patches(difference, 5), _patches(difference, 3), ~_spread(zone)
    objects = [mask & free for mask in stays]
    covered = np.any(stays, 0) if len(stays) else np.zeros_like(zone)
    ground = free & ~_spread(dilate(covered, 1))
    errors = [(float(error[mask].mean()), OBJECT_ERROR) for mask in objects if mask.any()]
    if ground.any():
        errors.append((float(error[ground].mean()), GROUND_ERROR))
    errors += _largest_in(patches, free, PATCH_ERROR) + _texture_errors(difference, ground)
    sharp = edge_sharpness(image) / max(_sharpness(after), 1e-6)
    preserved = _within(errors) and sharp >= SHARPNESS
    # Below the limits there is still something to gain.
    used = max((min(1.0, error / limit) for error, limit in errors), default=0.0)
    return float(preserved), _soft(errors, FADE) * (1 - SLOPE * used) * min(1.0, sharp / SHARPNESS)


def _texture_errors(difference: Array, ground: Mask) -> _Errors:
    """Return the errors of single pixels of the ground, which means of 5x5 pixels do not see: the largest, the mean."""
    error = largest(abs(difference))[ground]
    return [(float(error.max()), PIXEL_ERROR), (float(error.mean()), TEXTURE_ERROR)] if error.size else []


def _patches(difference: Array, side: int) -> Array:
    """Return the largest channel of the mean difference of the pixels around each: (S, S, 3) → (S, S)."""
    return largest(abs(scipy.ndimage.uniform_filter(difference, (side, side, 0))))


def _largest_in(errors: Array, mask: Mask, limit: float) -> _Errors:
    """Return the largest error in a mask with its limit, or nothing where the mask is empty."""
    return [(float(errors[mask].max()), limit)] if mask.any() else []


def _spread(mask: Mask) -> Mask:
    """Grow a mask by two pixels each way: the centres of 5x5 pixels that see it."""
    return scipy.ndimage.maximum_filter(mask, 5)


def _within(errors: _Errors) -> bool:
    return all(error <= limit for error, limit in errors)


def _soft(errors: _Errors, fade: float) -> float:
    """Return the soft credit of errors: 1 within their limits, and falling from there."""
    return math.exp(-sum(max(0.0, error - limit) for error, limit in errors) / fade)


@lru_cache(maxsize=2048)
def _picture(scene: EditScene) -> NDArray[np.uint8]:
    return render_scene(scene)


@lru_cache(maxsize=2048)
def _sharpness(scene: EditScene) -> float:
    return edge_sharpness(_picture(scene))


@lru_cache(maxsize=512)
def _canvas(scene: EditScene) -> Array:
    """Return the picture of a scene of objects before grain, float32 (64, 64, 3)."""
    canvas = background(SIZE, np.random.default_rng([scene.seed, 0]))
    draw_objects(canvas, scene.objects)
    return canvas


@lru_cache(maxsize=2048)
def _corner(scene: EditScene) -> tuple[int, int]:
    """Return the left and upper edge of a sign's letters, in pixels."""
    box = read_sign(_picture(scene)).box
    return box[0], box[1]


def _verify_sign(record: Record, before: EditScene, after: EditScene, image: NDArray[np.uint8]) -> EditScores:
    """Score a sign that was to be retyped: it reads as asked, in the same colours and at the same place."""
    assert before.sign is not None and after.sign is not None
    target, source, expected = after.sign.text, _picture(before), _picture(after)
    line, corner = read_sign(image), _corner(after)
    start = agreement(before.sign.text, target)
    gained = max(0.0, (agreement(line.text, target) - start) / (1 - start))
    # What a sign of the same length shares with the new one: its plate, but for the strokes of either text.
    old = source.astype(np.float32) - expected
    strokes = dilate(largest(abs(old)) > 20, 1)
    plate = largest(abs(expected - _canvas(EditScene(after.seed)))) > 20
    preserved, preserved_partly = _preservation(record, image, strokes, [plate])
    off = max(abs(a - b) for a, b in zip(line.box[:2], corner)) if line.text else SIZE
    difference = image.astype(np.float32) - expected
    errors = [(float(abs(difference[strokes]).mean()), LETTER_ERROR)]
    errors += _largest_in(_patches(difference, 5), _spread(strokes), LETTER_ERROR)
    errors.append((_percent_left(difference, old), OLD_PERCENT))
    done = float(line.text == target and line.clear and _within(errors))
    preserved *= off <= 1
    done_partly = gained * (_soft(errors, ZONE_FADE) if line.text == target else 1.0)
    return EditScores(done, preserved, done_partly, preserved_partly * falling(float(off), 1.0, FADE))


def _percent_left(difference: Array, old: Array) -> float:
    """Return the largest percentage of an old picture that a difference to the new one has, in any 7x7 pixels."""
    shared, size = (
        scipy.ndimage.uniform_filter((part * old).sum(-1), 7, mode="constant") for part in (difference, old)
    )
    enough = size > 0.1 * size.max()
    return 100 * float((shared[enough] / size[enough]).max())


def _zone(items: Sequence[PlacedObject], steps: int = 4) -> Mask:
    """Return the pixels within some steps of objects: with four, what an edit of them and their shadows may touch."""
    zone = np.zeros((SIZE, SIZE), bool)
    for item in items:
        zone |= dilate(_mask(item), steps)
    return zone


@lru_cache(maxsize=4096)
def _mask(item: PlacedObject) -> Mask:
    return coverage(item.cls, SIZE, item.cx, item.cy, item.r, item.rot) > 0.1


def _outline(d: Detection) -> PlacedObject:
    """Return a square over a detection's box."""
    (cx, cy), half = centre(d.box), longer_side(d.box) / 2
    return PlacedObject("square", d.color or "", cx, cy, half / 0.92, 0.0)


def _off(d: Detection, item: PlacedObject) -> float:
    """Return how far the centre of a detection's box is from that of an object, in pixels."""
    return math.dist(centre(d.box), centre(object_box(item)))
