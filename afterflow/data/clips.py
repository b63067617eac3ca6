"""The moving world as data: prompts to explore, and clips to learn from."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from ..envs.shapes.moving import MOVING_TAGS, draw_moving, moving_suite, render_clip
from ..envs.shapes.world import world_size
from ..sampling.seeds import number
from ..system.names import unknown_name
from .images import CaptionedImage, ImageSource
from .prompts import NO_CHECKS, RecordChecks


@dataclass(frozen=True)
class MovingPrompts:
    """Prompts of the moving world, drawn from one split of its facts."""

    split: Literal["train", "test"] = "train"
    """train holds back some directions of some classes, test asks for those."""
    count: int = 600
    """Shared evenly among the tags."""
    tags: tuple[str, ...] = MOVING_TAGS
    """move_one: an object; move_count: two alike; move_two: two objects, each its own way."""

    def __post_init__(self) -> None:
        check_moving_options(self.count, self.tags)

    def records(self, seed: int, needs: RecordChecks = NO_CHECKS) -> list[dict]:
        per_tag = -(-self.count // len(self.tags))
        return moving_suite(self.split, per_tag, number(seed, "moving prompts") % 2**32, self.tags)


@dataclass(frozen=True)
class MovingClips(ImageSource):
    """Rendered clips of the moving world."""

    count: int = 10_000
    """Clips rendered before training starts."""
    frames: int = 9
    """Of each; the model's own number."""
    split: Literal["train", "test"] = "train"
    """Which directions of which classes they show."""
    tags: tuple[str, ...] = MOVING_TAGS
    """Kinds of prompt in turn."""
    min_reward: Mapping[str, float] = field(default_factory=dict)
    """Rewards that a clip must reach, or it is not learnt from."""
    cache: bool = False
    """Whether latents are kept on disk for the next run; rendering takes longer than encoding."""

    def __post_init__(self) -> None:
        check_moving_options(self.count, self.tags)
        if self.frames < 1:
            raise ValueError(f"frames = {self.frames}: at least 1")

    def pictures(self, seed: int, size: tuple[int, int]) -> Iterator[CaptionedImage]:
        side = world_size(*size)
        rng = np.random.default_rng(number(seed, "clips"))
        for i in range(self.count):
            record = draw_moving(self.split, self.tags[i % len(self.tags)], rng)
            clip = render_clip(record, self.frames, side, rng)
            yield CaptionedImage(record, hashlib.sha256(clip.tobytes()).hexdigest(), partial(np.asarray, clip))


def check_moving_options(count: int, tags: Sequence[str]) -> None:
    """ValueError for what the moving world does not have."""
    if count < 1:
        raise ValueError(f"count = {count}: at least 1")
    for tag in tags:
        if tag not in MOVING_TAGS:
            raise unknown_name("tag", tag, MOVING_TAGS)
    if not tags:
        raise ValueError("tags is empty: name at least one of " + ", ".join(MOVING_TAGS))
