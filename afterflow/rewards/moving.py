"""The moving world's verifier as rewards of whole clips."""

from collections.abc import Sequence

import numpy as np

from ..envs.shapes.motion import verify_clip
from ..envs.shapes.moving import moving_suite, render_clip, validate_moving
from .base import Canary, remember_last_batch, reward

_RECORD = moving_suite("train", 1, 0, ("move_one",))[0]
_CANARY = Canary(lambda: render_clip(_RECORD, 9, 32, np.random.default_rng(0)), _RECORD, 1.0, 0.1)


@remember_last_batch
def moving_verdicts(clips: np.ndarray, records: Sequence[dict]) -> list[dict[str, float]]:
    """Return the verifier's verdicts on each clip, by name."""
    return [verify_clip(record, clip) for record, clip in zip(records, clips)]


@reward("moving_strict", 0, 1, needs=validate_moving, clips=True, canary=_CANARY)
def moving_strict(clips: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """Return 1 where the clip shows what the prompt counts and moves it as the prompt says: (B, F, S, S, 3) → (B,)."""
    return np.array([verdict["strict"] for verdict in moving_verdicts(clips, records)])


@reward("moving_partial", 0, 1, needs=validate_moving, clips=True, canary=_CANARY)
def moving_partial(clips: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """Return partial credit in [0, 1]: half for what is there, half for how far it goes the right way."""
    return np.array([verdict["partial"] for verdict in moving_verdicts(clips, records)])


@reward("moving_smoothness", 0, 1, needs=validate_moving, clips=True, canary=_CANARY)
def moving_smoothness(clips: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """Return the smoothness in [0, 1], which is 1 where nothing changes its speed.  It is an evaluator first."""
    return np.array([verdict["smoothness"] for verdict in moving_verdicts(clips, records)])
