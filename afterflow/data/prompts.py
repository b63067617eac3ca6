"""Prompts to explore: records {"prompt": ..., ...} from a file or from the shapes world, and their order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Literal

import torch

from ..envs.shapes import prompts as shapes
from ..envs.shapes.world import SIZES, TAGS
from ..sampling.seeds import generator, number
from ..system.checks import check_at_least_one
from ..system.errors import ConfigError
from ..system.names import unknown_name
from .prompt_lists import NO_CHECKS, RecordChecks, check_record, locate_prompts


@dataclass(frozen=True)
class PromptFile:
    """A list of prompts: a file, a folder of files, or a data set of the hub (`prompt_lists.locate_prompts`)."""

    path: str
    """Path of a .txt, .jsonl, .csv or .json, of a folder of them, or owner/name[:split] of the hub."""
    tag: str | None = None
    """Tag of records that have none: the task by which a teacher or a turn is chosen."""

    def records(self, seed: int, checks: RecordChecks = NO_CHECKS) -> list[dict]:
        """Read the records; InputError with file and line where one cannot be used."""
        tagged = {} if self.tag is None else {"tag": self.tag}
        records = []
        for location, record in locate_prompts(self.path):
            records.append(tagged | record)
            check_record(records[-1], location, checks)
        return records


@dataclass(frozen=True)
class ShapesPrompts:
    """Prompts of the shapes world, drawn from one split of its facts."""

    split: Literal["train", "test", "ood"] = "train"
    """train leaves out some facts, test asks for those, ood asks for kinds of prompt that train does not have."""
    count: int = 1000
    """Number of prompts, shared evenly among the tags; a tag with fewer facts repeats its prompts."""
    tags: tuple[str, ...] = TAGS[1:6]
    """Kinds of prompt; Flow-GRPO trains without single_object too."""
    size: int = 32
    """Pixels of a side, 32 or 64; larger images hold longer signs."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "count")
        check_shapes_options(self.split, self.tags, self.size)

    def records(self, seed: int, checks: RecordChecks = NO_CHECKS) -> list[dict]:
        """Draw the prompts' records; no check is needed, because the world makes valid records only."""
        per_tag, draw_seed = -(-self.count // len(self.tags)), number(seed, "prompts") % 2**32
        distinct = [shapes.suite(self.split, per_tag, draw_seed, self.size, [tag]) for tag in self.tags]
        return [record for of_tag in distinct for record in islice(cycle(of_tag), per_tag)]


def check_shapes_options(split: str, tags: Sequence[str], size: int) -> None:
    """Raise ConfigError for options that the shapes world does not have."""
    if not tags:
        raise ConfigError("tags is empty: name at least one of " + ", ".join(TAGS))
    for tag in tags:
        if tag not in TAGS:
            raise unknown_name("tag", tag, TAGS)
        if (split, tag) == ("ood", "single_object"):
            raise ConfigError("tags: single_object has no ood prompts, because a lone object has no fact to vary")
    if size not in SIZES:
        raise ConfigError(f"size = {size}: the shapes world is drawn at {SIZES[0]} or {SIZES[1]} px")


def batch_rows(total: int, step: int, size: int, seed: int) -> torch.Tensor:
    """Return the rows that iteration `step` uses, (size,) long, of `total` examples.

    Every epoch is a fresh permutation and no example is left out; an iteration may span two epochs.
    """
    first = step * size
    epochs = range(first // total, (first + size - 1) // total + 1)
    order = torch.cat([torch.randperm(total, generator=generator(seed, "epoch", e)) for e in epochs])
    return order[first % total :][:size]


def bucket_rows(bucket_of: torch.Tensor, step: int, size: int, seed: int) -> torch.Tensor:
    """Return the rows that iteration `step` uses, (size,) long, all of one bucket.

    A bucket's turns are spread over an epoch by its share of the examples, and each turn goes on where its last ended.

    bucket_of: The bucket of each example, (N,) long.
    """
    total = len(bucket_of)
    order = [torch.randperm(total, generator=generator(seed, "bucket", e)) for e in range(step // total + 1)]
    turns = bucket_of[torch.cat(order)[: step + 1]]
    rows = (bucket_of == turns[-1]).nonzero().flatten()
    return rows[batch_rows(len(rows), int((turns[:-1] == turns[-1]).sum()), size, seed)]


def check_tag_schedule(records: Sequence[dict], tag_schedule: Mapping[str, int]) -> None:
    """Raise ConfigError for a scheduled tag that no prompt has, and for a prompt whose tag is not scheduled."""
    tags = {record.get("tag") for record in records}
    for tag in tag_schedule:
        if tag not in tags:
            raise ConfigError(f"tag_schedule: no prompt has the tag {tag!r}")
    for record in records if tag_schedule else ():
        if record.get("tag") not in tag_schedule:
            raise ConfigError(
                f"tag_schedule: the tag {record.get('tag')!r} of prompt {record['prompt']!r} never has its turn"
            )


def prompt_rows(
    records: Sequence[dict], tag_schedule: Mapping[str, int], step: int, size: int, seed: int
) -> torch.Tensor:
    """Return the rows of the prompts that iteration `step` uses, (size,) long.

    Args:
        records: Records of all prompts.
        tag_schedule: Number of successive iterations of every tag; empty means that iterations use all prompts.
        step: Number of the iteration.
        size: Number of prompts of an iteration.
        seed: Seed of the run.
    """
    if not tag_schedule:
        return batch_rows(len(records), step, size, seed)
    order = [tag for tag, count in tag_schedule.items() for _ in range(count)]
    tag = order[step % len(order)]
    tag_rows = torch.tensor([i for i, record in enumerate(records) if record.get("tag") == tag])
    turn = step // len(order) * tag_schedule[tag] + order[: step % len(order)].count(tag)
    return tag_rows[batch_rows(len(tag_rows), turn, size, seed)]
