"""The shapes world's verifier as rewards: GenEval's rules over a classical detector, or exact reading of signs."""

from collections.abc import Sequence

import numpy as np

from ..envs.shapes.fidelity import fidelity
from ..envs.shapes.prompts import suite, validate
from ..envs.shapes.render import render_image
from ..envs.shapes.verify import verify
from .base import Canary, remembering, reward

verdicts = remembering(verify)
RECORD = suite("train", 1, 0, tags=("color_attr",))[0]
TRUE = Canary(lambda: render_image(RECORD, 32, np.random.default_rng(0)), RECORD, 1.0, 0.02)


@reward("shapes_strict", 0, 1, needs=validate, canary=TRUE)
def strict(images: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """1 where the picture shows exactly what the prompt counts, else 0: (B, S, S, 3) → (B,)."""
    return np.array([verdict["strict"] for verdict in verdicts(images, records)])


@reward("shapes_partial", 0, 1, needs=validate, canary=TRUE)
def partial(images: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """Bounded partial credit in [0, 1]."""
    return np.array([verdict["partial"] for verdict in verdicts(images, records)])


@reward("shapes_partial_flowgrpo", high=1, needs=validate, canary=TRUE)
def partial_flowgrpo(images: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """flow_grpo's published training reward, unbounded below, for comparability."""
    return np.array([verdict["partial_flowgrpo"] for verdict in verdicts(images, records)])


@reward("shapes_fidelity", 0, 1, canary=TRUE)
def quality(images: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """Prompt-free fidelity Q in [0, 1]; an evaluator first: as a reward it becomes a target."""
    return np.array([fidelity(image) for image in images])
