"""Prompts as records of GenEval's JSONL schema, and three splits that hold out meanings, not words.

A record is {"tag", "include": [{"class", "count"[, "color"][, "position": [relation, clause]]}], ["exclude"],
["text"], "prompt"}; a sign carries "text" and an empty "include".

train  contains no held-out fact;
test   contains at least one: a (class, colour), a (class, number), an unordered pair of classes, a
       (class, class, relation), a string;
ood    has kinds of prompt that train does not have: three objects, five of a kind, a coloured pair,
       coloured positions, two held-out colours at once, one more character.

A lone object has no fact that could be held out, so `single_object` is the same in train and test, has no
ood, and is reported apart.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import cache
from hashlib import blake2b
from typing import Any

import numpy as np

from ...system.errors import InputError
from ..geneval_rules import Record
from .world import CHARS, COLORS, INVERSE, RELATIONS, SHAPES, TAGS

Fact = tuple[str, ...]

SPLITS = ("train", "test", "ood")
NUMBERS = (2, 3, 4)
HELD_OUT_PERCENT = 22
_WORDS = ("zero", "one", "two", "three", "four", "five", "six")
# Chosen so that every kind of fact loses 20-25 % and each class, colour and number stays in train.
_SALT = "580"


def draw(split: str, tag: str, rng: np.random.Generator, size: int = 32) -> Record:
    """Draw a random record of a split and tag; `size` only limits the length of a sign."""
    _check_choice(split, tag)
    if tag == "text":
        return _sign(split, rng, size)
    records = _universe(split, tag)
    return _record(tag, records[rng.integers(len(records))])


def suite(split: str, per_tag: int, seed: int, size: int = 32, tags: Sequence[str] | None = None) -> list[Record]:
    """Draw up to `per_tag` records of every tag that differ in meaning, or all where there are fewer.

    Args:
        split: One of SPLITS.
        per_tag: Number of records of a tag.
        seed: Seed of the draw.
        size: Pixels of a side of the images, which limit the length of a sign.
        tags: Tags of the records; None means all that the split has.
    """
    tags = tags if tags is not None else [tag for tag in TAGS if (split, tag) != ("ood", "single_object")]
    records = []
    for tag in tags:
        _check_choice(split, tag)
        rng = np.random.default_rng([seed, TAGS.index(tag)])
        distinct = {}
        for record in _shuffled(split, tag, rng, size):
            if len(distinct) == per_tag:
                break
            distinct.setdefault(meaning(record), record)
        records += distinct.values()
    return records


def facts(record: Record) -> frozenset[Fact]:
    """Return what a record states beyond its classes, in a canonical form."""
    if record["tag"] == "text":
        return frozenset({("text", record["text"])})
    clauses, stated = record["include"], set()
    for clause in clauses:
        if "color" in clause:
            stated.add(("color", clause["class"], clause["color"]))
        if clause["count"] > 1:
            stated.add(("count", clause["class"], str(clause["count"])))
        if "position" in clause:
            relation, target = clause["position"]
            stated.add(_position_fact(clause["class"], relation, clauses[target]["class"]))
    if record["tag"] == "two_object":
        classes = sorted(clause["class"] for clause in clauses)
        stated |= {("pair", *pair) for pair in itertools.combinations(classes, 2)}
    return frozenset(stated)


def held_out(fact: Fact) -> bool:
    """Return whether training leaves the fact out; its content decides alone, on every machine alike."""
    digest = blake2b("|".join((_SALT, *fact)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 100 < HELD_OUT_PERCENT


def meaning(record: Record) -> tuple[tuple[str, ...], frozenset[Fact]]:
    """Return the meaning of a record: equal for two records exactly when they ask for the same images."""
    classes = sorted(clause["class"] for clause in record["include"] for _ in range(clause["count"]))
    return tuple(classes), facts(record)


def noun_phrase(clause: Record) -> str:
    """Return what a clause counts and colours in words, such as two red crosses."""
    words = f"{clause['color']} {clause['class']}" if "color" in clause else clause["class"]
    if clause["count"] > 1:
        return f"{_WORDS[clause['count']]} {words}{'es' if words.endswith('s') else 's'}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def hard_negative(record: Record, rng: np.random.Generator) -> Record:
    """Edit one fact of a record, so that an image of `record` does not satisfy the new one."""
    tag = record["tag"]
    if tag == "text":
        at = int(rng.integers(len(record["text"])))
        choices = [char for char in CHARS if char != record["text"][at]]
        edited = record["text"][:at] + choices[rng.integers(len(choices))] + record["text"][at + 1 :]
        return _text_record(edited)
    clauses = [dict(clause) for clause in record["include"]]
    first = clauses[0]
    if tag == "counting":
        first["count"] += int(rng.choice([-1, 1]))
    elif tag == "position":
        relation, target = clauses[1]["position"]
        clauses[1]["position"] = [INVERSE[relation], target]
    elif tag == "color_attr" and rng.random() < 0.5:
        first["color"], clauses[1]["color"] = clauses[1]["color"], first["color"]
    else:
        key, values = ("color", COLORS) if tag in ("colors", "color_attr") else ("class", SHAPES)
        choices = [value for value in values if value not in {clause[key] for clause in clauses}]
        first[key] = choices[rng.integers(len(choices))]
    return _record(tag, clauses)


def validate(record: Any, classes: Sequence[str] = SHAPES) -> None:
    """Raise InputError with one sentence that names the wrong field of a record; it may name only `classes`."""
    _require(isinstance(record, dict), "a record must be a JSON object")
    unknown = sorted(set(record) - {"tag", "include", "exclude", "text", "prompt"})
    _require(not unknown, f"unknown field {', '.join(map(repr, unknown))}")
    _require(record.get("tag") in TAGS, f"tag must be one of {', '.join(TAGS)}, not {record.get('tag')!r}")
    prompt: Any = record.get("prompt")
    _require(isinstance(prompt, str) and bool(prompt.strip()), "prompt must be a text that is not empty")
    include: Any = record.get("include")
    exclude: Any = record.get("exclude", [])
    _require(isinstance(include, list), "include must be a list of clauses")
    _require(isinstance(exclude, list), "exclude must be a list of clauses")
    if record["tag"] == "text":
        _require(not include, "include must be empty where tag is 'text'")
        _validate_text(record.get("text"))
        return
    _require("text" not in record, f"text belongs to tag 'text', not {record['tag']!r}")
    _require(bool(include), "include must have at least one clause")
    for index, clause in enumerate(include):
        _validate_clause(clause, f"include[{index}]", {"class", "count", "color", "position"}, classes)
        _validate_position(clause, index)
    for index, clause in enumerate(exclude):
        _validate_clause(clause, f"exclude[{index}]", {"class", "count"}, classes)


def _validate_text(text: Any) -> None:
    _require(isinstance(text, str) and bool(text), "text must hold the characters of the sign")
    _require(set(text) <= set(CHARS), f"text may only use {''.join(CHARS)}, not {text!r}")


def _validate_clause(clause: Any, name: str, fields: set[str], classes: Sequence[str]) -> None:
    _require(isinstance(clause, dict), f"{name} must be a JSON object")
    unknown = sorted(set(clause) - fields)
    _require(not unknown, f"{name} has unknown field {', '.join(map(repr, unknown))}")
    cls, count = clause.get("class"), clause.get("count")
    _require(cls in classes, f"{name}.class must be one of {', '.join(classes)}, not {cls!r}")
    is_count = isinstance(count, int) and not isinstance(count, bool) and count >= 1
    _require(is_count, f"{name}.count must be a whole number of at least 1, not {count!r}")
    color = clause.get("color", COLORS[0])
    _require(color in COLORS, f"{name}.color must be one of {', '.join(COLORS)}, not {color!r}")


def _validate_position(clause: Record, index: int) -> None:
    if "position" not in clause:
        return
    name, position = f"include[{index}].position", clause["position"]
    pair = isinstance(position, list | tuple) and len(position) == 2
    _require(pair, f"{name} must be [relation, index of a clause], not {position!r}")
    relation, target = position
    _require(relation in RELATIONS, f"{name} must name one of {', '.join(RELATIONS)}, not {relation!r}")
    earlier = isinstance(target, int) and not isinstance(target, bool) and 0 <= target < index
    _require(earlier, f"{name} must point at an earlier clause, not {target!r}")


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise InputError(sentence)


def _check_choice(split: str, tag: str) -> None:
    _require(split in SPLITS, f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    _require(tag in TAGS, f"tag must be one of {', '.join(TAGS)}, not {tag!r}")
    none = (split, tag) == ("ood", "single_object")
    _require(not none, "single_object has no ood prompts: a lone object has no fact to hold out")


def _position_fact(mover: str, relation: str, target: str) -> Fact:
    """Make the fact of a position: 'a right of b' is 'b left of a'."""
    if relation in ("left of", "above"):
        return ("position", mover, relation, target)
    return ("position", target, INVERSE[relation], mover)


@cache
def _universe(split: str, tag: str) -> list[list[Record]]:
    """Every list of clauses that a split allows under a tag."""
    candidates = _beyond(tag) if split == "ood" and tag != "color_attr" else _usual(tag)
    return [clauses for clauses in candidates if _belongs(split, tag, clauses)]


def _belongs(split: str, tag: str, clauses: list[Record]) -> bool:
    n_held = sum(held_out(fact) for fact in facts({"tag": tag, "include": clauses}))
    if tag == "single_object":
        return True
    if tag == "color_attr":
        return n_held == {"train": 0, "test": 1, "ood": 2}[split]
    # Out of kind is enough: the facts of an ood prompt were all seen, only never in this shape.
    return (n_held > 0) == (split == "test")


def _usual(tag: str) -> Iterator[list[Record]]:
    """The kinds of prompt that train shows."""
    pairs = itertools.permutations(SHAPES, 2)
    match tag:
        case "single_object":
            yield from ([_clause(a)] for a in SHAPES)
        case "two_object":
            yield from ([_clause(a), _clause(b)] for a, b in pairs)
        case "counting":
            yield from ([_clause(a, count=n)] for a in SHAPES for n in NUMBERS)
        case "colors":
            yield from ([_clause(a, color=c)] for a in SHAPES for c in COLORS)
        case "position":
            yield from ([_clause(b), _clause(a, position=[rel, 0])] for a, b in pairs for rel in RELATIONS)
        case "color_attr":
            for (a, b), (c, d) in itertools.product(pairs, itertools.permutations(COLORS, 2)):
                yield [_clause(a, color=c), _clause(b, color=d)]


def _beyond(tag: str) -> Iterator[list[Record]]:
    """The kinds of prompt one step outside."""
    match tag:
        case "two_object":
            yield from ([_clause(a) for a in trio] for trio in itertools.permutations(SHAPES, 3))
        case "counting":
            yield from ([_clause(a, count=5)] for a in SHAPES)
        case "colors":
            yield from ([_clause(a, count=2, color=c)] for a in SHAPES for c in COLORS)
        case "position":
            pairs, colors = itertools.permutations(SHAPES, 2), itertools.permutations(COLORS, 2)
            for (a, b), rel, (c, d) in itertools.product(pairs, RELATIONS, colors):
                yield [_clause(b, color=d), _clause(a, color=c, position=[rel, 0])]


def _shuffled(split: str, tag: str, rng: np.random.Generator, size: int) -> Iterator[Record]:
    if tag == "text":
        while True:
            yield _sign(split, rng, size)
    universe = _universe(split, tag)
    for index in rng.permutation(len(universe)):
        yield _record(tag, universe[index])


def _sign(split: str, rng: np.random.Generator, size: int) -> Record:
    longest = 4 if size <= 32 else 8
    while True:
        length = longest + 1 if split == "ood" else int(rng.integers(3, longest + 1))
        text = "".join(CHARS[i] for i in rng.integers(0, len(CHARS), length))
        if held_out(("text", text)) == (split == "test"):
            return _text_record(text)


def _clause(cls: str, count: int = 1, color: str | None = None, position: list | None = None) -> Record:
    optional = {"color": color, "position": position}
    return {"class": cls, "count": count} | {key: value for key, value in optional.items() if value is not None}


def _record(tag: str, clauses: Sequence[Record]) -> Record:
    include = [_copy(clause) for clause in clauses]
    record = {"tag": tag, "include": include}
    if tag == "counting":
        record["exclude"] = [{"class": include[0]["class"], "count": include[0]["count"] + 1}]
    return record | {"prompt": f"a picture of {_phrase(include)}"}


def _copy(clause: Record) -> Record:
    return clause | {"position": list(clause["position"])} if "position" in clause else dict(clause)


def _text_record(text: str) -> Record:
    return {"tag": "text", "include": [], "text": text, "prompt": f'a sign that says "{text}"'}


def _phrase(clauses: list[Record]) -> str:
    """The mover of a position comes first in words and last in the record, as in GenEval."""
    if "position" in clauses[-1]:
        return f"{noun_phrase(clauses[1])} {clauses[1]['position'][0]} {noun_phrase(clauses[0])}"
    return " and ".join(noun_phrase(clause) for clause in clauses)
