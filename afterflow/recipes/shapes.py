"""Post-training of the tiny pipeline on the shapes world."""

from dataclasses import replace

import torch

from ..algorithms.flow_grpo import FlowGRPO
from ..data.prompts import ShapesPrompts
from ..experiment.config import Run
from ..models.adapters import LoRA
from ..models.sd3 import SD3


def shapes_flow_grpo() -> Run:
    """Flow-GRPO teaches the tiny pipeline to count, colour and place, rewarded by strict and partial verdicts."""
    algorithm = FlowGRPO(
        weights={"shapes_strict": 0.5, "shapes_partial": 0.5},
        steps=10,
        group=16,
        # What is in a picture is decided in its first steps; noise later on only dirties it.
        window=4,
        window_range=(0, 4),
        eta=0.8,
        # Without it fidelity falls by .02 to .07 over the run (bench/results/shapes_flow_grpo_no_kl.json).
        beta=0.01,
        clip=1e-3,
    )
    return Run(
        algorithm,
        ShapesPrompts(),
        SD3("tiny"),
        LoRA(),
        name="shapes_flow_grpo",
        iterations=270,
        # Gradients grow fourfold on the way.  Adam's usual 0.999 remembers the small ones, so its steps grow too: at a
        # rate of 1.5e-3 the reward rose to .55 and fell back to .3 after 100 to 200 iterations.
        learning_rate=1e-3,
        betas=(0.9, 0.95),
        decay="late",
        # About twice as fast where the processor has it.
        mixed_precision="bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "no",
        held_out=ShapesPrompts("test", count=120),
        eval_every=30,
        eval_rewards=("shapes_strict", "shapes_partial"),
        threads=1,
    )


def demo() -> Run:
    """The job of `make demo`: the first minutes of it, at a higher rate."""
    run = shapes_flow_grpo()
    assert isinstance(run.algorithm, FlowGRPO)
    return replace(
        run,
        algorithm=replace(run.algorithm, beta=0.0),  # there is no time to drift
        name="demo",
        iterations=45,
        learning_rate=2e-3,
        decay="constant",
        held_out=None,
        eval_every=0,
        eval_rewards=(),
        sample_every=15,
    )
