"""The moving world's verifier as rewards: of whole clips."""

from collections.abc import Sequence

import numpy as np

from ..shapes.motion import verify_clip
from .base import remembering

verdicts = remembering(verify_clip)


def strict(clips: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """1 where the clip shows what the prompt counts and moves it as the prompt says: (B, F, S, S, 3) → (B,)."""
    return np.array([verdict["strict"] for verdict in verdicts(clips, records)])


def partial(clips: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """Bounded partial credit in [0, 1]: half for what is there, half for how far it goes the right way."""
    return np.array([verdict["partial"] for verdict in verdicts(clips, records)])


def smoothness(clips: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """In [0, 1]; 1 where nothing changes its speed.  An evaluator first."""
    return np.array([verdict["smoothness"] for verdict in verdicts(clips, records)])
