"""FLUX.2-klein and Z-Image, their base models and the distilled ones, each for one GPU.

Settings of the base models are those of Flow-Factory's examples for DiffusionNFT: klein at 384 px with 8 steps and
guidance 4, Z-Image at 512 px with 10 steps and its pipeline's guidance 4, which is 5 here.  An iteration has 8 prompts.
Rollouts have the schedule of the model's own pipeline.

Distilled models draw in 4 (klein) and 8 (Z-Image-Turbo) steps without guidance, and are trained so.  Steps are long
there, so that likelihoods move far with small weights: a ratio is clipped at 1e-5.  DiffusionNFT without a KL was seen
to blur them.
"""

from dataclasses import replace

from ..algorithms.diffusion_nft import DiffusionNFT
from ..algorithms.flow_grpo import FlowGRPO
from ..experiment.config import Batches, Checkpoints, Evaluation, Logging, Optimization, Run
from ..models.adapters import LoRA
from ..models.flux2_klein import Flux2Klein
from ..models.z_image import ZImage
from ..sampling.training_times import TrainingTimes
from .papers_forward import PICKSCORE, PICKSCORE_PROMPTS

KLEIN = Flux2Klein("black-forest-labs/FLUX.2-klein-base-4B", dtype="bfloat16", size=384)
KLEIN_DISTILLED = replace(KLEIN, path="black-forest-labs/FLUX.2-klein-4B")
Z_IMAGE = ZImage("Tongyi-MAI/Z-Image", dtype="bfloat16", size=512)
Z_IMAGE_TURBO = replace(Z_IMAGE, path="Tongyi-MAI/Z-Image-Turbo")
FIRST_HALF = TrainingTimes(2, "segments", (0.0, 0.5))


def klein_nft() -> Run:
    """DiffusionNFT on FLUX.2-klein base 4B: what people prefer, by PickScore."""
    algorithm = DiffusionNFT(PICKSCORE, steps=8, schedule=None, beta=0.1, times=FIRST_HALF)
    return _run("klein_nft", algorithm, KLEIN, guidance=4.0, rate=1e-4)


def klein_flow_grpo() -> Run:
    """Flow-GRPO on FLUX.2-klein base 4B: what people prefer, by PickScore."""
    algorithm = FlowGRPO(PICKSCORE, steps=8, clip=1e-5, schedule=None)
    return _run("klein_flow_grpo", algorithm, KLEIN, guidance=4.0, rate=1e-4)


def klein_distilled_nft() -> Run:
    """DiffusionNFT on FLUX.2-klein 4B, which draws in four steps without guidance; a KL keeps it sharp."""
    algorithm = DiffusionNFT(PICKSCORE, steps=4, schedule=None, beta=0.1, times=FIRST_HALF, kl=0.01)
    return _run("klein_distilled_nft", algorithm, KLEIN_DISTILLED, guidance=1.0, rate=1e-4)


def klein_distilled_flow_grpo() -> Run:
    """Flow-GRPO on FLUX.2-klein 4B, in its own four steps."""
    algorithm = FlowGRPO(PICKSCORE, steps=4, clip=1e-5, schedule=None)
    return _run("klein_distilled_flow_grpo", algorithm, KLEIN_DISTILLED, guidance=1.0, rate=1e-4)


def z_image_nft() -> Run:
    """DiffusionNFT on Z-Image: what people prefer, by PickScore."""
    algorithm = DiffusionNFT(PICKSCORE, steps=10, schedule=None, group=16, times=FIRST_HALF)
    return _run("z_image_nft", algorithm, Z_IMAGE, guidance=5.0, rate=3e-4)


def z_image_turbo_nft() -> Run:
    """DiffusionNFT on Z-Image-Turbo, which draws in eight steps without guidance; a KL keeps it sharp."""
    algorithm = DiffusionNFT(PICKSCORE, steps=8, schedule=None, times=FIRST_HALF, kl=0.01)
    return _run("z_image_turbo_nft", algorithm, Z_IMAGE_TURBO, guidance=1.0, rate=1e-4)


def z_image_turbo_flow_grpo() -> Run:
    """Flow-GRPO on Z-Image-Turbo, in its own eight steps."""
    algorithm = FlowGRPO(PICKSCORE, steps=8, clip=1e-5, schedule=None)
    return _run("z_image_turbo_flow_grpo", algorithm, Z_IMAGE_TURBO, guidance=1.0, rate=1e-4)


def _run(
    name: str, algorithm: FlowGRPO | DiffusionNFT, model: Flux2Klein | ZImage, guidance: float, rate: float
) -> Run:
    return Run(
        algorithm,
        PICKSCORE_PROMPTS,
        model,
        LoRA(rank=64, alpha=128),
        name=name,
        batches=Batches(iterations=500, batch=8, chunk=8, guidance_scale=guidance),
        optimization=Optimization(learning_rate=rate, mixed_precision="bf16", gradient_checkpointing=True),
        evaluation=Evaluation(
            held_out_share=0.02, eval_every=50, eval_rewards=("clipscore",), inference_steps=algorithm.steps
        ),
        logging=Logging(sample_every=50),
        checkpoints=Checkpoints(save_every=50),
    )
