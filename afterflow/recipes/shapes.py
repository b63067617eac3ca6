"""Post-training of the tiny pipeline on the shapes world.

The KL is computed on tied groups too, so its mean is that of version 0.1.
"""

from ..algorithms.flow_grpo import FlowGRPO
from ..algorithms.v_grpo import VGRPO
from ..data.prompts import ShapesPrompts
from ..experiment.config import Batches, Distribution, Evaluation, Optimization, Run
from ..models.adapters import LoRA
from ..models.base import has_fast_bf16
from ..models.sd3 import SD3
from ..sampling.training_times import TrainingTimes

FASTEST_PRECISION = "bf16" if has_fast_bf16() else "no"
"""Mixed precision in which the tiny pipelines train fastest on this machine's CPU."""


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
        # More rows at once are not faster; these are four prompts, whose 64 images fill a forward pass.
        batches=Batches(iterations=270, retained_rows=256),
        optimization=Optimization(
            learning_rate=1e-3,
            adam_betas=(0.9, 0.95),
            lr_schedule="late",
            mixed_precision=FASTEST_PRECISION,
        ),
        evaluation=Evaluation(
            held_out=ShapesPrompts("test", count=120), eval_every=30, eval_rewards=("shapes_strict", "shapes_partial")
        ),
        distribution=Distribution(threads=1),
    )


def demo() -> Run:
    """The job of `make demo`: V-GRPO, which learns from few images; the KL keeps them clean."""
    run = shapes_flow_grpo()
    algorithm = VGRPO(
        run.algorithm.requirements.weights,
        # Six steps of a second-order solver draw what ten of Euler do.
        steps=6,
        group=16,
        # What is in a picture is decided in its first steps.
        times=TrainingTimes(2, "segments", (0.0, 0.7), "group"),
        kl=0.05,
    )
    return run.with_options(
        algorithm=algorithm,
        name="demo",
        iterations=34,
        batch=8,
        retained_rows=None,
        learning_rate=1.2e-3,
        warmup=2,
        held_out=None,
        eval_every=0,
        eval_rewards=(),
        sample_every=17,
        threads=2,  # .7 of the seconds of one, and the same numbers
    )
