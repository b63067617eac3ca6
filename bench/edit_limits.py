"""How far a picture may be from a right one before the verifier of the editing world refuses it.

    python bench/edit_limits.py --json bench/results/edit_limits.json

Of every request right pictures are changed in one thing, by more and more: light, an object that was to stay, what is
left of an object or of letters.  What is counted is how many still pass `edits_strict`.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from harness import make_parser, provenance, write_json
from numpy.typing import NDArray

from afterflow.envs.shapes.edit_verifier import verify_edit
from afterflow.envs.shapes.edits import EDIT_TASKS, EditScene, draw_edit, render_scene
from afterflow.envs.shapes.render import PlacedObject

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from wrong_edits import covered, near, replaced, scenes, whole

Changed = Iterator[tuple[str, NDArray[np.uint8]]]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--count", type=int, default=140, help="requests, as many of each task")
    options = parser.parse_args()
    rng, passes = np.random.default_rng(77), {}
    for i in range(options.count):
        record = draw_edit("train", EDIT_TASKS[i % len(EDIT_TASKS)], rng)
        before, after = scenes(record)
        for kind, picture in changed_pictures(record["tag"], before, after, rng):
            counts = passes.setdefault(kind, [0, 0])
            counts[0] += verify_edit(record, picture).strict == 1
            counts[1] += 1
    write_json(provenance() | {"pass": passes}, options.json)


def changed_pictures(task: str, before: EditScene, after: EditScene, rng: np.random.Generator) -> Changed:
    """Yield what was changed, by how much, and the picture."""
    right, source = (render_scene(scene).astype(float) for scene in (after, before))
    for levels in (2, 3, 3.5):
        yield f"all pixels are {levels} levels lighter", whole(right + levels)
    stays = [item for item in after.objects if item in before.objects]
    if stays:
        yield from kept_object(after, stays[0], rng)
    if task in ("remove", "move"):
        yield from left_of_object(before, after, right, source, rng)
    if task == "retype":
        for share in (0.1, 0.2, 0.25, 0.3):
            yield f"old letters are there, {share:.0%}", whole(right + share * (source - right))
    if task == "recolor":
        yield from recoloured_object(before, after, right, source)


def kept_object(after: EditScene, item: PlacedObject, rng: np.random.Generator) -> Changed:
    """Yield an object that was to stay in other places and sizes."""
    angle = rng.uniform(0, 2 * np.pi)
    for distance in (0.25, 0.5, 0.75, 1, 1.5):
        moved = replace(item, cx=item.cx + distance * np.cos(angle), cy=item.cy + distance * np.sin(angle))
        yield f"a kept object is moved by {distance} px", render_scene(replaced(after, item, moved))
    for size in (0.88, 0.92, 0.95, 1.05, 1.08, 1.12):
        other = render_scene(replaced(after, item, replace(item, r=item.r * size)))
        yield f"a kept object has {size:.0%} of its size", other


def left_of_object(before, after, right, source, rng: np.random.Generator) -> Changed:
    """Yield a removed or moved object that is still there, transparent or in part."""
    (old,) = [item for item in before.objects if item not in after.objects]
    around = (near([old], 4) & ~near(list(after.objects), 1))[..., None]
    for share in (0.05, 0.1, 0.2, 0.3):
        ghost = np.where(around, right + share * (source - right), right)
        yield f"the old object is there, {share:.0%}", whole(ghost)
    pixels = rng.permutation(np.flatnonzero(covered(old) > 0.5))
    for count in (1, 4):
        picture = right.copy().reshape(-1, 3)
        picture[pixels[:count]] = source.reshape(-1, 3)[pixels[:count]]
        yield f"pixels of the old object are left: {count}", whole(picture.reshape(right.shape))


def recoloured_object(before, after, right, source) -> Changed:
    """Yield a recoloured object in other places, and with a strip of its old colour."""
    (old,) = [item for item in before.objects if item not in after.objects]
    (new,) = [item for item in after.objects if item not in before.objects]
    mask, rows = covered(old) > 0.5, np.indices(right.shape[:2])[0]
    for share in (0.05, 0.1, 0.15, 0.25):
        strip = (mask & (rows <= np.quantile(rows[mask], share)))[..., None]
        yield f"of a recoloured object {share:.0%} have the old colour", whole(np.where(strip, source, right))
    for distance in (0.5, 1, 1.5):
        moved = replaced(after, new, replace(new, cx=new.cx + distance))
        yield f"a recoloured object is moved by {distance} px", render_scene(moved)


if __name__ == "__main__":
    main()
