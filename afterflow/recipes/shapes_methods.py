"""Every method of the family on the shapes world: the same model, prompts, rewards and number of images.

What differs is what the papers differ in: how steps are drawn, which are trained, and how credit is given.  All train
without guidance, as Flow-GRPO's no-CFG recipes do, and take 10 denoising steps.  Clip ranges are wider than published:
at one update per rollout the first ratio is 1, and they do not act.

Losses are means over all steps, those of tied groups included.  Here 1 to 5 % of the groups are tied (with Pref-GRPO,
9 % of the images win half of their comparisons), and the gradient is shorter by as much than in version 0.1.  AdamW
divides by its size and nothing clips it, so rates are those of 0.1.
"""

from dataclasses import replace

from ..algorithms.base import OnPolicy
from ..algorithms.branch_grpo import BranchGRPO
from ..algorithms.dance_grpo import DanceGRPO
from ..algorithms.ddpo import DDPO
from ..algorithms.flow_grpo import FlowGRPO
from ..algorithms.mix_grpo import MixGRPO
from ..algorithms.pref_grpo import PrefGRPO
from ..algorithms.pruning import Pruning
from ..algorithms.windows import SlidingWindow
from ..data.prompts import ShapesPrompts
from ..experiment.config import Run
from ..rewards.shapes_judge import ShapesJudge
from .shapes import shapes_flow_grpo

SHAPES_WEIGHTS = {"shapes_strict": 0.5, "shapes_partial": 0.5}
SHAPES_STEPS = 10


def _run(algorithm: OnPolicy, name: str, **options: object) -> Run:
    """Less than ten minutes on a laptop; the rate is what so few iterations stand."""
    run = shapes_flow_grpo().with_options(iterations=80, learning_rate=1.5e-3)
    return run.with_options(algorithm=algorithm, name=name, evaluation=run.evaluation, **options)


def shapes_ddpo() -> Run:
    """DDPO: every step by the SDE, advantages over the whole batch."""
    return _run(DDPO(SHAPES_WEIGHTS, steps=SHAPES_STEPS, group=16, clip=1e-3), "shapes_ddpo")


def shapes_ddpo_history() -> Run:
    """DDPO with each prompt's own history: 320 prompts, each of which comes again after ten iterations."""
    algorithm = DDPO(SHAPES_WEIGHTS, steps=SHAPES_STEPS, group=8, history=32, min_count=16, clip=1e-3)
    return _run(algorithm, "shapes_ddpo_history", data=ShapesPrompts(count=320), batch=32)


def jpeg_ddpo() -> Run:
    """DDPO's first experiment: pictures that compress well, which anyone can see being hacked."""
    return _run(DDPO({"jpeg_compressibility": 1.0}, steps=SHAPES_STEPS, group=16, clip=1e-3), "jpeg_ddpo")


def shapes_flow_grpo_full() -> Run:
    """Flow-GRPO as first published: noise and training on all steps but the last."""
    return _run(FlowGRPO(SHAPES_WEIGHTS, steps=SHAPES_STEPS, group=16, beta=0.0, clip=1e-3), "shapes_flow_grpo_full")


def shapes_flow_grpo_cps() -> Run:
    """Flow-GRPO-Fast with coefficient-preserving sampling in a window that moves at random."""
    algorithm = FlowGRPO(
        SHAPES_WEIGHTS, steps=SHAPES_STEPS, group=16, kernel="cps", eta=0.8, window=3, beta=0.0, clip=1e-3
    )
    return _run(algorithm, "shapes_flow_grpo_cps")


def shapes_flow_grpo_guard() -> Run:
    """Flow-GRPO with GRPO-Guard's ratio and weighting of steps."""
    algorithm = FlowGRPO(SHAPES_WEIGHTS, steps=SHAPES_STEPS, group=16, beta=0.0, guard=True, clip=1e-3)
    return _run(algorithm, "shapes_flow_grpo_guard")


def shapes_dance_grpo() -> Run:
    """DanceGRPO: constant noise, one start for a group, a random 60 % of the steps."""
    return _run(DanceGRPO(SHAPES_WEIGHTS, steps=SHAPES_STEPS, group=16, eta=0.7, clip=1e-3), "shapes_dance_grpo")


def shapes_mix_grpo() -> Run:
    """MixGRPO: noise only in a window that slides over the steps."""
    return _run(_mix(), "shapes_mix_grpo")


def shapes_mix_grpo_flash() -> Run:
    """MixGRPO-Flash: after the window, fewer steps by a solver of second order."""
    return _run(replace(_mix(), flash=0.4), "shapes_mix_grpo_flash")


def shapes_mix_grpo_flash_star() -> Run:
    """MixGRPO-Flash*: fewer still, and the window stays at the start."""
    star = replace(_mix(), flash=0.2, window=SlidingWindow(width=4, order="frozen", idle=1))
    return _run(star, "shapes_mix_grpo_flash_star")


def shapes_branch_grpo() -> Run:
    """BranchGRPO: 16 leaves of a tree for each prompt, which share their ancestors' steps."""
    return _run(_branch(), "shapes_branch_grpo")


def shapes_branch_grpo_width() -> Run:
    """BranchGRPO with width pruning: after the last split only the best child of each parent is trained."""
    return _run(replace(_branch(), prune=Pruning("parent_top1")), "shapes_branch_grpo_width")


def shapes_branch_grpo_depth() -> Run:
    """BranchGRPO with depth pruning: two steps in a row are left out of training, and move on."""
    return _run(replace(_branch(), prune=Pruning(depth=2)), "shapes_branch_grpo_depth")


def shapes_branch_grpo_mix() -> Run:
    """BranchGRPO-Mix: noise and training only at the splits and in a window that slides."""
    window = SlidingWindow(width=2, idle=1)
    return _run(replace(_branch(), mix=window), "shapes_branch_grpo_mix")


def shapes_pref_grpo() -> Run:
    """Pref-GRPO: win rates from a judge built on the verifier, a little noisy and a little biased."""
    algorithm = PrefGRPO(steps=SHAPES_STEPS, group=8, clip=1e-3)
    return _run(algorithm, "shapes_pref_grpo", judge=ShapesJudge(noise=0.1, bias=0.05), batch=32)


def _mix() -> MixGRPO:
    return MixGRPO(SHAPES_WEIGHTS, steps=SHAPES_STEPS, group=16, window=SlidingWindow(width=4, idle=1), clip=1e-3)


def _branch() -> BranchGRPO:
    # Of 10 steps these are where the paper's (0, 3, 6, 9) of 20 are; Dance-SDE's η as for DanceGRPO here.
    return BranchGRPO(SHAPES_WEIGHTS, steps=SHAPES_STEPS, splits=(0, 1, 3, 4), eta=0.7, clip=1e-3)
