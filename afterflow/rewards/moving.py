"""The moving world's verifier as rewards of whole clips."""

from collections.abc import Sequence

import numpy as np

from ..envs.shapes.motion import verify_clip
from ..envs.shapes.moving import moving_suite, render_clip, validate_moving
from .base import Canary, remember_last_batch, verdict_reward

_RECORD = moving_suite("train", 1, 0, ("move_one",))[0]
_CANARY = Canary(lambda: render_clip(_RECORD, 9, 32, np.random.default_rng(0)), _RECORD, 1.0, 0.1)
_FIELDS = {"needs": validate_moving, "clips": True, "canary": _CANARY}


@remember_last_batch
def moving_verdicts(clips: np.ndarray, records: Sequence[dict]) -> list[dict[str, float]]:
    """Return the verifier's verdicts on each clip (F, S, S, 3), by name."""
    return [verify_clip(record, clip) for record, clip in zip(records, clips)]


moving_strict = verdict_reward("moving_strict", moving_verdicts, **_FIELDS)
"""It is 1 where the clip shows what the prompt counts and moves it as the prompt says, else 0."""
moving_partial = verdict_reward("moving_partial", moving_verdicts, **_FIELDS)
"""It is partial credit: half for what is there, half for how far it goes the right way."""
moving_smoothness = verdict_reward("moving_smoothness", moving_verdicts, **_FIELDS)
"""It is 1 where nothing changes its speed, and an evaluator first."""
