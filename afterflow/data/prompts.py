"""Prompts to explore: records {"prompt": ..., ...} from a file or from the shapes world."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch

from ..envs.shapes import prompts as shapes
from ..envs.shapes.world import SIZES, TAGS
from ..sampling.seeds import generator, number
from ..system.names import unknown_name

# Reward → what it asks of a record: ValueError with one sentence.
RecordChecks = Mapping[str, Callable[[dict], None]]
NO_CHECKS: RecordChecks = MappingProxyType({})


@dataclass(frozen=True)
class PromptFile:
    """One prompt per line (.txt), or one JSON object per line with a "prompt" (.jsonl, GenEval's schema)."""

    path: str
    """The file."""
    tag: str | None = None
    """Of records that have none of their own: the task that a teacher or a turn is chosen by."""

    def records(self, seed: int, needs: RecordChecks = NO_CHECKS) -> list[dict]:
        """ValueError with file and line where a record cannot be used."""
        file = Path(self.path)
        if not file.is_file():
            raise ValueError(f"prompts {self.path}: no such file")
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"prompts {self.path}: not UTF-8 at byte {error.start}") from None
        parse = parse_json_line if file.suffix == ".jsonl" else parse_text_line
        records = []
        for place, line in enumerate(lines, 1):
            if line.strip():
                tagged = {} if self.tag is None else {"tag": self.tag}
                records.append(tagged | parse(line, f"{self.path}:{place}"))
                check_record(records[-1], f"{self.path}:{place}", needs)
        if not records:
            raise ValueError(f"prompts {self.path}: the file is empty; write one prompt per line")
        return records


def check_record(record: dict, place: str, needs: RecordChecks) -> None:
    """ValueError with the place of a record that a reward could not judge."""
    for reward, validate in needs.items():
        try:
            validate(record)
        except ValueError as error:
            raise ValueError(f"{place}: {error}; {reward} needs that of every record") from None


def parse_text_line(line: str, place: str) -> dict:
    return {"prompt": line.strip()}


def parse_json_line(line: str, place: str) -> dict:
    """A record of a .jsonl line."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str) or not record["prompt"].strip():
        raise ValueError(f'{place}: a record needs a "prompt" that is a text')
    return record


@dataclass(frozen=True)
class ShapesPrompts:
    """Prompts of the shapes world, drawn from one split of its facts."""

    split: Literal["train", "test", "ood"] = "train"
    """train holds back some facts, test asks for those, ood goes one step outside of the kinds train shows."""
    count: int = 1000
    """Shared evenly among the tags; a tag that has fewer facts repeats its prompts, so that all are trained alike."""
    tags: tuple[str, ...] = TAGS[1:6]
    """Flow-GRPO trains without single_object too."""
    size: int = 32
    """Pixels; larger pictures hold longer signs."""

    def __post_init__(self) -> None:
        check_shapes_options(self.count, self.split, self.tags, self.size)

    def records(self, seed: int, needs: RecordChecks = NO_CHECKS) -> list[dict]:
        per_tag, draw = -(-self.count // len(self.tags)), number(seed, "prompts") % 2**32
        distinct = [shapes.suite(self.split, per_tag, draw, self.size, [tag]) for tag in self.tags]
        return [record for of_tag in distinct for record in islice(cycle(of_tag), per_tag)]


def check_shapes_options(count: int, split: str, tags: Sequence[str], size: int) -> None:
    """ValueError for what the shapes world does not have."""
    if count < 1:
        raise ValueError(f"count = {count}: at least 1")
    if not tags:
        raise ValueError("tags is empty: name at least one of " + ", ".join(TAGS))
    for tag in tags:
        if tag not in TAGS:
            raise unknown_name("tag", tag, TAGS)
        if (split, tag) == ("ood", "single_object"):
            raise ValueError("tags: single_object has no ood prompts, because a lone object has no fact to vary")
    if size not in SIZES:
        raise ValueError(f"size = {size}: the shapes world is drawn at {SIZES[0]} or {SIZES[1]} px")


def batch_rows(total: int, step: int, size: int, seed: int) -> torch.Tensor:
    """(size,) long: which of `total` examples iteration `step` takes.

    Every epoch is a fresh permutation and no example is left out; an iteration may span two epochs.
    """
    first = step * size
    epochs = range(first // total, (first + size - 1) // total + 1)
    order = torch.cat([torch.randperm(total, generator=generator(seed, "epoch", e)) for e in epochs])
    return order[first % total :][:size]


def check_turns(records: Sequence[dict], turns: Mapping[str, int]) -> None:
    """ValueError for a tag that no prompt has, and for prompts whose turn never comes."""
    tags = {record.get("tag") for record in records}
    for tag in turns:
        if tag not in tags:
            raise ValueError(f"turns: no prompt has the tag {tag!r}")
    for record in records if turns else ():
        if record.get("tag") not in turns:
            raise ValueError(f"turns: the tag {record.get('tag')!r} of prompt {record['prompt']!r} never has its turn")


def prompt_rows(records: Sequence[dict], turns: Mapping[str, int], step: int, size: int, seed: int) -> torch.Tensor:
    """(size,) long: which prompts iteration `step` takes, of all, or of the tag whose turn it is."""
    if not turns:
        return batch_rows(len(records), step, size, seed)
    order = [tag for tag, many in turns.items() for _ in range(many)]
    tag = order[step % len(order)]
    mine = torch.tensor([i for i, record in enumerate(records) if record.get("tag") == tag])
    before = step // len(order) * turns[tag] + order[: step % len(order)].count(tag)
    return mine[batch_rows(len(mine), before, size, seed)]
