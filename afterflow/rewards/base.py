"""What a reward is, and what a judge is."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np


class Reward(Protocol):
    def __call__(self, images: np.ndarray, records: Sequence[dict], /) -> np.ndarray:
        """uint8 (B, H, W, 3) and their B records → float (B,).  NaN: no score could be had for that image."""
        ...


class Judge(Protocol):
    def __call__(
        self,
        images: np.ndarray,
        records: Sequence[dict],
        first: np.ndarray,
        second: np.ndarray,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Which of two images answers their prompt better?

        uint8 (B, H, W, 3), their B records, and Q pairs of rows: the one shown first and the one shown second, of the
        same record → float (Q,) in [0, 1]: 1 the first, 0 the second, 0.5 neither.
        """
        ...


Verdicts = Callable[[np.ndarray, Sequence[dict]], list[dict[str, float]]]


def remembering(verify: Callable[[dict, np.ndarray], dict[str, float]]) -> Verdicts:
    """Every verdict on each image of a batch; the last batch's are kept, because rewards ask for them one by one."""
    last: tuple[bytes, list[str], list[dict[str, float]]] = (b"", [], [])

    def verdicts(images: np.ndarray, records: Sequence[dict]) -> list[dict[str, float]]:
        nonlocal last
        key, prompts = images.tobytes(), [record["prompt"] for record in records]
        if (key, prompts) != last[:2]:
            last = (key, prompts, [verify(record, image) for record, image in zip(records, images)])
        return last[2]

    return verdicts
