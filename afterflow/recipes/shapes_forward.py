"""The forward-process methods on the shapes world: no SDE, no log-probabilities; finished images are noised again.

The same model, prompts and rewards as the other methods have.  Rollouts have 6 steps of a second-order solver, and an
image is noised twice, to times of the first steps, where what is in a picture is decided.  More steps and times cost as
much as more iterations do, and teach less.  An iteration has half as many images as theirs.

The learning rate falls by half a cosine.  At a constant one DiffusionNFT, V-GRPO and FlowAWR collapse after 60 to 100
iterations, with each of three seeds (bench/results/forward_collapse.json).

A KL keeps images clean.  At a weight of 1e-4 AWM lost .51 of fidelity, and V-GRPO .24 at .05 (seed 0).

DiffusionNFT and FlowAWR draw times and noise for each image in their papers.  Here the images of a prompt share them,
as with V-GRPO, so that they differ by what they show.  In 60 iterations (seed 0) DiffusionNFT then gained .151 in
strict, and .105 as published.  Its fidelity fell by .10; with a KL of weight .1 it gained .163 and lost .013.
"""

from dataclasses import replace

from ..algorithms.awm import AWM
from ..algorithms.base import OnPolicy, Reference
from ..algorithms.crd import CRD
from ..algorithms.dgpo import DGPO
from ..algorithms.diffusion_nft import DiffusionNFT
from ..algorithms.flow_awr import FlowAWR
from ..algorithms.online_dpo import OnlineDPO
from ..algorithms.v_grpo import VGRPO
from ..experiment.config import Run
from ..sampling.training_times import TrainingTimes
from .shapes_methods import SHAPES_WEIGHTS, _run

EARLY = TrainingTimes(2, "segments", (0.0, 0.7), "group")
STEPS = 6


def _forward(algorithm: OnPolicy, name: str) -> Run:
    return _run(algorithm, name, batch=8, iterations=115, learning_rate=1e-3, lr_schedule="cosine")


def shapes_nft() -> Run:
    """DiffusionNFT: images above the average pull one way, those below it the other."""
    return _forward(
        DiffusionNFT(SHAPES_WEIGHTS, steps=STEPS, group=16, times=EARLY, noise="group", kl=0.1), "shapes_nft"
    )


def shapes_awm() -> Run:
    """AWM: the flow-matching loss as a log-likelihood, weighted by advantages."""
    times = replace(EARLY, shared="batch")
    return _forward(AWM(SHAPES_WEIGHTS, steps=STEPS, group=16, times=times, kl=0.1), "shapes_awm")


def shapes_v_grpo() -> Run:
    """V-GRPO: variational likelihoods at times and noise that a group shares."""
    return _forward(VGRPO(SHAPES_WEIGHTS, steps=STEPS, group=16, times=EARLY, kl=0.1), "shapes_v_grpo")


def shapes_flow_awr() -> Run:
    """FlowAWR: regression to the old policy's velocity, moved towards good images."""
    return _forward(
        FlowAWR(SHAPES_WEIGHTS, steps=STEPS, group=16, times=EARLY, noise="group", kl=0.1), "shapes_flow_awr"
    )


def shapes_dgpo() -> Run:
    """DGPO: DPO's idea for groups, at the first steps' times."""
    return _forward(DGPO(SHAPES_WEIGHTS, steps=STEPS, group=16, times=EARLY), "shapes_dgpo")


def shapes_online_dpo() -> Run:
    """Online DPO: the best image of a group against its worst, in every iteration."""
    return _forward(OnlineDPO(SHAPES_WEIGHTS, steps=STEPS, group=16, times=EARLY), "shapes_online_dpo")


def shapes_crd() -> Run:
    """CRD: what the policy gained at an image shall be its reward."""
    base = Reference("base")  # the run has no guidance to distil
    return _forward(CRD(SHAPES_WEIGHTS, steps=STEPS, group=16, times=EARLY, reference=base), "shapes_crd")
