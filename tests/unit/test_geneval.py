"""The rules against the table that the published reward functions gave on the same detections."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from afterflow.envs.geneval_rules import MODES, Detection, relations, score_detections

LEFT, RIGHT = (0.0, 10.0, 10.0, 20.0), (40.0, 10.0, 50.0, 20.0)


def found(cls, n=1, box=LEFT, color=None, score=0.99):
    return [Detection(cls, score, box, color)] * n


def record(tag, *include, exclude=()):
    return {"tag": tag, "include": list(include), "exclude": list(exclude), "prompt": "a test"}


SINGLE = record("single_object", {"class": "cat", "count": 1})
THREE = record("counting", {"class": "cat", "count": 3}, exclude=[{"class": "cat", "count": 4}])
POSITION = record("position", {"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["right of", 0]})
COLORS = record(
    "color_attr",
    {"class": "cat", "count": 1, "color": "red"},
    {"class": "dog", "count": 1, "color": "blue"},
)
CAT_RIGHT, DOG_LEFT = found("cat", box=RIGHT), found("dog", box=LEFT)
RED_CAT, BLUE_DOG = found("cat", color="red"), found("dog", color="blue")

TABLE = [
    (POSITION, CAT_RIGHT + DOG_LEFT, 1, 1, 1),
    (POSITION, found("cat", box=LEFT) + found("dog", box=RIGHT), 0, 0, 0.75),
    (POSITION, DOG_LEFT, 0, 0, 1 / 3),
    (POSITION, CAT_RIGHT, 0, 0, 1 / 3),
    (POSITION, CAT_RIGHT + DOG_LEFT * 2, 1, 0, 1 / 3),
    (SINGLE, [], 0, 0, 0),
    (SINGLE, found("cat", 1), 1, 1, 1),
    (SINGLE, found("cat", 2), 1, 0, 0),
    (SINGLE, found("cat", 3), 1, 0, -1),
    (SINGLE, found("cat", 5), 1, 0, -3),
    (SINGLE, found("cat", 16), 1, 0, -14),
    (THREE, [], 0, 0, 0),
    (THREE, found("cat", 1), 0, 0, 1 / 3),
    (THREE, found("cat", 2), 0, 0, 2 / 3),
    (THREE, found("cat", 3), 1, 1, 1),
    (THREE, found("cat", 4), 0, 0, 2 / 3),
    (THREE, found("cat", 6), 0, 0, 0),
    (THREE, found("cat", 7), 0, 0, -1 / 3),
    (THREE, found("cat", 16), 0, 0, -10 / 3),
    (COLORS, RED_CAT + BLUE_DOG, 1, 1, 1),
    (COLORS, RED_CAT + found("dog", color="green"), 0, 0, 0.75),
    (COLORS, found("cat", color="blue") + found("dog", color="red"), 0, 0, 0.5),
    (COLORS, RED_CAT, 0, 0, 0.5),
    (COLORS, RED_CAT + BLUE_DOG + found("bus"), 1, 1, 1),
]


@pytest.mark.parametrize("case", TABLE)
def test_official_strict_and_the_published_reward_reproduce_the_reference_table(case):
    rec, detections, official, strict, published = case
    assert score_detections(rec, detections, "official") == official
    assert score_detections(rec, detections, "strict") == strict
    assert score_detections(rec, detections, "partial_flowgrpo") == pytest.approx(published, abs=1e-12)


@pytest.mark.parametrize("case", TABLE)
def test_partial_is_bounded_and_full_exactly_for_the_closed_picture(case):
    rec, detections, *_ = case
    credit = score_detections(rec, detections, "partial", unexplained=0.0)
    assert 0 <= credit <= 1
    assert (credit == 1) == (score_detections(rec, detections, "closed", unexplained=0.0) == 1)


def test_partial_pays_less_for_a_wrong_relation_than_the_published_reward():
    swapped = found("cat", box=LEFT) + found("dog", box=RIGHT)
    assert score_detections(POSITION, swapped, "partial") == pytest.approx(2 / 3)


def test_partial_rises_with_confidence_and_surplus_costs():
    weak, strong = (score_detections(SINGLE, found("cat", score=s), "partial") for s in (0.2, 0.28))
    assert 0 < weak < strong < 1 == score_detections(SINGLE, found("cat", score=0.31), "partial")
    credit = [score_detections(THREE, found("cat", n), "partial") for n in (3, 4, 5, 6)]
    assert all(a > b for a, b in pairwise(credit)) and credit[-1] == 0


def test_closed_rejects_a_foreign_object_however_weak_and_an_unexplained_area():
    right = found("cat")
    assert score_detections(SINGLE, right, "closed", unexplained=0.011) == 1
    assert score_detections(SINGLE, right, "closed", unexplained=0.013) == 0
    assert score_detections(SINGLE, right + found("dog", score=0.05), "closed", unexplained=0.0) == 0
    with pytest.raises(ValueError, match="unexplained"):
        score_detections(SINGLE, right, "closed")


def test_counting_has_its_own_threshold():
    sure, unsure = found("cat", 3, score=0.95), found("cat", 1, score=0.5)
    assert score_detections(THREE, sure + unsure, "strict") == 1
    assert score_detections(THREE, sure + unsure, "strict", counting_threshold=0.4) == 0
    assert score_detections(SINGLE, unsure, "strict") == 1
    assert score_detections(SINGLE, unsure, "strict", threshold=0.6) == 0


def test_official_looks_at_the_most_confident_boxes_only():
    sure_red, unsure_blue = found("cat", color="red", score=0.9), found("cat", color="blue", score=0.4)
    rec = record("colors", {"class": "cat", "count": 1, "color": "red"})
    assert score_detections(rec, unsure_blue + sure_red, "official") == 1
    assert score_detections(rec, found("cat", color="blue", score=0.95) + sure_red, "official") == 0
    assert score_detections(rec, unsure_blue + sure_red, "strict") == 0


def test_at_most_sixteen_boxes_of_a_class_count():
    assert score_detections(SINGLE, found("cat", 40), "partial_flowgrpo") == -14


def test_relations_keep_a_margin_and_can_hold_twice():
    box = lambda x, y: (x - 5.0, y - 5.0, x + 5.0, y + 5.0)
    assert relations(box(30, 0), box(0, 0)) == {"right of"}
    assert relations(box(30, 30), box(0, 0)) == {"right of", "below"}
    assert relations(box(-30, -10), box(0, 0)) == {"left of"}
    # The margin is a tenth of both widths: 2 px here.
    assert relations(box(1.9, 0), box(0, 0)) == set()
    assert relations(box(4.1, 0), box(0, 0)) == {"right of"}
    assert relations(box(0, 0), box(0, 0)) == set()


def test_a_mirrored_scene_turns_every_relation_round():
    for angle in range(0, 360, 7):
        x, y = 30 * math.cos(math.radians(angle)), 30 * math.sin(math.radians(angle))
        a, b = (x, y, x + 8, y + 6), (0.0, 0.0, 9.0, 7.0)
        inverse = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
        assert relations(b, a) == {inverse[r] for r in relations(a, b)}


def test_a_record_without_objects_and_an_unknown_mode_are_refused():
    with pytest.raises(ValueError, match="include"):
        score_detections({"tag": "text", "include": [], "text": "AB"}, [], "strict")
    with pytest.raises(ValueError, match=", ".join(MODES)):
        score_detections(SINGLE, [], "lenient")


# The published rules once more, written from their description and not from ours.


def sides(mover, target):
    """The relations that hold, by arrays."""
    (centre, other), (extent, around) = zip(
        *((c.mean(0), np.ptp(c, 0)) for c in (np.reshape(b, (2, 2)) for b in (mover, target)))
    )
    offset = centre - other
    clear = np.sign(offset) * np.clip(np.abs(offset) - 0.1 * (extent + around), 0, None)
    if (np.abs(clear) < 1e-3).all():
        return []
    x, y = clear / np.sqrt((offset**2).sum())
    return [
        name
        for name, there in (("right of", x > 0.5), ("left of", x < -0.5), ("below", y > 0.5), ("above", y < -0.5))
        if there
    ]


def coloured(hue, boxes):
    return sum(d.color == hue for d in boxes) if hue else len(boxes)


def all_stand(place, movers, targets):
    return targets is not None and all(place[0] in sides(a.box, b.box) for a in movers for b in targets)


def restated(record, detections):
    """official, strict and partial_flowgrpo of a record."""
    bar = 0.9 if record["tag"] == "counting" else 0.3
    boxes = lambda cls: sorted((d for d in detections if d.cls == cls and d.score > bar), key=lambda d: -d.score)[:16]
    passed, exact, dense = True, True, []
    seen, seen_exactly, seen_densely = [], [], []
    for clause in record["include"]:
        need, hue, place = clause["count"], clause.get("color"), clause.get("position")
        everything = boxes(clause["class"])
        right, stands = partial(coloured, hue), partial(all_stand, place)

        best = everything[:need]
        fits = len(best) == need and right(best) == need and (not place or stands(best, seen[place[1]]))
        passed, seen = passed and fits, [*seen, best if fits else None]

        fits = len(everything) == need and right(everything) == need
        fits = fits and (not place or stands(everything, seen_exactly[place[1]]))
        exact, seen_exactly = exact and fits, [*seen_exactly, everything if fits else None]

        dense.append(1 - abs(need - len(everything)) / need)
        fits = len(everything) == need
        if not fits:
            dense += [0] * bool(hue or place)
        elif hue:
            dense.append(1 - abs(need - right(everything)) / need)
            fits = right(everything) == need
        if fits and place:
            target = seen_densely[place[1]]
            fits = stands(everything, target)
            dense += [0] if target is None else [1] if fits else [0, 1]
        seen_densely.append(everything if fits else None)
    if any(len(boxes(clause["class"])) >= clause["count"] for clause in record["exclude"]):
        passed = False
    return float(passed), float(exact), sum(dense) / len(dense)


def test_ten_thousand_random_pictures_are_judged_as_the_rules_say():
    rng = np.random.default_rng(0)
    pick = lambda known: known[rng.integers(len(known))]
    verdicts = []
    for _ in range(10_000):
        tag = pick(["single_object", "two_object", "counting", "colors", "position", "color_attr"])
        names = list(rng.permutation(["cat", "dog", "cup"]))[: 1 + (tag not in ("single_object", "counting", "colors"))]
        include = [
            {"class": str(name), "count": int(rng.integers(1, 4)) if rng.random() < 0.3 else 1} for name in names
        ]
        for clause in include if tag in ("colors", "color_attr") else ():
            clause["color"] = pick(["red", "blue"])
        if tag == "position":
            include[1]["position"] = [pick(["left of", "right of", "above", "below"]), 0]
        exclude = [{"class": include[0]["class"], "count": include[0]["count"] + 1}] if tag == "counting" else []
        corner = lambda: rng.uniform(0, 80, 2)
        shown = []
        for _ in range(rng.integers(0, 7)):
            start = corner()
            box = (*start, *(start + rng.uniform(1, 40, 2)))
            # Scores lie on both sides of both thresholds, and some are equal to one.
            score = pick([0.1, 0.3, 0.31, 0.6, 0.9, 0.91]) if rng.random() < 0.5 else float(rng.uniform(0.2, 1))
            shown.append(
                Detection(pick(["cat", "dog", "cup", "cow"]), score + rng.uniform(0, 1e-9), box, pick(["red", "blue"]))
            )
        asked = record(tag, *include, exclude=exclude)
        expected = restated(asked, shown)
        assert tuple(
            score_detections(asked, shown, mode) for mode in ("official", "strict", "partial_flowgrpo")
        ) == pytest.approx(expected)
        verdicts.append(expected)
    passed, exact, dense = np.array(verdicts).T
    assert 300 < passed.sum() > exact.sum() > 100 and len(np.unique(dense)) > 20  # random, and not all alike


# Bounds, one at a time.


@pytest.mark.parametrize("mode", ["official", "strict"])
@pytest.mark.parametrize("score, counts", [(0.5, False), (np.nextafter(0.5, 1), True)])
def test_a_detection_counts_above_its_threshold_and_not_at_it(mode, score, counts):
    boxes = [Detection("cat", float(score), LEFT)]
    assert score_detections(SINGLE, boxes, mode, threshold=0.5) == counts
    assert score_detections(SINGLE, boxes, mode) == 1


def test_soft_credit_rises_in_a_line_from_six_tenths_of_the_threshold_to_it():
    for threshold in (0.3, 0.5):
        for share in (0.59, 0.6, 0.7, 0.9, 1.0, 1.5):
            found_there = score_detections(
                SINGLE, found("cat", score=share * threshold), "partial", threshold=threshold
            )
            assert found_there == pytest.approx(min(1.0, max(0.0, (share - 0.6) / 0.4)), abs=1e-9)


def test_partial_is_a_mean_of_terms_for_presence_colour_and_relation():
    red = record("colors", {"class": "cat", "count": 2, "color": "red"})
    cats = found("cat", color="red") + found("cat", color="blue")
    assert score_detections(red, cats, "partial") == pytest.approx((1 + 1 * 1 / 2) / 2)
    assert score_detections(red, found("cat", color="red"), "partial") == pytest.approx((1 / 2 + 1 / 2 * 1 / 2) / 2)
    # Of a pair of dogs to the left of which a cat is wanted, one is unsure: its credit is a half.
    two_dogs = record(
        "position", {"class": "dog", "count": 2}, {"class": "cat", "count": 1, "position": ["left of", 0]}
    )
    dogs = found("dog", box=RIGHT) + found("dog", box=RIGHT, score=0.24)
    assert score_detections(two_dogs, found("cat") + dogs, "partial") == pytest.approx((0.75 + 1 + 0.75) / 3)
    # The relation counts as much of it as there is of the cat.
    unsure = score_detections(two_dogs, found("cat", score=0.24) + dogs, "partial")
    assert unsure == pytest.approx((0.75 + 0.5 + 0.5 * 0.75) / 3)
    assert score_detections(two_dogs, found("cat", box=(80, 10, 90, 20)) + dogs, "partial") == pytest.approx(1.75 / 3)


def test_surplus_and_clutter_cost_by_their_amount():
    clutter = lambda n, share: score_detections(SINGLE, found("cat") + found("cup", n), "partial", unexplained=share)
    for n in (0, 1, 3):
        for share in (0.0, 0.012, 0.022, 0.112):
            assert clutter(n, share) == pytest.approx(math.exp(-0.35 * n - max(0.0, share - 0.012) / 0.05))
    assert score_detections(THREE, found("cat", 4), "partial") == pytest.approx(2 / 3 * math.exp(-0.35))
    assert score_detections(THREE, found("cat", 2), "partial", unexplained=None) == pytest.approx(2 / 3)


def test_closed_allows_unexplained_pixels_below_a_bound():
    assert score_detections(SINGLE, found("cat"), "closed", unexplained=0.012) == 0
    assert score_detections(SINGLE, found("cat"), "closed", unexplained=0.012 - 1e-9) == 1


def test_a_relation_needs_half_of_the_distance_along_its_axis():
    """sin 30° is a half: at 30° to an axis only the nearer one holds, beyond it both."""
    point = lambda degrees: (math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))
    at = lambda degrees: tuple(100 * c for c in (*point(degrees), *point(degrees)))
    origin = (0.0, 0.0, 0.0, 0.0)
    assert relations(at(29.9), origin) == {"right of"}
    assert relations(at(30.1), origin) == {"right of", "below"}
    assert relations(at(60.1), origin) == {"below"}
    assert relations(at(209.9), origin) == {"left of"} and relations(at(210.1), origin) == {"left of", "above"}
    assert relations((0.0, 5.0, 0.0, 5.0), origin) == {"below"}


def test_the_margin_is_a_tenth_of_both_extents_along_each_axis():
    """A wide box moved along its short side: what counts there is the height."""
    flat = lambda x, y: (x - 20.0, y - 1.0, x + 20.0, y + 1.0)
    assert relations(flat(0, 4), flat(0, 0)) == {"below"}  # margin .4
    assert relations(flat(7.9, 0), flat(0, 0)) == set()  # margin 8
    assert relations(flat(16.1, 0), flat(0, 0)) == {"right of"}
    assert relations(flat(15.9, 0), flat(0, 0)) == set()  # what is left of the offset is less than half of it
    corners = (5.0, 5.0, 1.0, 1.0)  # in any order
    assert relations(corners, (43.0, 3.0, 43.0, 3.0)) == {"left of"}


def test_the_boxes_of_a_clause_are_its_most_confident():
    rec = record("colors", {"class": "cat", "count": 1, "color": "red"})
    cats = [Detection("cat", 0.5, LEFT, "blue"), Detection("cat", 0.9, LEFT, "red")]
    for order in (cats, cats[::-1]):
        assert score_detections(rec, order, "official") == 1
        assert score_detections(rec, order, "partial") == pytest.approx(math.exp(-0.35) * (0 + 0) / 2)


def test_a_relation_does_not_hold_at_its_bound():
    """An offset of (3, 4) has length 5; a margin of .5 leaves 2.5 of the 3, which is half of it and not more."""
    wide = lambda x, y: (x - 1.25, y, x + 1.25, y)
    for x, y, held in [(3, 4, "below"), (-3, 4, "below"), (3, -4, "above")]:
        assert relations(wide(x, y), wide(0, 0)) == {held}
    tall = lambda x, y: (x, y - 1.25, x, y + 1.25)
    for x, y, held in [(4, 3, "right of"), (4, -3, "right of"), (-4, 3, "left of")]:
        assert relations(tall(x, y), tall(0, 0)) == {held}
