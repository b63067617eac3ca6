"""Options that do nothing as the others are set: a run says them, and what it says is true."""

from dataclasses import replace

import pytest

from afterflow.algorithms.base import Reference
from afterflow.algorithms.branch_grpo import BranchGRPO
from afterflow.algorithms.dance_grpo import DanceGRPO
from afterflow.algorithms.ddpo import DDPO
from afterflow.algorithms.diffusion_nft import DiffusionNFT
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.flow_opd import FlowOPD
from afterflow.algorithms.mix_grpo import MixGRPO
from afterflow.algorithms.pruning import Pruning
from afterflow.algorithms.soar import SOAR
from afterflow.algorithms.windows import SlidingWindow
from afterflow.recipes import RECIPES

X = {"x": 1.0}


@pytest.mark.parametrize(
    "made, said",
    [
        (FlowGRPO(X, divergence=1e-7, clip=1e-3), "algorithm.clip = 0.001 has no use beside divergence"),
        (DanceGRPO(X, divergence=1e-7, clip=1e-3), "algorithm.clip = 0.001 has no use beside divergence"),
        (SOAR(kernel="cps"), "algorithm.kernel = cps has no use with paths = 1"),
        (SOAR(eta=0.3), "algorithm.eta = 0.3 has no use with paths = 1"),
        (SOAR(correction=0, points=2), "algorithm.points = 2 has no use with correction = 0, which is SFT"),
        (FlowOPD(clip=1e-3), "algorithm.clip = 0.001 has no use with gradient = pathwise"),
        (FlowOPD(beta=0, anchor="other"), "algorithm.anchor = other has no use with beta = 0"),
        (DDPO(X, min_count=4), "algorithm.min_count = 4 has no use with history = 0"),
        (DiffusionNFT(X, kernel="cps"), "algorithm.kernel = cps has no use with eta = 0, the ODE"),
        (DiffusionNFT(X, kl=0, reference=Reference("base")), "algorithm.reference = Reference(model='base', "),
        (BranchGRPO(X, prune=Pruning(extreme=2)), "algorithm.prune.extreme = 2 has no use with prune.width = none"),
        (BranchGRPO(X, prune=Pruning(every=5)), "algorithm.prune.every = 5 has no use with prune.depth = 0"),
        (
            MixGRPO(X, window=SlidingWindow(order="frozen", stride=2)),
            "algorithm.window.stride = 2 has no use with window.order = frozen",
        ),
        (
            MixGRPO(X, window=SlidingWindow(decay_from=2)),
            "algorithm.window.decay_from = 2 has no use with window.order = progressive",
        ),
    ],
)
def test_an_option_that_does_nothing_is_said(made, said):
    (remark,) = made.remarks
    assert remark.startswith(said)


@pytest.mark.parametrize(
    "made",
    [
        FlowGRPO(X, clip=1e-3),
        SOAR(paths=2, kernel="cps", eta=0.3),
        SOAR(points=2),
        FlowOPD(sampler="sde", gradient="full", clip=1e-3),
        FlowOPD(anchor="other"),
        DDPO(X, history=32, min_count=4),
        DiffusionNFT(X, eta=0.5, solver="euler", kernel="cps"),
        BranchGRPO(X, prune=Pruning(width="extreme", extreme=2)),
        BranchGRPO(X, prune=Pruning(depth=2, every=5, towards="earlier")),
        MixGRPO(X, window=SlidingWindow(order="exp_decay", decay_from=2)),
        MixGRPO(X, window=SlidingWindow(stride=2)),
    ],
)
def test_an_option_that_acts_is_not(made):
    assert made.remarks == ()


def test_what_is_said_to_do_nothing_does_nothing():
    """Windows and prunings with other values of their unused options choose the same steps."""
    for window in (SlidingWindow(order="frozen"), SlidingWindow(order="linear_decay"), SlidingWindow()):
        others = {"every": 3, "stride": 2, "roll_back": True, "decay_rate": 1.0, "decay_from": 1}
        other = replace(window, **{name: others[name] for name in window.unused()})
        assert [window.covered(i, 20, None) for i in range(80)] == [other.covered(i, 20, None) for i in range(80)]
    for prune in (Pruning(), Pruning(every=2, towards="earlier", extreme=1)):
        assert not any(list(prune.steps(i, 20, (0, 3))) for i in range(20))


def test_no_recipe_sets_what_does_nothing():
    said = {name: run.algorithm.remarks for name, make in RECIPES.items() if hasattr(run := make(), "algorithm")}
    assert {name: remarks for name, remarks in said.items() if any("has no use" in remark for remark in remarks)} == {}
