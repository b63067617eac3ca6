"""Suites of prompts for real models: drawn into a folder, scored by rewards, compared prompt by prompt.

    score(tag) = mean over its prompts of the mean over a prompt's pictures
    overall    = unweighted mean of score(tag), as GenEval has it

Intervals are as in `report`.  A picture without a score is left out of its prompt's mean and counted, and a prompt
without any is left out for both models.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..data.geneval_prompts import SignPrompts
from ..data.prompt_lists import DEFAULT_TAG, read_prompts
from ..data.prompts import check_record
from ..envs.shapes.moving import MOVING_TAGS, moving_suite
from ..experiment.intervals import written
from ..models.base import Model
from ..models.generate import decoded, encoded, finished_in_parts
from ..models.wrappers import guided, in_chunks
from ..rewards.base import RewardModels
from ..rewards.grouped import score_groups
from ..rewards.registry import find_reward
from ..system.atomic_files import write_text_atomically
from . import image_store as gallery
from .shapes_report import Comparison, Judged, brief, compare

PART = 16
"""Prompts whose pictures are scored at once."""


@dataclass(frozen=True)
class Suite:
    rewards: tuple[str, ...]
    """What it is judged by, unless other rewards are named."""
    source: str
    """Where its prompts are published: what --prompts-from should name."""
    own: Callable[[int], list[dict]] | None = None
    """Ours, so many of them, where none are named."""
    parts: bool = False
    """Whether what a score is made of is told as well."""


SUITES: Mapping[str, Suite] = {
    "geneval": Suite(
        ("geneval_hf_official", "geneval_hf_strict"), "evaluation_metadata.jsonl of github.com/djghosh13/geneval"
    ),
    "ocr": Suite(
        ("ocr",),
        "dataset/ocr/test.txt of github.com/yifan123/flow_grpo",
        lambda many: SignPrompts("test", many).records(0),
    ),
    "drawbench": Suite(
        ("pickscore", "hpsv2", "image_reward", "clipscore"),
        "DrawBench's prompts as .csv or .txt, or a data set of the hub such as sayakpaul/drawbench",
    ),
    "hpd": Suite(
        ("hpsv2",), "a folder with HPD's four lists: anime.json, concept-art.json, paintings.json, photo.json"
    ),
    "unigen": Suite(("vlm_points",), "data/test_prompts_en.csv of github.com/CodeGoat24/UniGenBench", parts=True),
    "video": Suite(
        ("moving_strict", "moving_partial", "moving_smoothness"),
        "a list of prompts for clips",
        lambda many: moving_suite("test", -(-many // len(MOVING_TAGS)), 0, MOVING_TAGS),
    ),
}


@dataclass(frozen=True)
class Drawing:
    """How a suite is drawn."""

    images: int = 4
    """Pictures, or clips, of each prompt."""
    steps: int = 40
    """ODE steps."""
    guidance: float | None = None
    """Scale of classifier-free guidance, 1 is without; None: what MODEL's LoRA was trained with, or else what is usual
    for its family (FLUX.1-dev, which is told its scale, takes 1)."""
    seed: int = 0
    """Of the starting noise, so that two models can be compared picture by picture."""
    chunk: int = 16
    """Pictures of one forward pass; guidance doubles them."""

    def __post_init__(self) -> None:
        for name in ("images", "steps", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 1")


@dataclass(frozen=True)
class Found:
    """What a suite says of a model, beside another if there is one."""

    suite: str
    model: str
    against: str | None
    images: int
    prompts: Mapping[str, int]
    """Tag → how many."""
    overall: Mapping[str, Comparison]
    """Reward → mean of its tag means."""
    tags: Mapping[str, Mapping[str, Comparison]]
    """Tag → reward → score."""
    invalid: Mapping[str, int]
    """Reward → pictures that it could not score, of both models together."""
    distances: Mapping[str, float] = field(default_factory=dict)
    """Of the pictures to others, by features of CLIP; see `distances`."""


def suite_records(suite: str, prompts_from: str | None, prompts: int | None) -> list[dict]:
    """The records of a suite, at most `prompts` of them and then as many of each tag; ValueError where none are had."""
    own = SUITES[suite].own
    if prompts_from is None:
        if own is None:
            raise ValueError(f"--suite {suite} needs --prompts-from: {SUITES[suite].source}")
        return own(prompts or 300)[:prompts]
    records = read_prompts(prompts_from)
    return records if prompts is None else evenly(records, prompts)


def evenly(records: Sequence[dict], many: int) -> list[dict]:
    """The first of every tag in turn, in their own order."""
    seen: dict[str, int] = {}
    turn = []
    for i, record in enumerate(records):
        turn.append((seen.get(record["tag"], 0), i))
        seen[record["tag"]] = turn[-1][0] + 1
    return [records[i] for i in sorted(i for _, i in sorted(turn)[:many])]


def check_records(records: Sequence[dict], rewards: Sequence[str]) -> None:
    """ValueError for a record that a reward could not judge."""
    asked = {name: known.needs for name in rewards if (known := find_reward(name)).needs is not None}
    for record in records:
        check_record(record, f"prompt {record['prompt']!r}", asked)


def draw_suite(
    model: Model, records: Sequence[dict], drawing: Drawing, folder: Path, say: Callable[[str], None]
) -> None:
    """Draw what the folder lacks; noise depends on the seed and the place of a prompt, so stops leave no trace."""
    places = gallery.missing(folder, len(records))
    assert drawing.guidance is not None
    cond, d = encoded(model, records), drawing
    velocity = in_chunks(guided(model.velocity(model.module), drawing.guidance, model.combine), d.chunk)
    done = len(records) - len(places)
    for rows in torch.tensor(places).split(max(1, d.chunk // d.images)):
        latents = finished_in_parts(velocity, model, cond[rows], d.images, d.steps, d.seed, d.chunk)
        for place, images in zip(rows.tolist(), decoded(model, latents)):
            gallery.add(folder, place, records[place], images)
        done += len(rows)
        say(f"{folder}: {done} of {len(records)} prompts")


def scores(
    folder: Path,
    records: Sequence[dict],
    rewards: Sequence[str],
    models: RewardModels,
    say: Callable[[str], None],
    parts: bool = False,
) -> dict[str, np.ndarray]:
    """Reward → (P, K) of the pictures in the folder, NaN without a score.

    Scores are kept there by the content of the pictures and of their record, and asked for only once; those that could
    not be had are asked for again.  parts: also what scores are made of, as reward/part.
    """
    file, digests = folder / "scores.json", [gallery.digest(*each) for each in zip(gallery.prompts(folder), records)]
    kept: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    keys = {name: f"{name} {find_reward(name).version} {models!r}" for name in rewards}
    for places in in_parts(len(records)):  # part by part, so that what detects objects does it once for all rewards
        for name, key in keys.items():
            known = kept.setdefault(key, {})
            asked = [place for place in places if None in known.get(digests[place], {}).get(name, [None])]
            if asked:
                known |= asked_of(name, folder, asked, records, models, [digests[place] for place in asked], say)
                write_text_atomically(file, json.dumps(kept) + "\n")
    told = {name: [kept[key][digest] for digest in digests] for name, key in keys.items()}
    found = {name: rows_of(name, rows) for name, rows in told.items()}
    if parts:
        columns = {column: rows for name, rows in told.items() for row in rows for column in row if column != name}
        found |= {column: rows_of(column, rows) for column, rows in columns.items()}
    return found


def in_parts(prompts: int) -> list[range]:
    return [range(first, min(first + PART, prompts)) for first in range(0, prompts, PART)]


def asked_of(
    name: str,
    folder: Path,
    places: Sequence[int],
    records: Sequence[dict],
    models: RewardModels,
    digests: Sequence[str],
    say: Callable[[str], None],
) -> dict[str, dict[str, list[float | None]]]:
    """Digest → the reward of a prompt's K pictures, and its parts."""
    answer = score_groups(name, gallery.together(folder, places), [records[i] for i in places], models)
    if answer.failures:
        say(f"{len(answer.failures)} pictures have no {name}, first {answer.failures[0]}")
    columns = {name: answer.values} | {f"{name}/{part}": value for part, value in answer.parts.items()}
    row = lambda values: [None if math.isnan(value) else value for value in values.tolist()]
    return {digest: {c: row(x[i]) for c, x in columns.items()} for i, digest in enumerate(digests)}


def rows_of(column: str, rows: Sequence[Mapping[str, list[float | None]]]) -> np.ndarray:
    """(P, K), NaN where a prompt has no such figure."""
    images = max(len(value) for row in rows for value in row.values())
    nothing: list[float | None] = [None] * images
    return np.array([[np.nan if v is None else v for v in row.get(column, nothing)] for row in rows])


def suite_report(
    suite: str,
    records: Sequence[dict],
    tuned: Mapping[str, np.ndarray],
    base: Mapping[str, np.ndarray] | None,
    named: tuple[str, str | None],
    seed: int,
    draws: int,
) -> Found:
    """Scores (P, K) of the same P records → means and deltas with intervals; ValueError where nothing was scored."""
    tags = list(dict.fromkeys(record["tag"] for record in records))
    of = {tag: np.array([i for i, record in enumerate(records) if record["tag"] == tag]) for tag in tags}
    overall, by_tag = {}, {tag: {} for tag in tags}
    for name, values in tuned.items():
        mine, other = mean_of(values), None if base is None else mean_of(base[name])
        known = np.isfinite(mine if other is None else mine + other)
        strata = {tag: rows[known[rows]] for tag, rows in of.items() if known[rows].any()}
        if not strata:
            raise ValueError(f"{name} scored no picture; ask it about one of them to see why")
        for tag, rows in strata.items():
            by_tag[tag][name] = of_prompts(mine, other, [rows], draws, seed)
        overall[name] = of_prompts(mine, other, list(strata.values()), draws, seed)
    both = [tuned] if base is None else [tuned, base]
    invalid = {name: int(sum(np.isnan(each[name]).sum() for each in both)) for name in tuned if "/" not in name}
    images = next(iter(tuned.values())).shape[1]
    return Found(suite, *named, images, {tag: len(rows) for tag, rows in of.items()}, overall, by_tag, invalid)


def of_prompts(
    mine: np.ndarray, other: np.ndarray | None, strata: Sequence[np.ndarray], draws: int, seed: int
) -> Comparison:
    """Scores (P,) of prompts, over those in the strata."""
    judged = [None if each is None else Judged({"it": each}, np.empty(0), 0.0) for each in (mine, other)]
    assert judged[0] is not None
    return compare(judged[0], judged[1], strata, draws, np.random.default_rng(seed))["it"]


def mean_of(values: np.ndarray) -> np.ndarray:
    """(P, K) → (P,), the mean of those that are known; NaN where none is."""
    known = np.isfinite(values)
    return np.where(known, values, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)


def rendered(found: Found, draws: int) -> Group:
    """For a terminal."""
    names = [f"tuned  {found.model}", f"base   {found.against}"] if found.against is not None else [found.model]
    table = Table(box=box.SIMPLE)
    table.add_column("")
    for column in ("base", "tuned", "delta") if found.against is not None else ("score",):
        table.add_column(column, justify="right")
    for name, each in found.overall.items():
        cells = (each.tuned,) if each.base is None else (each.base, each.tuned, each.delta)
        table.add_row(name, *(written(cell, "+" if cell is each.delta else "") for cell in cells))
    parts: list[str | Table] = [f"{found.suite}: mean over {len(found.tags)} tags", *names, table]
    if list(found.tags) != [DEFAULT_TAG]:
        parts.append(tag_table(found))
    parts.append(f"{found.images} pictures a prompt. In brackets: 95 % of {draws} bootstrap draws of prompts.")
    parts += [f"{name} could not score {many} pictures." for name, many in found.invalid.items() if many]
    parts += [f"{name} {value:.4g}" for name, value in found.distances.items()]
    return Group(*(Text(part) if isinstance(part, str) else part for part in parts))


def tag_table(found: Found) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column("base→tuned" if found.against is not None else "")
    for column in ("prompts", *found.overall):
        table.add_column(column, justify="right")
    for tag, each in found.tags.items():
        cells = [brief(each[name]) if name in each else "" for name in found.overall]
        table.add_row(tag, str(found.prompts[tag]), *cells)
    return table
