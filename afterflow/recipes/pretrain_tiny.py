"""Where the shipped pipeline comes from."""

from ..algorithms.sft import SFT
from ..data.images import ShapesImages
from ..envs.shapes.world import TAGS
from ..experiment.config import Run
from ..models.adapters import Full
from ..models.tiny_parts.config import TinyParts


def tiny_sd3_pretrain() -> Run:
    """Train the tiny SD3 pipeline from scratch on rendered pictures of the shapes world."""
    return Run(
        SFT(dropout=0.1, shift=2.0),
        # Signs twice: a string is harder to draw than any scene.
        ShapesImages(count=150_000, tags=(*TAGS, "text"), empty_tokens=256),
        TinyParts(),
        Full(),
        name="tiny_sd3_pretrain",
        iterations=40_500,
        batch=128,
        chunk=64,
        learning_rate=1.4e-3,
        decay="late",
        warmup=200,
        weight_decay=0.01,
        ema=0.999,
        mixed_precision="bf16",
        sample_every=1000,
        save_every=500,
    )
