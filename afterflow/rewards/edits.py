"""The editing world's verifier as rewards: what was asked is done, and all else is untouched."""

from collections.abc import Sequence

import numpy as np

from ..envs.shapes.edit_verifier import validate_edit, verify_edit
from ..envs.shapes.edits import SIZE, EditScene, edit_suite, render_scene
from ..system.errors import InputError
from .base import Canary, remember_last_batch, verdict_reward

_RECORD = edit_suite("train", 1, 0, ("recolor",))[0]
_CANARY = Canary(lambda: render_scene(EditScene.from_record(_RECORD["result"])), _RECORD, 1.0, 0.02)
_FIELDS = {"needs": validate_edit, "canary": _CANARY, "version": "2", "side": SIZE}


@remember_last_batch
def edits_verdicts(images: np.ndarray, records: Sequence[dict]) -> list[dict[str, float]]:
    """Return the verifier's verdicts on each edited picture (64, 64, 3), by name."""
    if images.shape[1:3] != (SIZE, SIZE):
        height, width = images.shape[1:3]
        raise InputError(
            f"edits are judged in {SIZE} x {SIZE} px, and these pictures have {width} x {height}; set model.size"
        )
    scores = [verify_edit(record, image) for record, image in zip(records, images)]
    return [{"strict": s.strict, "partial": s.partial, "done": s.done, "preserved": s.preserved} for s in scores]


edits_strict = verdict_reward("edits_strict", edits_verdicts, **_FIELDS)
"""It is 1 where the request is done and all else untouched, else 0."""
edits_partial = verdict_reward("edits_partial", edits_verdicts, **_FIELDS)
"""It is the product of partial credit for the request and for what was to stay."""
edits_done = verdict_reward("edits_done", edits_verdicts, **_FIELDS)
"""It is 1 where the request is done and nothing else is in the picture, else 0."""
edits_preserved = verdict_reward("edits_preserved", edits_verdicts, **_FIELDS)
"""It is 1 where every other object and the ground are untouched, else 0."""
