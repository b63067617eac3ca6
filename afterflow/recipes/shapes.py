"""Post-training of the tiny pipeline on the shapes world."""

from ..algorithms.flow_grpo import FlowGRPO
from ..data.prompts import ShapesPrompts
from ..models.sd3 import SD3
from ..models.tune import Full
from ..run import Run


def shapes_flow_grpo() -> Run:
    """Flow-GRPO teaches the tiny pipeline to count, colour and place, rewarded by strict and partial verdicts."""
    algorithm = FlowGRPO(
        weights={"shapes_strict": 0.5, "shapes_partial": 0.5},
        steps=10,
        group=16,
        window=4,
        window_range=(0, 4),
        eta=0.8,
        beta=0.0,
        clip=1e-3,
    )
    return Run(
        algorithm,
        ShapesPrompts(),
        SD3("tiny", max_sequence_length=0),
        Full(),
        name="shapes_flow_grpo",
    )
