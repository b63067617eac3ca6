"""The shapes world's verifier as rewards: GenEval's rules over a classical detector, or exact reading of signs."""

from collections.abc import Sequence

import numpy as np

from ..envs.shapes.fidelity import fidelity
from ..envs.shapes.prompts import suite, validate
from ..envs.shapes.render import render_image
from ..envs.shapes.verify import verify
from .base import Canary, remember_last_batch, reward, verdict_reward

_RECORD = suite("train", 1, 0, tags=("color_attr",))[0]
_CANARY = Canary(lambda: render_image(_RECORD, 32, np.random.default_rng(0)), _RECORD, 1.0, 0.02)
_FIELDS = {"needs": validate, "canary": _CANARY}


@remember_last_batch
def shapes_verdicts(images: np.ndarray, records: Sequence[dict]) -> list[dict[str, float]]:
    """Return the verifier's verdicts on each image (S, S, 3), by name."""
    return [verify(record, image) for record, image in zip(records, images)]


shapes_strict = verdict_reward("shapes_strict", shapes_verdicts, **_FIELDS)
"""It is 1 where the picture shows exactly what the prompt counts, else 0."""
shapes_partial = verdict_reward("shapes_partial", shapes_verdicts, **_FIELDS)
"""It is bounded partial credit."""
shapes_partial_flowgrpo = verdict_reward("shapes_partial_flowgrpo", shapes_verdicts, low=-np.inf, **_FIELDS)
"""It is flow_grpo's published training reward, which is unbounded below, for comparability."""


@reward("shapes_fidelity", 0, 1, canary=_CANARY)
def shapes_fidelity(images: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """Return the fidelity Q in [0, 1], which needs no prompt.  It is an evaluator first: a reward becomes a target."""
    return np.array([fidelity(image) for image in images])
