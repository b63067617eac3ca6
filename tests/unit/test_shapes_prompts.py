"""Splits hold out meanings: what train never says in any wording, test says, and ood goes beyond."""

import itertools
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from afterflow.envs.shapes.prompts import draw, facts, hard_negative, held_out, meaning, suite, validate
from afterflow.envs.shapes.world import CHARS, COLORS, INVERSE, RELATIONS, SHAPES, TAGS

EVERY = [(split, tag) for split in ("train", "test", "ood") for tag in TAGS]
EVERY.remove(("ood", "single_object"))


def drawn(split, tag, count=300, size=32):
    rng = np.random.default_rng(0)
    return [draw(split, tag, rng, size) for _ in range(count)]


def all_facts(kind):
    pairs = list(itertools.combinations(sorted(SHAPES), 2))
    return {
        "color": [("color", shape, color) for shape in SHAPES for color in COLORS],
        "count": [("count", shape, number) for shape in SHAPES for number in "234"],
        "pair": [("pair", *pair) for pair in pairs],
        "position": [
            ("position", a, relation, b)
            for a, b in itertools.permutations(SHAPES, 2)
            for relation in ("left of", "above")
        ],
    }[kind]


@pytest.mark.parametrize("split, tag", EVERY)
@pytest.mark.parametrize("size", [32, 64])
def test_every_drawn_record_is_valid(split, tag, size):
    for record in drawn(split, tag, 60, size):
        validate(record)
        assert record["tag"] == tag


@pytest.mark.parametrize("tag", TAGS)
def test_train_says_no_held_out_fact_and_test_says_at_least_one(tag):
    assert not any(held_out(fact) for record in drawn("train", tag) for fact in facts(record))
    if tag != "single_object":
        assert all(any(held_out(fact) for fact in facts(record)) for record in drawn("test", tag))


def test_the_wording_of_a_relation_does_not_matter():
    for record in drawn("train", "position", 50):
        target, mover = record["include"]
        turned = [INVERSE[mover["position"][0]], 0]
        mirrored = {
            **record,
            "include": [
                {"class": mover["class"], "count": 1},
                {"class": target["class"], "count": 1, "position": turned},
            ],
        }
        assert facts(mirrored) == facts(record) and meaning(mirrored) == meaning(record)


@pytest.mark.parametrize("kind", ["color", "count", "pair", "position"])
def test_a_fifth_to_a_quarter_of_the_facts_is_held_out(kind):
    everything = all_facts(kind)
    assert 0.20 <= sum(map(held_out, everything)) / len(everything) <= 0.25


def test_about_a_fifth_of_the_strings_is_held_out():
    rng = np.random.default_rng(0)
    strings = ["".join(CHARS[i] for i in rng.integers(0, len(CHARS), 4)) for _ in range(4000)]
    assert np.mean([held_out(("text", string)) for string in strings]) == pytest.approx(0.22, abs=0.02)


def test_train_still_shows_every_class_color_number_and_relation():
    clauses = {tag: [c for r in drawn("train", tag, 600) for c in r["include"]] for tag in TAGS if tag != "text"}
    for found in clauses.values():
        assert {clause["class"] for clause in found} == set(SHAPES)
    for tag in ("colors", "color_attr"):
        assert {clause["color"] for clause in clauses[tag]} == set(COLORS)
    assert {clause["count"] for clause in clauses["counting"]} == {2, 3, 4}
    assert {c["position"][0] for c in clauses["position"] if "position" in c} == set(RELATIONS)


def test_ood_goes_beyond_train_in_kind_with_facts_that_train_has():
    assert all(len(r["include"]) == 3 for r in drawn("ood", "two_object"))
    assert all(r["include"][0]["count"] == 5 for r in drawn("ood", "counting"))
    assert all(r["include"][0]["count"] == 2 and "color" in r["include"][0] for r in drawn("ood", "colors"))
    assert all("color" in c for r in drawn("ood", "position") for c in r["include"])
    assert all(sum(map(held_out, facts(r))) == 2 for r in drawn("ood", "color_attr"))
    assert all(len(r["text"]) == 5 for r in drawn("ood", "text"))
    for tag in ("two_object", "colors", "position"):
        assert not any(held_out(fact) for r in drawn("ood", tag) for fact in facts(r))


def test_signs_are_as_long_as_the_picture_allows():
    assert {len(r["text"]) for r in drawn("train", "text")} == {3, 4}
    assert {len(r["text"]) for r in drawn("train", "text", size=64)} == set(range(3, 9))
    assert {len(r["text"]) for r in drawn("ood", "text", size=64)} == {9}


def test_a_suite_has_distinct_meanings_and_does_not_change():
    records = suite("test", 15, seed=3)
    assert records == suite("test", 15, seed=3) != suite("test", 15, seed=4)
    assert len({meaning(record) for record in records}) == len(records)


def test_a_suite_returns_all_there_are_where_fewer_than_asked():
    held = {kind: sum(map(held_out, all_facts(kind))) for kind in ("color", "count", "pair", "position")}
    counts = Counter(record["tag"] for record in suite("test", 100, seed=0))
    assert counts == {
        "single_object": 8,
        "two_object": held["pair"],
        "counting": held["count"],
        "colors": held["color"],
        "position": held["position"],
        "color_attr": 100,
        "text": 100,
    }


def test_the_split_is_the_same_in_another_process():
    code = "from afterflow.envs.shapes.prompts import suite; print([r['prompt'] for r in suite('test', 5, 0)])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == str([record["prompt"] for record in suite("test", 5, 0)])


def test_prompts_read_as_english():
    said = {record["prompt"] for tag in TAGS for record in drawn("train", tag, 800)}
    assert "a picture of two squares" in said and "a picture of three crosses" in said
    assert "a picture of an orange square" in said
    position = next(r for r in drawn("train", "position") if r["include"][1]["position"][0] == "above")
    target, mover = (clause["class"] for clause in position["include"])
    assert position["prompt"] == f"a picture of a {mover} above a {target}"


def test_counting_excludes_one_more_as_geneval_does():
    for record in drawn("train", "counting", 30):
        clause = record["include"][0]
        assert record["exclude"] == [{"class": clause["class"], "count": clause["count"] + 1}]


@pytest.mark.parametrize("split, tag", EVERY)
def test_a_hard_negative_means_something_else_in_words_and_in_clauses(split, tag):
    rng = np.random.default_rng(1)
    for record in drawn(split, tag, 60):
        before = repr(record)
        edited = hard_negative(record, rng)
        validate(edited)
        assert repr(record) == before
        assert meaning(edited) != meaning(record) and edited["prompt"] != record["prompt"]


def test_drawn_records_may_be_changed_without_changing_the_next():
    first = draw("train", "position", np.random.default_rng(0))
    pristine = repr(first)
    first["include"][1]["position"][0] = "nowhere"
    first["include"][0]["class"] = "teapot"
    assert repr(draw("train", "position", np.random.default_rng(0))) == pristine


CIRCLE = {"class": "circle", "count": 1}
BROKEN = [
    ({"tag": "animals"}, "tag"),
    ({"prompt": " "}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"include": []}, "include"),
    ({"include": "circle"}, "include"),
    ({"include": [{"class": "teapot", "count": 1}]}, r"include\[0\].class"),
    ({"include": [{"class": ["circle"], "count": 1}]}, r"include\[0\].class"),
    ({"include": [{"class": "circle", "count": 0}]}, r"include\[0\].count"),
    ({"include": [{"class": "circle", "count": True}]}, r"include\[0\].count"),
    ({"include": [{"class": "circle"}]}, r"include\[0\].count"),
    ({"include": [CIRCLE | {"color": "mauve"}]}, r"include\[0\].color"),
    ({"include": [CIRCLE | {"colour": "red"}]}, r"include\[0\] has unknown field 'colour'"),
    ({"include": [CIRCLE | {"position": ["above", 0]}]}, r"include\[0\].position must point"),
    ({"include": [CIRCLE, CIRCLE | {"position": ["near", 0]}]}, r"include\[1\].position must name"),
    ({"include": [CIRCLE, CIRCLE | {"position": ["above", 2]}]}, r"include\[1\].position must point"),
    ({"include": [CIRCLE, CIRCLE | {"position": "above"}]}, r"include\[1\].position must be"),
    ({"exclude": [{"class": "circle", "count": -1}]}, r"exclude\[0\].count"),
    ({"text": "ABC"}, "text belongs"),
    ({"tag": "text", "include": []}, "text must"),
    ({"tag": "text", "include": [], "text": "A0"}, "text may only"),
    ({"tag": "text", "text": "ABC"}, "include must be empty"),
    ({"size": 32}, "unknown field 'size'"),
]


@pytest.mark.parametrize("change, named", BROKEN)
def test_a_broken_record_is_refused_by_the_name_of_its_field(change, named):
    record = {"tag": "single_object", "include": [CIRCLE], "prompt": "a picture of a circle"}
    validate(record)
    with pytest.raises(ValueError, match=named):
        validate(record | change)


def test_a_record_that_is_no_object_and_an_unknown_split_are_refused():
    with pytest.raises(ValueError, match="JSON object"):
        validate("a circle")
    for split, tag in (("dev", "colors"), ("train", "animals"), ("ood", "single_object")):
        with pytest.raises(ValueError):
            draw(split, tag, np.random.default_rng(0))
