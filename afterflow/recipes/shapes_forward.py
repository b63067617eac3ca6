"""The forward-process methods on the shapes world: no SDE, no log-probabilities; finished images are noised again.

The same model, prompts and rewards as the other methods have, and 10 denoising steps.  Times an image are fewer than
published: on this small model an iteration with half of them takes less time and learns as much.
"""

from ..algorithms.awm import AWM
from ..algorithms.base import Reference
from ..algorithms.crd import CRD
from ..algorithms.dgpo import DGPO
from ..algorithms.diffusion_nft import DiffusionNFT
from ..algorithms.flow_awr import FlowAWR
from ..algorithms.online_dpo import OnlineDPO
from ..algorithms.v_grpo import VGRPO
from ..experiment.config import Run
from ..sampling.training_times import TrainingTimes
from .shapes_methods import SHAPES_STEPS, SHAPES_WEIGHTS, _run

HALF = TrainingTimes(4)


def shapes_nft() -> Run:
    """DiffusionNFT: images above the average pull one way, those below it the other."""
    return _run(DiffusionNFT(SHAPES_WEIGHTS, steps=SHAPES_STEPS, group=16, times=HALF), "shapes_nft")


def shapes_awm() -> Run:
    """AWM: the flow-matching loss as a log-likelihood, weighted by advantages."""
    times = TrainingTimes(4, "strata", (0.1, 0.9), "batch")
    return _run(AWM(SHAPES_WEIGHTS, steps=SHAPES_STEPS, group=16, times=times), "shapes_awm")


def shapes_v_grpo() -> Run:
    """V-GRPO: variational likelihoods at times and noise that a group shares."""
    return _run(VGRPO(SHAPES_WEIGHTS, steps=SHAPES_STEPS, group=16), "shapes_v_grpo")


def shapes_flow_awr() -> Run:
    """FlowAWR: regression to the old policy's velocity, moved towards good images."""
    return _run(FlowAWR(SHAPES_WEIGHTS, steps=SHAPES_STEPS, group=16, times=HALF), "shapes_flow_awr")


def shapes_dgpo() -> Run:
    """DGPO: DPO's idea for groups, at the first steps' times."""
    return _run(DGPO(SHAPES_WEIGHTS, steps=SHAPES_STEPS, group=16), "shapes_dgpo")


def shapes_online_dpo() -> Run:
    """Online DPO: the best image of a group against its worst, in every iteration."""
    return _run(OnlineDPO(SHAPES_WEIGHTS, steps=SHAPES_STEPS, group=16), "shapes_online_dpo")


def shapes_crd() -> Run:
    """CRD: what the policy gained at an image shall be its reward."""
    times, base = TrainingTimes(4, shared="group"), Reference("base")  # the run has no guidance to distil
    return _run(CRD(SHAPES_WEIGHTS, steps=SHAPES_STEPS, group=16, times=times, reference=base), "shapes_crd")
