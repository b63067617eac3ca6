"""GenEval's rules (arXiv:2310.11513) over the boxes of any detector, of real images and of the shapes world.

There are five modes to score the same boxes:

official          every clause is met by its `count` most confident boxes, no `exclude` is; clutter is allowed
strict            Flow-GRPO's evaluation: exactly `count` boxes, colours and relations on all of them
closed            strict, and nothing else in the image
partial           bounded soft credit in [0, 1], graded in confidence; surplus and clutter cost
partial_flowgrpo  Flow-GRPO's training reward as published: unbounded below (16 boxes for a count of 1 give -14),
                  a wrong relation earns 0.75, clutter is free
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
"""Prompt with what its image must show, in the schema of GenEval's JSONL files."""
Box = tuple[float, float, float, float]
"""Corners x0, y0, x1, y1 in pixels, y downwards."""

OBJECTS = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote"),
    *("computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock"),
    *("vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
"""Classes that GenEval's prompts may name: COCO's 80, three of them renamed."""

MAX_PER_CLASS = 16
"""Number of boxes of a class that are counted, the most confident first."""
POSITION_MARGIN = 0.1
"""Offset of two centres, as a share of the boxes' sizes, below which no relation holds."""
MAX_UNEXPLAINED = 0.012
"""Share of the image that detections may leave unexplained where nothing else is in it."""
SOFT_FROM = 0.6
"""Share of the detection threshold at which soft credit starts."""


@dataclass(frozen=True)
class Detection:
    """An object that a detector reports."""

    cls: str
    """Class of the object."""
    score: float
    """Confidence in [0, 1]."""
    box: Box
    """Corners x0, y0, x1, y1 in pixels, y downwards."""
    color: str | None = None
    """Colour of the object, where the detector names one."""


@dataclass(frozen=True)
class Scene:
    """The detections of one image, as the rules see them."""

    detections: Sequence[Detection]
    """All detections, the most confident first; `closed` and `partial` count every one of them."""
    threshold: float
    """Confidence above which a detection counts."""
    unexplained: float | None
    """Share of the image that is neither background nor detected."""

    def confident(self, cls: str) -> list[Detection]:
        """Return the detections of a class above the threshold, at most MAX_PER_CLASS."""
        return [d for d in self.detections if d.cls == cls and d.score > self.threshold][:MAX_PER_CLASS]


def score_detections(
    record: Record,
    detections: Sequence[Detection],
    mode: str,
    *,
    threshold: float = 0.3,
    counting_threshold: float = 0.9,
    unexplained: float | None = None,
) -> float:
    """Score the detections of one image under one of MODES; the default thresholds are GenEval's.

    Args:
        record: Record of the image's prompt.
        detections: Detections of the image, in any order.
        mode: Name of the rules, one of MODES.
        threshold: Confidence above which a detection counts.
        counting_threshold: The same for records of the tag `counting`.
        unexplained: Share of the image that is neither background nor detected; `closed` needs it.

    Raises ValueError for an unknown mode, a record without objects, and `closed` without `unexplained`.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if not record["include"]:
        raise ValueError("a record without include names no object; signs are judged by reading them")
    cut = counting_threshold if record["tag"] == "counting" else threshold
    scene = Scene(sorted(detections, key=lambda d: -d.score), cut, unexplained)
    return float(MODES[mode](record, scene))


def _official(record: Record, scene: Scene) -> bool:
    groups: list[list[Detection] | None] = []
    for clause in record["include"]:
        boxes = scene.confident(clause["class"])[: clause["count"]]
        met = len(boxes) >= clause["count"] and _right_colors(clause, boxes) >= clause["count"]
        met = met and _relation_holds(clause, boxes, groups)
        groups.append(boxes if met else None)
    excluded = any(len(scene.confident(clause["class"])) >= clause["count"] for clause in record.get("exclude", []))
    return None not in groups and not excluded


def _strict(record: Record, scene: Scene) -> bool:
    groups: list[list[Detection] | None] = []
    for clause in record["include"]:
        boxes = scene.confident(clause["class"])
        met = len(boxes) == clause["count"] == _right_colors(clause, boxes)
        met = met and _relation_holds(clause, boxes, groups)
        groups.append(boxes if met else None)
    return None not in groups


def _closed(record: Record, scene: Scene) -> bool:
    if scene.unexplained is None:
        raise ValueError("closed needs `unexplained`, the share of the picture that no detection explains")
    wanted = sum(clause["count"] for clause in record["include"])
    alone = len(scene.detections) == wanted and scene.unexplained < MAX_UNEXPLAINED
    return alone and _strict(record, scene)


def _partial(record: Record, scene: Scene) -> float:
    terms: list[float] = []
    candidates = [[d for d in scene.detections if d.cls == clause["class"]] for clause in record["include"]]
    for clause, boxes in zip(record["include"], candidates, strict=True):
        presence = _presence(clause["count"], boxes, scene.threshold)
        terms.append(presence)
        if "color" in clause:
            terms.append(presence * _right_colors(clause, boxes[: clause["count"]]) / clause["count"])
        if "position" in clause:
            relation, target = clause["position"]
            needed = record["include"][target]["count"]
            targets = _soft(candidates[target][:needed], scene.threshold)
            movers = _soft(boxes[: clause["count"]], scene.threshold)
            holds = _all_related(relation, [d for d, _ in movers], [d for d, _ in targets])
            terms.append(presence * sum(credit for _, credit in targets) / needed * holds)
    surplus = max(0, len(scene.detections) - sum(clause["count"] for clause in record["include"]))
    excess = max(0.0, (scene.unexplained or 0.0) - MAX_UNEXPLAINED)
    return sum(terms) / len(terms) * math.exp(-0.35 * surplus - excess / 0.05)


def _partial_flowgrpo(record: Record, scene: Scene) -> float:
    rewards: list[float] = []
    groups: list[list[Detection] | None] = []
    for clause in record["include"]:
        need, boxes = clause["count"], scene.confident(clause["class"])
        rewards.append(1 - abs(need - len(boxes)) / need)
        met = len(boxes) == need
        if not met and ("color" in clause or "position" in clause):
            rewards.append(0.0)
        if met and "color" in clause:
            right = _right_colors(clause, boxes)
            rewards.append(1 - abs(need - right) / need)
            met = right == need
        if met and "position" in clause:
            met = _relation_holds(clause, boxes, groups)
            # As published: a violation appends 0 and then, like a success, 1.
            has_target = groups[clause["position"][1]] is not None
            rewards += ([] if met else [0.0]) + ([1.0] if has_target else [])
        groups.append(boxes if met else None)
    return sum(rewards) / len(rewards)


MODES: dict[str, Callable[[Record, Scene], float]] = {
    "official": _official,
    "strict": _strict,
    "closed": _closed,
    "partial": _partial,
    "partial_flowgrpo": _partial_flowgrpo,
}


def relations(a: Box, b: Box) -> set[str]:
    """Return the relations of box `a` to box `b`: none, one or two of the four."""
    offset = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    margin = [POSITION_MARGIN * (abs(a[i + 2] - a[i]) + abs(b[i + 2] - b[i])) for i in (0, 1)]
    clear = [math.copysign(max(abs(o) - m, 0.0), o) for o, m in zip(offset, margin, strict=True)]
    if max(map(abs, clear)) < 1e-3:
        return set()
    dx, dy = (c / math.hypot(*offset) for c in clear)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {relation for relation, held in holds.items() if held}


def _right_colors(clause: Record, boxes: Sequence[Detection]) -> int:
    """Count the boxes of the clause's colour: all where it names none."""
    return sum("color" not in clause or d.color == clause["color"] for d in boxes)


def _relation_holds(clause: Record, boxes: Sequence[Detection], groups: Sequence[list[Detection] | None]) -> bool:
    """Return whether every box has the clause's relation to every box of a target that was itself met."""
    if "position" not in clause:
        return True
    relation, target = clause["position"]
    group = groups[target]
    return group is not None and _all_related(relation, boxes, group)


def _all_related(relation: str, movers: Sequence[Detection], targets: Sequence[Detection]) -> bool:
    return all(relation in relations(mover.box, target.box) for mover in movers for target in targets)


def _presence(need: int, boxes: Sequence[Detection], threshold: float) -> float:
    """Return the soft share of the `need` objects that are present, minus the surplus: in [0, 1]."""
    credit = [c for _, c in _soft(boxes, threshold)]
    return max(0.0, sum(credit[:need]) - sum(credit[need:])) / need


def _soft(boxes: Sequence[Detection], threshold: float) -> list[tuple[Detection, float]]:
    """Return the detections that earn credit, with their credit in (0, 1]."""
    floor = SOFT_FROM * threshold
    return [(d, min(1.0, (d.score - floor) / (threshold - floor))) for d in boxes if d.score > floor]
