"""The tiny pipeline learns from pictures of the shapes world: SFT, its control, SOAR, and DPO on pairs."""

from dataclasses import replace

from ..algorithms.dpo import DPO
from ..algorithms.sft import SFT
from ..algorithms.soar import SOAR
from ..data.images import ImageFolder, ShapesImages
from ..data.pairs import SampledPairs
from ..data.prompts import ShapesPrompts
from ..envs.shapes.world import TAGS
from ..experiment.config import Batches, Distribution, Evaluation, Logging, Optimization, Run
from ..experiment.stages import Chain, Samples
from ..models.adapters import LoRA, Teacher
from ..models.sd3 import SD3
from .shapes import FASTEST_PRECISION

GUIDANCE = 2.5
"""Guidance scale of the shipped pipeline.  The shift of times is its sampler's, 3."""


def shapes_sft() -> Run:
    """Fine-tune the tiny pipeline on rendered pictures: the line from image to noise, and nothing else."""
    return Run(
        SFT(),
        ShapesImages(count=20_000, tags=TAGS[1:]),
        SD3("tiny"),
        LoRA(),
        name="shapes_sft",
        batches=Batches(iterations=200, batch=64, guidance_scale=GUIDANCE),
        optimization=Optimization(learning_rate=3e-4, mixed_precision=FASTEST_PRECISION),
        evaluation=Evaluation(
            held_out=ShapesPrompts("test", count=60, tags=TAGS[1:]),
            eval_every=50,
            eval_images=4,
            eval_rewards=("shapes_strict", "shapes_partial", "shapes_fidelity"),
        ),
        distribution=Distribution(threads=1),
        logging=Logging(sample_every=100),
    )


def shapes_sft_matched() -> Run:
    """The control of SOAR: as many supervised states for each image, all on the line."""
    return replace(shapes_sft(), algorithm=SFT(num_noises=3), name="shapes_sft_matched")


def shapes_soar() -> Run:
    """SOAR with what suits a LoRA: a small weight and few points."""
    algorithm = SOAR(points=2, correction=0.2, rollout_guidance=GUIDANCE)
    return replace(shapes_sft(), algorithm=algorithm, name="shapes_soar")


def shapes_soar_paper() -> Run:
    """SOAR as published: six points that count as much as the image."""
    algorithm = SOAR(rollout_guidance=GUIDANCE)
    return replace(shapes_sft(), algorithm=algorithm, name="shapes_soar_paper")


def shapes_dpo() -> Run:
    """DPO on pairs of the tiny pipeline's own pictures, the best and the worst of eight by the verifier."""
    data = SampledPairs(ShapesPrompts(count=1500, tags=TAGS[1:]), {"shapes_partial": 1.0})
    run = shapes_sft()
    return run.with_options(
        algorithm=DPO(beta=200.0),
        data=data,
        evaluation=run.evaluation,
        name="shapes_dpo",
        iterations=400,
        eval_every=100,
        guidance_scale=1.0,
    )


def shapes_curated_sft() -> Chain:
    """SFT on what the base draws under guidance, of which the verifier keeps what is right."""
    return _curated(shapes_sft(), "shapes_curated_sft")


def shapes_curated_sft_matched() -> Chain:
    """The same with as many supervised states for each image as SOAR has."""
    return _curated(shapes_sft_matched(), "shapes_curated_sft_matched")


def shapes_curated_soar() -> Chain:
    """SOAR on the same pictures, rolled out as the student is drawn."""
    return _curated(_unguided(shapes_soar()), "shapes_curated_soar")


def shapes_curated_soar_paper() -> Chain:
    """SOAR as published on the same pictures."""
    return _curated(_unguided(shapes_soar_paper()), "shapes_curated_soar_paper")


def _unguided(run: Run) -> Run:
    assert isinstance(run.algorithm, SOAR)
    return replace(run, algorithm=replace(run.algorithm, rollout_guidance=1.0))


def _curated(run: Run, name: str) -> Chain:
    """The student draws without guidance, as its rewarded rivals do."""
    guided = Teacher("guided", None, TAGS[1:], guidance_scale=GUIDANCE)
    samples = Samples(SD3("tiny"), (guided,), ShapesPrompts(count=1500, tags=TAGS[1:]), "shapes_curated")
    data = ImageFolder(str(samples.folder / "images"), caption="caption", min_reward={"shapes_strict": 1.0})
    unguided = {"guidance_scale": 1.0, "learning_rate": 1e-3}
    student = run.with_options(data=data, evaluation=run.evaluation, name=name, **unguided)
    return Chain(name, (samples, student.with_options(iterations=400, eval_every=100)))
