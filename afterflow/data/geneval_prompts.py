"""Training prompts for real models: objects in GenEval's forms, and signs with a text."""

import hashlib
import logging
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Literal

import numpy as np

from ..envs.geneval_rules import OBJECTS
from ..envs.shapes.world import COLORS, RELATIONS
from ..sampling.seeds import number
from ..system.checks import check_at_least_one
from ..system.errors import ConfigError, InputError
from ..system.once import say_once
from .prompt_lists import locate_prompts
from .prompts import NO_CHECKS, PromptFile, RecordChecks, check_record

_log = logging.getLogger(__name__)

TASK_SHARES = {"position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1}
"""Shares of GenEval's tasks in Flow-GRPO's training prompts (arXiv:2505.05470)."""
COUNT_WORDS = {2: "two", 3: "three", 4: "four"}
MAX_REPEATS = 2000
"""Number of draws in a row without a new prompt, after which no more are looked for: new ones are rare, or there are
none."""


@dataclass(frozen=True)
class ObjectPrompts:
    """Prompts and records in GenEval's forms about COCO's objects, mixed as in Flow-GRPO."""

    split: Literal["train", "test"] = "train"
    """test has one of twenty prompts, and train has the others."""
    count: int = 50_000
    """Number of prompts, shared among the tasks; a task with fewer distinct prompts, such as counting, repeats them."""
    exclude: str | None = None
    """Path of GenEval's evaluation_metadata.jsonl, whose prompts are left out of training."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "count")

    def records(self, seed: int, checks: RecordChecks = NO_CHECKS) -> list[dict]:
        """Draw the records; InputError where a reward cannot judge one."""
        rng, excluded = np.random.default_rng(number(seed, "objects")), excluded_prompts(self.exclude)
        tags, shares = list(TASK_SHARES), np.array(list(TASK_SHARES.values()), np.float64)
        share = dict(zip(tags, np.round(self.count * shares / shares.sum()).astype(int)))
        share[tags[0]] += self.count - sum(share.values())
        of_tags = [
            distinct_records(partial(draw_object_record, tag, rng), count, self.split, excluded)
            for tag, count in share.items()
            if count
        ]
        records = [record for of_tag in of_tags for record in of_tag]
        for record in records:
            check_record(record, f"prompt {record['prompt']!r}", checks)
        return [records[i] for i in rng.permutation(len(records))]


def excluded_prompts(file: str | None) -> set[str]:
    """Read the prompts of a file of records; InputError where it cannot be read."""
    if file is None:
        return set()
    try:
        return {record["prompt"] for _, record in locate_prompts(file)}
    except InputError as error:
        raise InputError(f"data.exclude {file}: it is no file of records with prompts ({error})") from None


def split_of_prompt(prompt: str) -> str:
    """Return the split that a prompt belongs to, whatever the seed."""
    return "test" if hashlib.sha256(prompt.encode()).digest()[0] < 13 else "train"


def distinct_records(draw: Callable[[], dict], count: int, split: str, excluded: Container[str] = ()) -> list[dict]:
    """Draw `count` records of a split with distinct prompts, none in `excluded`; where fewer are found, repeat them.

    Raises InputError where no prompt is left.
    """
    records: dict[str, dict] = {}
    missed = 0
    while len(records) < count and missed < MAX_REPEATS:
        record = draw()
        prompt = record["prompt"]
        fresh = prompt not in records and prompt not in excluded and split_of_prompt(prompt) == split
        missed = 0 if fresh else missed + 1
        if fresh:
            records[prompt] = record
    if not records:
        raise InputError("data.exclude leaves no prompt of a kind; take a file with fewer")
    return list(islice(cycle(records.values()), count))


def draw_object_record(tag: str, rng: np.random.Generator) -> dict:
    """Draw one record of a task; in a position, the reference object comes first, as in GenEval."""
    pick_two = lambda names: [names[i] for i in rng.choice(len(names), 2, replace=False)]
    objects = pick_two(OBJECTS[1:] if tag in ("colors", "color_attr") else OBJECTS)  # people have no colour
    colors = pick_two(COLORS)
    one, two = ({"class": name, "count": 1} for name in objects)
    if tag == "counting":
        count = int(rng.integers(2, 5))
        prompt = f"{COUNT_WORDS[count]} {plural(objects[0])}"
        include = [one | {"count": count}]
        return geneval_record(tag, prompt, include) | {"exclude": [{"class": objects[0], "count": count + 1}]}
    if tag == "position":
        relation = RELATIONS[rng.integers(4)]
        prompt = f"{with_article(objects[1])} {relation} {with_article(objects[0])}"
        return geneval_record(tag, prompt, [one, two | {"position": [relation, 0]}])
    if tag == "colors":
        return geneval_record(tag, with_article(f"{colors[0]} {objects[0]}"), [one | {"color": colors[0]}])
    if tag == "color_attr":
        prompt = " and ".join(with_article(f"{color} {name}") for color, name in zip(colors, objects))
        return geneval_record(tag, prompt, [one | {"color": colors[0]}, two | {"color": colors[1]}])
    return geneval_record(tag, " and ".join(map(with_article, objects)), [one, two])


def geneval_record(tag: str, content: str, include: list[dict]) -> dict:
    """Make a record whose prompt asks for a photo of `content`."""
    return {"tag": tag, "include": include, "prompt": f"a photo of {content}"}


def plural(noun: str) -> str:
    """Return the plural of a noun as GenEval writes it: "es" after an s, else "s"."""
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def with_article(noun: str) -> str:
    """Put the indefinite article before a noun."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


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
    """Prompts of scenes with a sign, whose text of one to three words or a number stands in double quotes."""

    split: Literal["train", "test"] = "train"
    """test has one of twenty prompts, and train has the others."""
    count: int = 20_000
    """Number of prompts; where a split has fewer distinct ones, they are repeated, which is said."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "count")

    def records(self, seed: int, checks: RecordChecks = NO_CHECKS) -> list[dict]:
        """Draw the records; InputError where a reward cannot judge one."""
        rng = np.random.default_rng(number(seed, "signs"))
        records = distinct_records(partial(draw_sign_record, rng), self.count, self.split)
        if (distinct := len({record["prompt"] for record in records})) < self.count:
            message = f"of {self.count} signs of the {self.split} split {distinct} are distinct, and they are repeated"
            say_once(_log, message, message)
        for record in records:
            check_record(record, f"prompt {record['prompt']!r}", checks)
        return records


def draw_sign_record(rng: np.random.Generator) -> dict:
    """Draw one record of a scene with a sign."""
    any_of = lambda values: values[rng.integers(len(values))]
    first, second = any_of(FIRST_WORDS.split()), any_of(SECOND_WORDS.split())
    texts = (second, f"{first} {second}", f"The {first} {second}", f"{second} {rng.integers(1, 1000)}")
    quoted = f'"{any_of(texts)}"'
    return {"tag": "text", "prompt": any_of(SIGN_SCENES).format(quoted)}


@dataclass(frozen=True)
class MixedPrompts:
    """Prompts of several sources, shuffled."""

    parts: tuple[ObjectPrompts | SignPrompts | PromptFile, ...] = (ObjectPrompts(), SignPrompts())
    """Sources of the prompts."""

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError("parts is empty: name at least one kind of prompts")

    def records(self, seed: int, checks: RecordChecks = NO_CHECKS) -> list[dict]:
        """Return the records of all sources in random order; InputError where a reward cannot judge one."""
        records = [record for part in self.parts for record in part.records(seed, checks)]
        order = np.random.default_rng(number(seed, "mixed prompts")).permutation(len(records))
        return [records[i] for i in order]
