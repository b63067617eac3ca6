"""The moving world's verifier as rewards: of whole clips."""

from collections.abc import Sequence

import numpy as np

from ..shapes.motion import verify_clip

# The verdicts of the last batch: strict and partial ask about the same clips one after the other.
_last: tuple[bytes, list[str], list[dict[str, float]]] = (b"", [], [])


def verdicts(clips: np.ndarray, records: Sequence[dict]) -> list[dict[str, float]]:
    """Every verdict on each clip, B dicts."""
    global _last
    key, prompts = clips.tobytes(), [record["prompt"] for record in records]
    if (key, prompts) != _last[:2]:
        _last = (key, prompts, [verify_clip(record, clip) for record, clip in zip(records, clips)])
    return _last[2]


def strict(clips: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """1 where the clip shows what the prompt counts and moves it as the prompt says: (B, F, S, S, 3) → (B,)."""
    return np.array([verdict["strict"] for verdict in verdicts(clips, records)])


def partial(clips: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """Bounded partial credit in [0, 1]: half for what is there, half for how far it goes the right way."""
    return np.array([verdict["partial"] for verdict in verdicts(clips, records)])


def smoothness(clips: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """In [0, 1]; 1 where nothing changes its speed.  An evaluator first."""
    return np.array([verdict["smoothness"] for verdict in verdicts(clips, records)])
