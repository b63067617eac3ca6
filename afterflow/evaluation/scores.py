"""Rewards of a set of images, kept beside the images so that each is computed once."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..data.prompt_lists import check_record
from ..experiment.contents import reward_contents
from ..rewards.base import RewardModels
from ..rewards.grouped import score_groups
from ..rewards.registry import find_reward, needs_of
from ..system.atomic_files import write_text_atomically
from ..system.errors import InputError
from ..system.text_files import read_json
from .image_set import ImageSet
from .image_store import content_digest, prompt_folders, read_prompts_together, sample_files

SCORED_TOGETHER = 16
"""Number of prompts whose images are scored at once."""

ScoreRow = Mapping[str, list[float | None]]
"""Reward, or reward/part → scores of the K images of a prompt; None where there is no score."""


class ScoreCache:
    """The scores in a folder's scores.json, by reward and by the digest of a prompt's images and record."""

    def __init__(self, folder: Path, models: RewardModels) -> None:
        self.file, self.models = folder / "scores.json", models
        self.rows: dict[str, dict[str, ScoreRow]] = {}
        self.keys: dict[str, str] = {}
        """Reward → the name of its rows, with its contents as they were when this began."""
        if self.file.is_file():
            self.rows = read_json(self.file)

    def rows_of(self, reward: str) -> dict[str, ScoreRow]:
        """Return digest → row of a reward, of its present version, code and models."""
        if reward not in self.keys:
            self.keys[reward] = f"{reward} {reward_contents(reward, self.models)} {self.models!r}"
        return self.rows.setdefault(self.keys[reward], {})

    def get(self, reward: str, digests: Sequence[str]) -> list[ScoreRow]:
        """Return the rows with these digests; KeyError where one is not there."""
        rows = self.rows_of(reward)
        return [rows[digest] for digest in digests]

    def missing(self, reward: str, digests: Sequence[str]) -> list[int]:
        """Return the positions of the digests with an image that has no score yet."""
        rows = self.rows_of(reward)
        return [i for i, digest in enumerate(digests) if None in rows.get(digest, {}).get(reward, [None])]

    def put(self, reward: str, rows: Mapping[str, ScoreRow]) -> None:
        """Add rows by digest, and write the file."""
        self.rows_of(reward).update(rows)
        write_text_atomically(self.file, json.dumps(self.rows) + "\n")


def score_images(
    images: ImageSet,
    rewards: Sequence[str],
    models: RewardModels,
    log: Callable[[str], None],
    parts: bool = False,
) -> dict[str, np.ndarray]:
    """Score images (P, K): reward → (P, K), NaN without a score.

    A score that could not be computed is tried again by the next call.

    Args:
        images: The images, which are drawn already.
        rewards: Names of the rewards.
        models: Where rewards that are networks run.
        log: Writes a line about images that a reward cannot score.
        parts: Whether the parts of a score are returned as well, as reward/part.
    """
    cache = ScoreCache(images.folder, models)
    check_as_many(images.folder)
    digests = content_digests(images)
    # Some prompts at a time, so that a detector looks at an image once for all its rewards.
    for first in range(0, len(digests), SCORED_TOGETHER):
        for reward in rewards:
            missing = cache.missing(reward, digests[first : first + SCORED_TOGETHER])
            if missing:
                indices = [first + i for i in missing]
                rows = compute_scores(images, indices, reward, models, log)
                cache.put(reward, dict(zip((digests[i] for i in indices), rows)))
    by_reward = {reward: cache.get(reward, digests) for reward in rewards}
    columns = dict(by_reward)
    if parts:
        columns |= {name: rows for rows in by_reward.values() for row in rows for name in row if "/" in name}
    return {name: score_matrix(name, rows) for name, rows in columns.items()}


def content_digests(images: ImageSet) -> list[str]:
    """Return the digest of every prompt's record and images."""
    folders = prompt_folders(images.folder)
    return [content_digest(folder, record) for folder, record in zip(folders, images.records)]


def check_as_many(folder: Path) -> None:
    """Raise InputError where the prompts of a folder have different numbers of pictures."""
    counts = {len(sample_files(prompt_dir)): prompt_dir for prompt_dir in prompt_folders(folder)}
    if len(counts) > 1:
        (few, one), (many, other) = min(counts.items()), max(counts.items())
        raise InputError(f"{one} has {few} pictures and {other} has {many}; give every prompt as many")


def blind_rewards(sets: Sequence[ImageSet], rewards: Sequence[str], models: RewardModels) -> list[str]:
    """Return a sentence for each reward that saw nothing in any image of the sets, all of which are scored."""
    seeing = {name: part for name in rewards if (part := find_reward(name).sees) is not None}
    caches = [(ScoreCache(images.folder, models), content_digests(images)) for images in sets] if seeing else []
    sentences = []
    for name, part in seeing.items():
        counts: list[float] = []
        for cache, digests in caches:
            rows = cache.get(name, digests)
            counts += [count for row in rows for count in row.get(f"{name}/{part}", ()) if count is not None]
        if counts and not any(counts):
            sentences.append(
                f"{name} is blind here: it has no {part} in any of {len(counts)} pictures, so its figures say nothing"
            )
    return sentences


def compute_scores(
    images: ImageSet, indices: Sequence[int], reward: str, models: RewardModels, log: Callable[[str], None]
) -> list[ScoreRow]:
    """Score the images of the prompts with these indices, a row for each prompt.

    Args:
        images: The images.
        indices: Indices of the prompts.
        reward: Name of the reward.
        models: Where rewards that are networks run.
        log: Writes a line about images without a score.
    """
    scored = score_groups(
        reward, read_prompts_together(images.folder, indices), [images.records[i] for i in indices], models
    )
    if scored.failures:
        log(f"{len(scored.failures)} pictures have no {reward}, first {scored.failures[0]}")
    columns = {reward: scored.values} | {f"{reward}/{part}": values for part, values in scored.parts.items()}
    return [{name: without_nan(values[i].tolist()) for name, values in columns.items()} for i in range(len(indices))]


def without_nan(scores: Sequence[float]) -> list[float | None]:
    """Replace NaN, which JSON lacks, by None."""
    return [None if math.isnan(score) else score for score in scores]


def score_matrix(name: str, rows: Sequence[ScoreRow]) -> np.ndarray:
    """Gather the column `name` of the rows as (P, K), NaN where a prompt has no such score."""
    images = max(len(scores) for row in rows for scores in row.values())
    nothing: list[float | None] = [None] * images
    return np.array([[np.nan if v is None else v for v in row.get(name, nothing)] for row in rows])


def check_scorable(records: Sequence[dict], rewards: Sequence[str], models: RewardModels) -> None:
    """Check that the rewards can judge the records; ValueError names a prompt that one cannot judge."""
    checks = needs_of(rewards, models)
    for record in records:
        check_record(record, f"prompt {record['prompt']!r}", checks)
