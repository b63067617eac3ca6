"""The shapes world's verifier as rewards: GenEval's rules over a classical detector, or exact reading of signs."""

from collections.abc import Sequence

import numpy as np

from ..shapes.fidelity import fidelity
from ..shapes.verify import verify

# The verdicts of the last batch: strict and partial ask about the same images one after the other.
_last: tuple[bytes, list[str], list[dict[str, float]]] = (b"", [], [])


def verdicts(images: np.ndarray, records: Sequence[dict]) -> list[dict[str, float]]:
    """Every mode of the verifier for each image, B dicts."""
    global _last
    key, prompts = images.tobytes(), [record["prompt"] for record in records]
    if (key, prompts) != _last[:2]:
        _last = (key, prompts, [verify(record, image) for record, image in zip(records, images)])
    return _last[2]


def strict(images: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """1 where the picture shows exactly what the prompt counts, else 0: (B, S, S, 3) → (B,)."""
    return np.array([verdict["strict"] for verdict in verdicts(images, records)])


def partial(images: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """Bounded partial credit in [0, 1]."""
    return np.array([verdict["partial"] for verdict in verdicts(images, records)])


def partial_flowgrpo(images: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """flow_grpo's published training reward, unbounded below, for comparability."""
    return np.array([verdict["partial_flowgrpo"] for verdict in verdicts(images, records)])


def quality(images: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """Prompt-free fidelity Q in [0, 1]; an evaluator first: as a reward it becomes a target."""
    return np.array([fidelity(image) for image in images])
