"""The moving world: how the shipped tiny Wan is taught to move what the prompt names.

Losses are means over all steps, those of tied groups included.  AdamW divides by the size of the gradient, so rates are
those of version 0.1, whose means left tied groups out.
"""

from ..algorithms.base import OnPolicy
from ..algorithms.branch_grpo import BranchGRPO
from ..algorithms.dance_grpo import DanceGRPO
from ..algorithms.flow_grpo import FlowGRPO
from ..data.clips import MovingPrompts
from ..experiment.config import Run
from ..models.adapters import LoRA
from ..models.pipeline_files import SHIPPED_OPTIONS
from ..models.wan import Wan
from .shapes import shapes_flow_grpo
from .shapes_methods import SHAPES_STEPS

MOVING_WEIGHTS = {"moving_strict": 0.5, "moving_partial": 0.5}
TINY_WAN = Wan("tiny_wan", **SHIPPED_OPTIONS["tiny_wan"])


def _run(algorithm: OnPolicy, name: str) -> Run:
    return shapes_flow_grpo().with_options(
        algorithm=algorithm,
        data=MovingPrompts(),
        model=TINY_WAN,
        tune=LoRA(),
        name=name,
        iterations=80,
        learning_rate=1.5e-3,
        held_out=MovingPrompts("test", count=60),
        eval_every=20,
        eval_rewards=("moving_smoothness",),
    )


def moving_flow_grpo() -> Run:
    """Flow-GRPO-Fast on clips: noise and training in a window at the start."""
    algorithm = FlowGRPO(
        MOVING_WEIGHTS, steps=SHAPES_STEPS, group=16, window=4, window_range=(0, 4), eta=0.8, beta=0.0, clip=1e-3
    )
    return _run(algorithm, "moving_flow_grpo")


def moving_dance_grpo() -> Run:
    """DanceGRPO on clips: constant noise, one start for a group, a random 60 % of the steps."""
    return _run(DanceGRPO(MOVING_WEIGHTS, steps=SHAPES_STEPS, group=16, eta=0.7, clip=1e-3), "moving_dance_grpo")


def moving_branch_grpo() -> Run:
    """BranchGRPO on clips: 16 leaves of a tree for each prompt, which share their ancestors' steps."""
    return _run(
        BranchGRPO(MOVING_WEIGHTS, steps=SHAPES_STEPS, splits=(0, 1, 3, 4), eta=0.7, clip=1e-3), "moving_branch_grpo"
    )
