"""A reward that breaks on demand: `fragile:clean`, for bench/faults.py."""

import os
from collections.abc import Sequence

import numpy as np
import torch

from afterflow.rewards.shapes import shapes_fidelity

BREAK = {"at": None, "how": None, "calls": 0}
"""Call at which it breaks, and how; other processes read AFTERFLOW_FRAGILE, as `rank call how`."""


def clean(images: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """Scores of shapes_fidelity, which differ for any two images, until it breaks."""
    values = np.asarray(shapes_fidelity(images, records).values, np.float64)
    BREAK["calls"] += 1
    how = due()
    if how == "down":
        raise ConnectionError("connection refused")
    if how == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
    if how == "nan":
        return np.full_like(values, np.nan)
    if how == "one nan":
        values[0] = np.nan
    if how == "few":
        return values[:-1]
    return values


def due() -> str | None:
    setting = os.environ.get("AFTERFLOW_FRAGILE")
    if setting is not None:
        rank, at, how = setting.split(" ", 2)
        return how if os.environ.get("RANK", "0") == rank and BREAK["calls"] >= int(at) else None
    return BREAK["how"] if BREAK["at"] is not None and BREAK["calls"] >= BREAK["at"] else None
