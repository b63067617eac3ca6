"""The editing world: a picture of the shapes world, a request to change it, and how the changed picture looks.

A record is {"tag": task, "prompt", "input", "scene", "result"}.  `scene` is the picture before the edit and `result`
one after it, as numbers from which both are rendered; `input` is the rendered scene as a data: address.  What the
request leaves open, such as where an added object stands, is open in other results too.

train  asks for no held-out fact;
test   asks for held-out ones alone: a (task, class, colour), for a sign a (retype, text).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...system.input_pictures import png_address
from ..geneval_rules import Record
from .prompts import Fact, held_out, noun_phrase
from .render import (
    ImageArray,
    PlacedObject,
    background,
    develop,
    draw_objects,
    draw_sign,
    place_objects,
    sign_colors,
    smallest_radius,
)
from .world import CHARS, COLORS, SHAPES

SIZE = 64
"""Pixels of a side; smaller inputs are refused by pipelines that edit."""
EDIT_TASKS = ("recolor", "remove", "add", "move", "count", "swap", "retype")
MOVES = {"left": "left of", "right": "right of", "up": "above", "down": "below"}
"""Word of a request to move → the relation of the new place to the old one."""
MOVE_MARGIN = 0.5
"""Pixels by which a move goes further in its direction than it must, for what it goes across."""


@dataclass(frozen=True)
class Sign:
    """A sign of an editing scene."""

    text: str
    """Its text."""
    plate: str
    """Name of the plate's colour."""
    ink: str
    """Name of the letters' colour."""


@dataclass(frozen=True)
class EditScene:
    """All that decides the pixels of a picture."""

    seed: int
    """Seed of the background, of the height of a sign, and of the grain."""
    objects: tuple[PlacedObject, ...] = ()
    """Its objects, none of which touch."""
    sign: Sign | None = None
    """Its sign, in the place of objects."""

    def to_record(self) -> dict[str, Any]:
        """Return the scene as JSON holds it."""
        objects = [[o.cls, o.color, *(round(v, 4) for v in (o.cx, o.cy, o.r, o.rot))] for o in self.objects]
        sign = None if self.sign is None else [self.sign.text, self.sign.plate, self.sign.ink]
        return {"seed": self.seed, "objects": objects, "sign": sign}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "EditScene":
        """Return the scene that JSON holds."""
        sign = None if record["sign"] is None else Sign(*record["sign"])
        return cls(record["seed"], tuple(PlacedObject(*values) for values in record["objects"]), sign)


def render_scene(scene: EditScene) -> ImageArray:
    """Render a scene, uint8 (64, 64, 3), the same for the same numbers."""
    ground, grain = np.random.default_rng([scene.seed, 0]), np.random.default_rng([scene.seed, 1])
    canvas = background(SIZE, ground)
    if scene.sign is not None:
        draw_sign(canvas, scene.sign.text, ground, (scene.sign.plate, scene.sign.ink))
    draw_objects(canvas, scene.objects)
    return develop(canvas, grain)


def draw_edit(split: str, task: str, rng: np.random.Generator) -> Record:
    """Draw a random request of a split and a task."""
    while True:
        before, after, prompt, fact = _MAKERS[task](rng)
        if held_out(fact) == (split == "test"):
            scenes = {"scene": before.to_record(), "result": after.to_record()}
            # From the rounded numbers, as a reader of the record renders it.
            address = png_address(render_scene(EditScene.from_record(scenes["scene"])))
            return {"tag": task, "prompt": prompt, "input": address, **scenes}


def edit_suite(split: str, per_task: int, seed: int, tasks: Sequence[str] = EDIT_TASKS) -> list[Record]:
    """Draw `per_task` requests of every task."""
    sources = [(task, np.random.default_rng([seed, EDIT_TASKS.index(task)])) for task in tasks]
    return [draw_edit(split, task, rng) for task, rng in sources for _ in range(per_task)]


_Made = tuple[EditScene, EditScene, str, Fact]


def _pairs(count: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Draw classes with colours, no pair twice: a request names one object by both."""
    chosen = rng.choice(len(SHAPES) * len(COLORS), count, replace=False)
    return [(SHAPES[i // len(COLORS)], COLORS[i % len(COLORS)]) for i in chosen]


def _placed(pairs: Sequence[tuple[str, str]], rng: np.random.Generator, relation: str | None = None) -> list:
    """Place an object of each pair; the last stands in a relation to the first where one is named."""
    include: list[dict[str, Any]] = [{"class": cls, "color": color, "count": 1} for cls, color in pairs]
    if relation is not None:
        include[-1]["position"] = [relation, 0]
    return place_objects({"tag": "edit", "include": include}, SIZE, rng)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _noun(item: PlacedObject) -> str:
    return f"{item.color} {item.cls}"


def _counted(item: PlacedObject, count: int) -> str:
    return noun_phrase({"class": item.cls, "color": item.color, "count": count})


def _fact(task: str, item: PlacedObject) -> Fact:
    return ("edit", task, item.cls, item.color)


def _recolor(rng: np.random.Generator) -> _Made:
    objects = _placed(_pairs(int(rng.integers(1, 5)), rng), rng)
    taken = {o.color for o in objects if o.cls == objects[0].cls}
    color = rng.choice([color for color in COLORS if color not in taken])
    changed = replace(objects[0], color=str(color))
    before = EditScene(_seed(rng), _shuffled(objects, rng))
    after = replace(before, objects=tuple(changed if o is objects[0] else o for o in before.objects))
    return before, after, f"make the {_noun(objects[0])} {color}", _fact("recolor", changed)


def _remove(rng: np.random.Generator) -> _Made:
    objects = _placed(_pairs(int(rng.integers(2, 5)), rng), rng)
    before = EditScene(_seed(rng), _shuffled(objects, rng))
    after = replace(before, objects=tuple(o for o in before.objects if o is not objects[0]))
    return before, after, f"remove the {_noun(objects[0])}", _fact("remove", objects[0])


def _add(rng: np.random.Generator) -> _Made:
    objects = _placed(_pairs(int(rng.integers(2, 5)), rng), rng)
    before = EditScene(_seed(rng), tuple(objects[:-1]))
    after = replace(before, objects=(*before.objects, objects[-1]))
    return before, after, f"add {_counted(objects[-1], 1)}", _fact("add", objects[-1])


def _move(rng: np.random.Generator) -> _Made:
    pairs, word = _pairs(int(rng.integers(1, 4)), rng), str(rng.choice(list(MOVES)))
    *objects, target = _placed([*pairs, pairs[0]], rng, MOVES[word])
    # A layout that is drawn again takes numbers of its own, so that all requests after it stay the same.
    again = rng.spawn(1)[0]
    while not _clearly(MOVES[word], objects[0], target):
        *objects, target = _placed([*pairs, pairs[0]], again, MOVES[word])
    mover = objects[0] = replace(objects[0], r=_common_radius(objects[0], target))
    before = EditScene(_seed(rng), _shuffled(objects, rng))
    moved = replace(mover, cx=target.cx, cy=target.cy)
    after = replace(before, objects=tuple(moved if o is mover else o for o in before.objects))
    where = word if word in ("up", "down") else f"to the {word}"
    return before, after, f"move the {_noun(mover)} {where}", _fact("move", mover)


def _clearly(relation: str, item: PlacedObject, target: PlacedObject) -> bool:
    """Return whether a target stands in a relation to an object with a margin, so that who measures it agrees."""
    dx, dy = abs(target.cx - item.cx), abs(target.cy - item.cy)
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    return along > 1.6 * across + MOVE_MARGIN


def _count(rng: np.random.Generator) -> _Made:
    pairs, number = _pairs(int(rng.integers(1, 3)), rng), int(rng.integers(1, 4))
    objects = _placed([*pairs[1:], *[pairs[0]] * (number + 1)], rng)
    last = objects[-1]
    before = EditScene(_seed(rng), _shuffled(objects[:-1], rng))
    after = replace(before, objects=(*before.objects, last))
    return before, after, f"make it {_counted(last, number + 1)}", _fact("count", last)


def _swap(rng: np.random.Generator) -> _Made:
    objects = _placed(_pairs(int(rng.integers(2, 5)), rng), rng)
    one, other = (replace(o, r=_common_radius(o, *objects[:2])) for o in objects[:2])
    objects[:2] = one, other
    before = EditScene(_seed(rng), _shuffled(objects, rng))
    there = {id(one): replace(one, cx=other.cx, cy=other.cy), id(other): replace(other, cx=one.cx, cy=one.cy)}
    after = replace(before, objects=tuple(there.get(id(o), o) for o in before.objects))
    return before, after, f"swap the {_noun(one)} and the {_noun(other)}", _fact("swap", one)


def _retype(rng: np.random.Generator) -> _Made:
    length = int(rng.integers(3, 6))
    old, new = ("".join(CHARS[i] for i in rng.integers(0, len(CHARS), length)) for _ in range(2))
    before = EditScene(_seed(rng), sign=Sign(old, *sign_colors(rng)))
    if old == new:
        return _retype(rng)
    after = replace(before, sign=replace(before.sign, text=new))  # type: ignore[type-var]
    return before, after, f'change the sign to "{new}"', ("edit", "retype", new)


def _common_radius(item: PlacedObject, *others: PlacedObject) -> float:
    """Return a radius with which an object may stand in each of the others' places."""
    return max(min(other.r for other in (item, *others)), smallest_radius(item.cls, SIZE))


def _shuffled(objects: Sequence[PlacedObject], rng: np.random.Generator) -> tuple[PlacedObject, ...]:
    return tuple(objects[i] for i in rng.permutation(len(objects)))


_MAKERS: dict[str, Callable[[np.random.Generator], _Made]] = {
    "recolor": _recolor,
    "remove": _remove,
    "add": _add,
    "move": _move,
    "count": _count,
    "swap": _swap,
    "retype": _retype,
}
