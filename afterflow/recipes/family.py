"""Every method of the family on the shapes world: the same model, prompts, reward and batch of images.

What differs is what the papers differ in.  All train without guidance, as Flow-GRPO's no-CFG recipes do, and take 10
denoising steps; the settings are those of the papers, scaled to that where they count steps.
"""

from dataclasses import replace

from ..advantages import Blend
from ..algorithms.base import OnPolicy
from ..algorithms.branch_grpo import BranchGRPO
from ..algorithms.dance_grpo import DanceGRPO
from ..algorithms.ddpo import DDPO
from ..algorithms.flow_grpo import FlowGRPO
from ..algorithms.mix_grpo import MixGRPO
from ..algorithms.pref_grpo import PrefGRPO
from ..algorithms.windows import SlidingWindow
from ..flow import LinearShift
from ..rewards.judges import ShapesJudge
from ..run import Run
from .shapes import shapes_flow_grpo

WEIGHTS = {"shapes_strict": 0.5, "shapes_partial": 0.5}
STEPS = 10


def _run(algorithm: OnPolicy, name: str, **options: object) -> Run:
    return replace(shapes_flow_grpo(), algorithm=algorithm, name=name, **options)  # type: ignore[arg-type]


def shapes_ddpo() -> Run:
    """DDPO: every step by the SDE, advantages over the whole batch."""
    return _run(DDPO(WEIGHTS, steps=STEPS, group=16, clip=1e-3), "shapes_ddpo")


def shapes_flow_grpo_full() -> Run:
    """Flow-GRPO as first published: noise and training on all steps but the last."""
    return _run(FlowGRPO(WEIGHTS, steps=STEPS, group=16, beta=0.0, clip=1e-3), "shapes_flow_grpo_full")


def shapes_flow_grpo_cps() -> Run:
    """Flow-GRPO-Fast with coefficient-preserving sampling in a window that moves at random."""
    algorithm = FlowGRPO(WEIGHTS, steps=STEPS, group=16, kernel="cps", eta=0.8, window=3, beta=0.0, clip=1e-3)
    return _run(algorithm, "shapes_flow_grpo_cps")


def shapes_flow_grpo_guard() -> Run:
    """Flow-GRPO with GRPO-Guard's ratio and weighting of steps."""
    algorithm = FlowGRPO(WEIGHTS, steps=STEPS, group=16, beta=0.0, guard=True, clip=2e-4)
    return _run(algorithm, "shapes_flow_grpo_guard")


def shapes_dance_grpo() -> Run:
    """DanceGRPO: constant noise, one start for a group, a random 60 % of the steps."""
    return _run(DanceGRPO(WEIGHTS, steps=STEPS, group=16, clip=1e-3), "shapes_dance_grpo")


def shapes_mix_grpo() -> Run:
    """MixGRPO: noise only in a window that slides over the steps."""
    return _run(_mix(), "shapes_mix_grpo")


def shapes_mix_grpo_flash() -> Run:
    """MixGRPO-Flash: after the window, fewer steps by a solver of second order."""
    return _run(replace(_mix(), flash=0.4), "shapes_mix_grpo_flash")


def shapes_branch_grpo() -> Run:
    """BranchGRPO: 16 leaves of a tree for each prompt, which share their ancestors' steps."""
    return _run(_branch(), "shapes_branch_grpo")


def shapes_branch_grpo_pruned() -> Run:
    """BranchGRPO with width pruning: after the last split only the best child of each parent is trained."""
    return _run(replace(_branch(), prune_width="parent_top1"), "shapes_branch_grpo_pruned")


def shapes_pref_grpo() -> Run:
    """Pref-GRPO: win rates from a judge built on the verifier, a little noisy and a little biased."""
    algorithm = PrefGRPO(steps=STEPS, group=8, clip=2e-4)
    return _run(algorithm, "shapes_pref_grpo", judge=ShapesJudge(noise=0.1, bias=0.05), batch=32)


def _mix() -> MixGRPO:
    window = SlidingWindow(width=4, every=25, idle=1)
    return MixGRPO(WEIGHTS, steps=STEPS, group=16, window=window, clip=1e-3, blend=Blend("z_sum"))


def _branch() -> BranchGRPO:
    return BranchGRPO(WEIGHTS, steps=STEPS, splits=(0, 1, 3, 4), schedule=LinearShift(), clip=1e-3, eta=0.7)
