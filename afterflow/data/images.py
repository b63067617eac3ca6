"""Images with prompts to learn from."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..seeds import number
from ..shapes import prompts, render
from ..shapes.world import TAGS
from .prompts import check_world


@dataclass(frozen=True)
class ShapesImages:
    """Rendered pictures of the shapes world; tags are drawn evenly, facts from one split only."""

    count: int = 100_000
    """Pictures rendered before training starts."""
    split: Literal["train", "test", "ood"] = "train"
    """Which facts their prompts may state; what no prompt names, a colour say, is drawn freely."""
    size: int = 32
    """Pixels of a side, 32 or 64."""
    tags: tuple[str, ...] = TAGS
    """Kinds of prompt in turn; one named twice is drawn twice as often."""
    empty_tokens: int = 0
    """At most this many zero vectors are appended to a batch's prompts: stock SD3 without T5 appends 256."""

    def __post_init__(self) -> None:
        check_world(self.count, self.split, self.tags, self.size)

    def draw(self, seed: int) -> tuple[np.ndarray, list[dict]]:
        """uint8 (count, size, size, 3) and the records they show."""
        rng = np.random.default_rng(number(seed, "images"))
        records = [prompts.draw(self.split, self.tags[i % len(self.tags)], rng, self.size) for i in range(self.count)]
        return np.stack([render.render(record, self.size, rng) for record in records]), records


def empty_tokens(most: int, step: int, seed: int) -> int:
    """How many zero vectors follow the prompts of this batch: mostly none, now and then a log-uniform number.

    Long batches cost more, and a few of them suffice to learn that zeros mean nothing.
    """
    rng = np.random.default_rng(number(seed, "empty tokens", step))
    if most == 0 or rng.random() > 0.05:
        return 0
    return int(np.exp(rng.uniform(0, np.log(most + 1))))
