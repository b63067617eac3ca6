"""Rewards by name.  A reward is one function (images uint8 (B, H, W, 3), records) → scores (B,), NaN = failed."""

from . import jpeg, shapes
from .base import Reward

REWARDS: dict[str, Reward] = {
    "shapes_strict": shapes.strict,
    "shapes_partial": shapes.partial,
    "shapes_partial_flowgrpo": shapes.partial_flowgrpo,
    "shapes_fidelity": shapes.quality,
    "jpeg_compressibility": jpeg.compressibility,
    "jpeg_incompressibility": jpeg.incompressibility,
}
