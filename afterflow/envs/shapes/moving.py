"""The moving shapes world: clips whose prompts name what moves, and in which direction.

A record is like one of the still world, with a direction in every clause:

    {"tag": "move_count", "prompt": "two red circles moving left",
     "include": [{"class": "circle", "count": 2, "color": "red", "moving": "left"}]}

Objects keep their speed and never meet.  Which of a class's directions are asked for is split: `train` shows no clip of
the pairs (class, direction) that `test` asks for.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ...system.errors import InputError
from ..geneval_rules import Record
from .prompts import noun_phrase
from .render import ImageArray, PlacedObject, background, develop, draw_objects
from .world import COLORS, SHAPES, SIZES, Array

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOVING_TAGS = ("move_one", "move_count", "move_two")
TRAVEL = 0.25
"""Distance that objects move in a clip, as a share of its side."""


def held_out_motion(cls: str, direction: str) -> bool:
    """Return whether only `test` asks for this pair; 6 or 7 of the 8 classes of a direction are in training."""
    return (SHAPES.index(cls) + 3 * list(DIRECTIONS).index(direction)) % 5 == 0


def draw_moving(split: Literal["train", "test"], tag: str, rng: np.random.Generator) -> Record:
    """Draw a record of the tag whose pairs belong to that split alone."""
    pairs = [(c, d) for c in SHAPES for d in DIRECTIONS if held_out_motion(c, d) == (split == "test")]
    chosen = [pairs[i] for i in rng.choice(len(pairs), 2 if tag == "move_two" else 1, replace=False)]
    colors = [COLORS[i] for i in rng.choice(len(COLORS), len(chosen), replace=False)]
    count = 2 if tag == "move_count" else 1  # three find no room to move in 32 px
    include = [
        {"class": cls, "count": count, "color": color, "moving": direction}
        for (cls, direction), color in zip(chosen, colors)
    ]
    return {"tag": tag, "include": include, "prompt": " and ".join(map(_phrase, include))}


def moving_suite(split: Literal["train", "test"], per_tag: int, seed: int, tags: Sequence[str]) -> list[Record]:
    """Draw `per_tag` records of every tag, all distinct where there are as many."""
    rng, records = np.random.default_rng(seed), []
    for tag in tags:
        distinct: dict[str, Record] = {}
        for _ in range(20 * per_tag):
            record = draw_moving(split, tag, rng)
            distinct.setdefault(record["prompt"], record)
            if len(distinct) == per_tag:
                break
        of_tag = list(distinct.values())
        records += [of_tag[i % len(of_tag)] for i in range(per_tag)]
    return records


def validate_moving(record: Any) -> None:
    """Raise InputError with one sentence that names the wrong field of a record."""
    clauses = record.get("include") if isinstance(record, dict) else None
    if not isinstance(clauses, list) or not clauses:
        raise InputError("include must have at least one clause")
    for i, clause in enumerate(clauses):
        if not isinstance(clause, dict):
            raise InputError(f"include[{i}] must be a JSON object, not {clause!r}")
        for field, allowed in (("class", SHAPES), ("color", COLORS), ("moving", tuple(DIRECTIONS))):
            if clause.get(field) not in allowed:
                raise InputError(f"include[{i}].{field} must be one of {', '.join(allowed)}, not {clause.get(field)!r}")
        count = clause.get("count")
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise InputError(f"include[{i}].count must be a whole number of at least 1, not {count!r}")


def render_clip(record: Record, frames: int, size: int, rng: np.random.Generator) -> ImageArray:
    """Render a true clip of the record, uint8 (frames, size, size, 3); ValueError where its objects find no room."""
    if size not in SIZES or frames < 1:
        raise ValueError(f"a clip has frames of {SIZES[0]} or {SIZES[1]} px and at least one of them")
    clauses = [clause for clause in record["include"] for _ in range(clause["count"])]
    step = TRAVEL * size * np.array([DIRECTIONS[clause["moving"]] for clause in clauses])
    start, radius = _paths(step, size, rng)
    plane, turn, clip = background(size, rng), rng.uniform(-0.2, 0.2, len(clauses)), []
    for time in np.linspace(0, 1, frames):
        canvas = plane.copy()
        centres = start + time * step
        draw_objects(
            canvas,
            [
                PlacedObject(clause["class"], clause["color"], float(x), float(y), float(r), float(rot))
                for clause, (x, y), r, rot in zip(clauses, centres, radius, turn)
            ],
        )
        clip.append(develop(canvas, rng))
    return np.stack(clip)


def _paths(step: Array, size: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw starts (n, 2) and radii (n,) of n objects, such that all stay inside and none comes near another."""
    scale, n = size / 64, len(step)
    for _ in range(5000):
        radius = rng.uniform(9.2 * scale, 10.6 * scale, n)
        low = radius[:, None] + 1.5 - np.minimum(step, 0)
        high = size - radius[:, None] - 2.5 - np.maximum(step, 0)
        start = rng.uniform(low, np.maximum(high, low))
        way = start[:, None] + np.linspace(0, 1, 9)[:, None] * step[:, None]  # (n, 9, 2)
        apart = np.linalg.norm(way[:, None] - way[None], axis=-1).min(-1)
        near = (radius[:, None] + radius[None]) * 1.12 + 2.2 * max(1, scale)
        if (apart + 1e9 * np.eye(n) > near).all():
            return start, radius
    raise ValueError(f"could not find paths for {n} objects in {size} px; ask for fewer")


def _phrase(clause: Record) -> str:
    return f"{noun_phrase(clause)} moving {clause['moving']}"
