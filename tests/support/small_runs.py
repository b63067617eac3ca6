"""Every method in two iterations of a tiny pipeline, and which of many trainings a run of the tests does."""

import os
from dataclasses import replace
from datetime import date

from afterflow.algorithms.awm import AWM
from afterflow.algorithms.branch_grpo import BranchGRPO
from afterflow.algorithms.crd import CRD
from afterflow.algorithms.dance_grpo import DanceGRPO
from afterflow.algorithms.ddpo import DDPO
from afterflow.algorithms.dgpo import DGPO
from afterflow.algorithms.diffusion_nft import DiffusionNFT
from afterflow.algorithms.dpo import DPO
from afterflow.algorithms.flow_awr import FlowAWR
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.flow_opd import FlowOPD
from afterflow.algorithms.lag import Lag
from afterflow.algorithms.mix_grpo import MixGRPO
from afterflow.algorithms.online_dpo import OnlineDPO
from afterflow.algorithms.pref_grpo import PrefGRPO
from afterflow.algorithms.sft import SFT
from afterflow.algorithms.soar import SOAR
from afterflow.algorithms.v_grpo import VGRPO
from afterflow.algorithms.windows import SlidingWindow
from afterflow.data.images import ShapesImages
from afterflow.data.pairs import SampledPairs
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment.config import Run
from afterflow.models.adapters import LoRA, Teacher
from afterflow.models.wan import Wan
from afterflow.rewards.shapes_judge import ShapesJudge
from afterflow.sampling.training_times import TrainingTimes

STEPS = 4
JPEG = {"jpeg_compressibility": 1.0}
GUIDED = Teacher("guided", None, ("counting",), guidance_scale=3.0)
WINDOW = SlidingWindow(width=2)
METHODS = {
    "sft": SFT(),
    "soar": SOAR(points=1),
    "dpo": DPO(),
    "ddpo": DDPO(JPEG, steps=STEPS, group=2),
    "flow_grpo": FlowGRPO(JPEG, steps=STEPS, group=2, beta=0.01),
    "dance_grpo": DanceGRPO(JPEG, steps=STEPS, group=2),
    "mix_grpo": MixGRPO(JPEG, steps=STEPS, group=2, window=WINDOW, flash=0.5),
    "branch_grpo": BranchGRPO(JPEG, steps=STEPS, splits=(0, 1)),
    "pref_grpo": PrefGRPO(steps=STEPS, group=4),
    "flow_opd": FlowOPD(steps=STEPS, group=2),
    "nft": DiffusionNFT(JPEG, steps=STEPS, group=2, lag=Lag(start=0.5)),
    "awm": AWM(JPEG, steps=STEPS, group=2, times=TrainingTimes(2, "strata", shared="batch")),
    "v_grpo": VGRPO(JPEG, steps=STEPS, group=2, times=TrainingTimes(2, "segments", shared="group")),
    "flow_awr": FlowAWR(JPEG, steps=STEPS, group=2, kl=0.0),
    "dgpo": DGPO(JPEG, steps=STEPS, group=2, times=TrainingTimes(2, shared="group"), beta=1.0),
    "crd": CRD(JPEG, steps=STEPS, group=2),
    "online_dpo": OnlineDPO(JPEG, steps=STEPS, group=2, times=TrainingTimes(2, shared="group")),
}


def frames_of(method, config):
    """The configuration, of one frame where a model of clips learns from images."""
    images = isinstance(METHODS[method], SFT | SOAR) and isinstance(config, Wan)
    return replace(config, frames=1) if images else config


def small_run(method, config, prompts=None, images=None, **options):
    """Two iterations of a method on a pipeline, of two prompts or images each."""
    prompts = prompts or ShapesPrompts(count=4, tags=("counting",))
    if isinstance(METHODS[method], SFT | SOAR):
        data = images or ShapesImages(count=4, tags=("counting",))
    else:
        data = SampledPairs(prompts, JPEG, per_prompt=2, steps=2) if method == "dpo" else prompts
    run = Run(
        METHODS[method],
        data,
        config,
        LoRA(rank=2, alpha=4),
        teachers=(GUIDED,) if method == "flow_opd" else (),
        judge=ShapesJudge(noise=1.0) if method == "pref_grpo" else None,
    )
    return run.with_options(**dict(iterations=2, batch=2, chunk=4, learning_rate=1e-2, sample_every=0) | options)


def in_this_half(number):
    """Whether this run does the training of this number: half of them, and the other half every other day.

    AFTERFLOW_MATRIX=0 and =1 name a half, and =all does both.
    """
    return os.environ.get("AFTERFLOW_MATRIX", str(date.today().toordinal() % 2)) in ("all", str(number % 2))
