"""Rewards by name.  A reward is one function (images uint8 (B, H, W, 3), records) → scores (B,), NaN = failed."""

from collections.abc import Callable

from ..shapes.moving import validate_moving
from ..shapes.prompts import validate
from . import jpeg, moving, shapes
from .base import Reward

REWARDS: dict[str, Reward] = {
    "shapes_strict": shapes.strict,
    "shapes_partial": shapes.partial,
    "shapes_partial_flowgrpo": shapes.partial_flowgrpo,
    "shapes_fidelity": shapes.quality,
    "jpeg_compressibility": jpeg.compressibility,
    "jpeg_incompressibility": jpeg.incompressibility,
    "moving_strict": moving.strict,
    "moving_partial": moving.partial,
    "moving_smoothness": moving.smoothness,
}

CLIPS = frozenset(("moving_strict", "moving_partial", "moving_smoothness"))
"""Rewards of whole clips, uint8 (B, F, H, W, 3); the others are of images."""

NEEDS: dict[str, Callable[[dict], None]] = {
    **dict.fromkeys(("shapes_strict", "shapes_partial", "shapes_partial_flowgrpo"), validate),
    **dict.fromkeys(CLIPS, validate_moving),
}
"""Rewards that read more of a record than its prompt: ValueError with one sentence when it is not there."""
