"""Data of the moving shapes world: prompts to explore, and clips to learn from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..envs.shapes.moving import MOVING_TAGS, draw_moving, moving_suite, render_clip
from ..envs.shapes.world import world_size
from ..sampling.seeds import number
from ..system.checks import check_at_least_one
from ..system.errors import ConfigError
from ..system.names import unknown_name
from .images import CaptionedImage, ListedImages, rendered_image
from .prompts import NO_CHECKS, RecordChecks


@dataclass(frozen=True)
class MovingPrompts:
    """Prompts of the moving shapes world, drawn from one split of its facts."""

    split: Literal["train", "test"] = "train"
    """train leaves out some directions of some classes, test asks for those."""
    count: int = 600
    """Number of prompts, shared evenly among the tags."""
    tags: tuple[str, ...] = MOVING_TAGS
    """Kinds of prompt: move_one is an object, move_count two alike, move_two two objects in two directions."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "count")
        check_moving_options(self.tags)

    def records(self, seed: int, checks: RecordChecks = NO_CHECKS) -> list[dict]:
        """Return the prompts' records; no check is needed, because the world makes valid records only."""
        per_tag = -(-self.count // len(self.tags))
        return moving_suite(self.split, per_tag, number(seed, "moving prompts") % 2**32, self.tags)


@dataclass(frozen=True)
class MovingClips(ListedImages):
    """Rendered clips of the moving shapes world."""

    count: int = 10_000
    """Number of clips, rendered before training starts."""
    frames: int = 9
    """Number of frames of a clip, which must be the model's."""
    split: Literal["train", "test"] = "train"
    """Split of directions and classes that the clips show."""
    tags: tuple[str, ...] = MOVING_TAGS
    """Kinds of prompt, used in turn."""
    min_reward: Mapping[str, float] = field(default_factory=dict)
    """Lowest value of each named reward at which a clip is used for training."""
    cache: bool = False
    """Whether latents are stored on disk for the next run; rendering takes longer than encoding."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "count", "frames")
        check_moving_options(self.tags)

    def images(self, seed: int, size: tuple[int, int], unit: int = 1) -> Iterator[CaptionedImage]:
        """Yield the clips, each rendered when it is its turn."""
        side = world_size(*size)
        rng = np.random.default_rng(number(seed, "clips"))
        for i in range(self.count):
            record = draw_moving(self.split, self.tags[i % len(self.tags)], rng)
            clip = render_clip(record, self.frames, side, rng)
            yield rendered_image(record, clip, size)


def check_moving_options(tags: Sequence[str]) -> None:
    """Raise ConfigError for options that the moving shapes world does not have."""
    for tag in tags:
        if tag not in MOVING_TAGS:
            raise unknown_name("tag", tag, MOVING_TAGS)
    if not tags:
        raise ConfigError("tags is empty: name at least one of " + ", ".join(MOVING_TAGS))
