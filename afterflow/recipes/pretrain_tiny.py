"""Where the shipped pipeline comes from."""

from ..algorithms.sft import SFT
from ..data.images import ShapesImages
from ..envs.shapes.world import TAGS
from ..experiment.config import Batches, Checkpoints, Logging, Optimization, Run
from ..models.adapters import Full
from ..models.tiny_parts.config import TinyParts


def tiny_sd3_pretrain() -> Run:
    """Train the tiny SD3 pipeline from scratch on rendered pictures of the shapes world."""
    return Run(
        SFT(dropout=0.1, shift=2.0),
        ShapesImages(count=150_000, tags=(*TAGS, "text"), empty_tokens=256),
        TinyParts(),
        Full(),
        name="tiny_sd3_pretrain",
        batches=Batches(iterations=40_500, batch=128, chunk=64),
        optimization=Optimization(
            learning_rate=1.4e-3,
            lr_schedule="late",
            warmup=200,
            weight_decay=0.01,
            ema_decay=0.999,
            mixed_precision="bf16",
        ),
        logging=Logging(sample_every=1000),
        checkpoints=Checkpoints(save_every=500),
    )
