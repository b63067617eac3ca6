"""Training prompts for real models: objects in GenEval's forms, and signs to spell."""

import hashlib
import json
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

import numpy as np

from ..envs.geneval_rules import OBJECTS
from ..envs.shapes.world import COLORS, RELATIONS
from ..sampling.seeds import number
from .prompts import NO_CHECKS, PromptFile, RecordChecks, check_record

TASK_SHARES = {"position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1}
"""Flow-GRPO's shares of GenEval's tasks (arXiv:2505.05470)."""
COUNT_WORDS = {2: "two", 3: "three", 4: "four"}
MAX_REPEATS = 2000
"""Draws in a row that bring nothing new, after which all prompts of a kind have been seen."""


@dataclass(frozen=True)
class ObjectPrompts:
    """Prompts and records of GenEval's forms about COCO's objects, mixed as Flow-GRPO mixes them."""

    split: Literal["train", "test"] = "train"
    """test has one prompt of twenty, which train never has."""
    count: int = 50_000
    """Shared among the tasks; one that has fewer different prompts, as counting has, repeats them."""
    exclude: str | None = None
    """GenEval's evaluation_metadata.jsonl: what is asked there is never trained on."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count = {self.count}: at least 1")

    def records(self, seed: int, needs: RecordChecks = NO_CHECKS) -> list[dict]:
        """ValueError where a reward cannot judge them."""
        rng, kept = np.random.default_rng(number(seed, "objects")), excluded_prompts(self.exclude)
        tags, shares = list(TASK_SHARES), np.array(list(TASK_SHARES.values()), np.float64)
        share = dict(zip(tags, np.round(self.count * shares / shares.sum()).astype(int)))
        share[tags[0]] += self.count - sum(share.values())
        of_tags = [
            distinct_records(partial(draw_object_record, tag, rng), many, self.split, kept)
            for tag, many in share.items()
            if many
        ]
        records = [record for of_tag in of_tags for record in of_tag]
        for record in records:
            check_record(record, f"prompt {record['prompt']!r}", needs)
        return [records[i] for i in rng.permutation(len(records))]


def excluded_prompts(file: str | None) -> set[str]:
    """The prompts of a file of records; ValueError where it cannot be read."""
    if file is None:
        return set()
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        return {json.loads(line)["prompt"] for line in lines if line.strip()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"data.exclude {file}: it is no file of records with prompts ({error})") from None


def split_of_prompt(prompt: str) -> str:
    """Which of the splits has it, whatever the seed."""
    return "test" if hashlib.sha256(prompt.encode()).digest()[0] < 13 else "train"


def distinct_records(draw: Callable[[], dict], count: int, split: str, never: Container[str] = ()) -> list[dict]:
    """So many of a split with different prompts, none of them in `never`; where there are fewer, they come again."""
    found: dict[str, dict] = {}
    missed = 0
    while len(found) < count and missed < MAX_REPEATS:
        record = draw()
        prompt = record["prompt"]
        fresh = prompt not in found and prompt not in never and split_of_prompt(prompt) == split
        missed = 0 if fresh else missed + 1
        if fresh:
            found[prompt] = record
    if not found:
        raise ValueError("data.exclude leaves no prompt of a kind; take one with fewer")
    return list(islice(cycle(found.values()), count))


def draw_object_record(tag: str, rng: np.random.Generator) -> dict:
    """One record.  Of a position the object that the other stands by comes first, as in GenEval."""
    pick = lambda known, many: [known[i] for i in rng.choice(len(known), many, replace=False)]
    things = pick(OBJECTS[1:] if tag in ("colors", "color_attr") else OBJECTS, 2)  # people have no colour
    hues = pick(COLORS, 2)
    one, two = ({"class": thing, "count": 1} for thing in things)
    if tag == "counting":
        many = int(rng.integers(2, 5))
        prompt = f"{COUNT_WORDS[many]} {things[0]}s"
        include = [one | {"count": many}]
        return geneval_record(tag, prompt, include) | {"exclude": [{"class": things[0], "count": many + 1}]}
    if tag == "position":
        relation = RELATIONS[rng.integers(4)]
        prompt = f"{with_article(things[1])} {relation} {with_article(things[0])}"
        return geneval_record(tag, prompt, [one, two | {"position": [relation, 0]}])
    if tag == "colors":
        return geneval_record(tag, with_article(f"{hues[0]} {things[0]}"), [one | {"color": hues[0]}])
    if tag == "color_attr":
        prompt = " and ".join(with_article(f"{hue} {thing}") for hue, thing in zip(hues, things))
        return geneval_record(tag, prompt, [one | {"color": hues[0]}, two | {"color": hues[1]}])
    return geneval_record(tag, " and ".join(map(with_article, things)), [one, two])


def geneval_record(tag: str, what: str, include: list[dict]) -> dict:
    return {"tag": tag, "include": include, "prompt": f"a photo of {what}"}


def with_article(thing: str) -> str:
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


SIGN_SCENES = (
    *("a shop window with {} painted on the glass", "a wooden board that says {} beside a country road"),
    *("a neon sign glowing {} above a bar at night", "a train station clock with {} written below it"),
    *("a coffee mug printed with {} on a kitchen table", "a birthday cake with {} in icing"),
    *("a chalkboard in a cafe that reads {}", "a hot air balloon with {} across its side"),
    *("a newspaper whose headline is {}", "a book on a shelf with the title {} on its spine"),
    *("a rainy street with a billboard saying {}", "a football scarf knitted with {}"),
    *("a spaceship with {} stencilled on the hull", "a robot holding a card with {} on it"),
    *("sand on a beach in which somebody wrote {}", "a museum ticket that shows {}"),
)
FIRST_WORDS = (
    "Golden Silent Broken Electric Hidden Northern Velvet Paper Little Grand Crimson Winter Lucky Ocean Marble Quiet "
    "Distant Royal Copper Wild"
)
SECOND_WORDS = (
    "Harbour Lantern Orchard Bakery Compass Theatre Garden Express Window Mountain Carnival Library Rocket Kitchen "
    "Bridge Market Island Studio Parade Museum"
)


@dataclass(frozen=True)
class SignPrompts:
    """Scenes with a text in double quotes to be spelt, one to three words or a number."""

    split: Literal["train", "test"] = "train"
    """test has one prompt of twenty, which train never has."""
    count: int = 20_000
    """All different."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count = {self.count}: at least 1")

    def records(self, seed: int, needs: RecordChecks = NO_CHECKS) -> list[dict]:
        rng = np.random.default_rng(number(seed, "signs"))
        records = distinct_records(partial(draw_sign_record, rng), self.count, self.split)
        for each in records:
            check_record(each, f"prompt {each['prompt']!r}", needs)
        return records


def draw_sign_record(rng: np.random.Generator) -> dict:
    any_of = lambda known: known[rng.integers(len(known))]
    first, second = any_of(FIRST_WORDS.split()), any_of(SECOND_WORDS.split())
    texts = (second, f"{first} {second}", f"The {first} {second}", f"{second} {rng.integers(1, 1000)}")
    quoted = f'"{any_of(texts)}"'
    return {"tag": "text", "prompt": any_of(SIGN_SCENES).format(quoted)}


@dataclass(frozen=True)
class MixedPrompts:
    """Prompts of several kinds, shuffled."""

    parts: tuple[ObjectPrompts | SignPrompts | PromptFile, ...] = (ObjectPrompts(), SignPrompts())
    """Where they come from."""

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts is empty: name at least one kind of prompts")

    def records(self, seed: int, needs: RecordChecks = NO_CHECKS) -> list[dict]:
        records = [record for part in self.parts for record in part.records(seed, needs)]
        order = np.random.default_rng(number(seed, "mixed prompts")).permutation(len(records))
        return [records[i] for i in order]
