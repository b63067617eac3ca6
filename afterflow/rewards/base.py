"""What a reward is."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Reward(Protocol):
    def __call__(self, images: np.ndarray, records: Sequence[dict]) -> np.ndarray:
        """uint8 (B, H, W, 3) and their B records → float (B,).  NaN: no score could be had for that image."""
        ...
