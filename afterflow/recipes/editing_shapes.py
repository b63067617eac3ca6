"""The editing world: how the shipped tiny FLUX.2-klein is taught to do what a request asks, and nothing else.

Half of the reward is the strict verdict: the request is done and all else is untouched.  The other half is partial
credit for both, so that groups in which no picture is right teach too.

Three of the seven tasks are asked for: to recolour, to add and to count up.  Of the others the model does one nearly
always and three hardly ever, so that pictures of a group are alike and teach little.  All seven are measured.
"""

from ..algorithms.base import OnPolicy
from ..algorithms.dgpo import DGPO
from ..algorithms.flow_grpo import FlowGRPO
from ..data.edits import EditPrompts
from ..experiment.config import Run
from ..models.flux2_klein import Flux2Klein
from ..models.pipeline_files import SHIPPED_OPTIONS
from .shapes import shapes_flow_grpo
from .shapes_forward import EARLY, STEPS
from .shapes_methods import SHAPES_STEPS

EDITS_WEIGHTS = {"edits_strict": 0.5, "edits_partial": 0.5}
LEARNT_TASKS = ("recolor", "add", "count")
TINY_KLEIN = Flux2Klein("tiny_klein", **SHIPPED_OPTIONS["tiny_klein"])


def _run(algorithm: OnPolicy, name: str, **options: object) -> Run:
    """128 pictures an iteration, half as many as on pictures of 32 px."""
    return shapes_flow_grpo().with_options(
        algorithm=algorithm,
        data=EditPrompts(count=1500, tasks=LEARNT_TASKS),
        model=TINY_KLEIN,
        name=name,
        iterations=150,
        batch=8,
        held_out=EditPrompts("test", count=70),
        eval_every=30,
        eval_rewards=("edits_strict", "edits_done", "edits_preserved"),
        **options,
    )


def editing_flow_grpo() -> Run:
    """Flow-GRPO on edits: noise and training in a window at the start."""
    algorithm = FlowGRPO(
        EDITS_WEIGHTS, steps=SHAPES_STEPS, group=16, window=4, window_range=(0, 4), eta=0.8, beta=0.01, clip=1e-3
    )
    return _run(algorithm, "editing_flow_grpo", learning_rate=1.5e-3)


def editing_dgpo() -> Run:
    """DGPO on edits: DPO's idea for groups, at the first steps' times."""
    algorithm = DGPO(EDITS_WEIGHTS, steps=STEPS, group=16, times=EARLY)
    return _run(algorithm, "editing_dgpo", learning_rate=2e-3, lr_schedule="cosine")
