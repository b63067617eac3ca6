"""The shapes world's verifier as rewards: GenEval's rules over a classical detector, or exact reading of signs."""

from collections.abc import Sequence

import numpy as np

from ..envs.shapes.fidelity import fidelity
from ..envs.shapes.prompts import suite, validate
from ..envs.shapes.render import render_image
from ..envs.shapes.style import style_parts
from ..envs.shapes.verify import verify
from .base import Canary, Scored, remember_last_batch, reward, verdict_reward

_RECORD = suite("train", 1, 0, tags=("color_attr",))[0]
_CANARY = Canary(lambda: render_image(_RECORD, 32, np.random.default_rng(0)), _RECORD, 1.0, 0.02)
STYLE_TAGS = ("single_object", "two_object", "position")
"""The kinds of prompt that name neither a colour nor a number."""
_BLACK = {
    "tag": "colors",
    "include": [{"class": "circle", "count": 1, "color": "black"}],
    "prompt": "a picture of a black circle",
}
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


@reward(
    "shapes_style",
    0,
    1,
    canary=Canary(lambda: render_image(_BLACK, 32, np.random.default_rng(0)), _BLACK, 0.9455, 0.02),
)
def shapes_style(images: np.ndarray, records: Sequence[dict]) -> Scored:
    """Return the style in [0, 1], the mean of three parts: few objects, muted colours and large margins.

    It needs no prompt, and a prompt that counts or colours asks for the opposite.
    """
    parts = style_parts(images)
    return Scored(parts.style, {"few": parts.few, "muted": parts.muted, "margin": parts.margin})


@reward("shapes_style_or_verdict", 0, 1, needs=validate, canary=_CANARY)
def shapes_style_or_verdict(images: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """Return the style where the prompt is one of STYLE_TAGS, else the mean of strict and partial: a task a prompt."""
    scores = np.empty(len(images))
    of_style = np.array([record["tag"] in STYLE_TAGS for record in records], bool)
    if of_style.any():
        scores[of_style] = style_parts(images[of_style]).style
    verdicts = shapes_verdicts(images[~of_style], [record for record in records if record["tag"] not in STYLE_TAGS])
    scores[~of_style] = [(verdict["strict"] + verdict["partial"]) / 2 for verdict in verdicts]
    return scores
