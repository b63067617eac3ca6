"""The moving world's verifier as rewards: of whole clips."""

from collections.abc import Sequence

import numpy as np

from ..envs.shapes.motion import verify_clip
from ..envs.shapes.moving import moving_suite, render_clip, validate_moving
from .base import Canary, remembering, reward

verdicts = remembering(verify_clip)
RECORD = moving_suite("train", 1, 0, ("move_one",))[0]
TRUE = Canary(lambda: render_clip(RECORD, 9, 32, np.random.default_rng(0)), RECORD, 1.0, 0.1)


@reward("moving_strict", 0, 1, needs=validate_moving, clips=True, canary=TRUE)
def strict(clips: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """1 where the clip shows what the prompt counts and moves it as the prompt says: (B, F, S, S, 3) → (B,)."""
    return np.array([verdict["strict"] for verdict in verdicts(clips, records)])


@reward("moving_partial", 0, 1, needs=validate_moving, clips=True, canary=TRUE)
def partial(clips: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """Bounded partial credit in [0, 1]: half for what is there, half for how far it goes the right way."""
    return np.array([verdict["partial"] for verdict in verdicts(clips, records)])


@reward("moving_smoothness", 0, 1, needs=validate_moving, clips=True, canary=TRUE)
def smoothness(clips: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """In [0, 1]; 1 where nothing changes its speed.  An evaluator first."""
    return np.array([verdict["smoothness"] for verdict in verdicts(clips, records)])
