"""Where the shipped pipelines come from: parts are built, and then a transformer is trained from random weights."""

from dataclasses import replace

from ..algorithms.sft import SFT
from ..data.clips import MovingClips, MovingPrompts
from ..data.edits import EditImages, EditPrompts
from ..data.images import ShapesImages
from ..envs.shapes.world import TAGS
from ..experiment.config import Batches, Checkpoints, Logging, Optimization, Run
from ..experiment.stages import BuildParts, Chain
from ..models.adapters import Full
from ..models.flux2_klein import Flux2Klein
from ..models.sd3 import SD3
from .moving import TINY_WAN
from .shapes import FASTEST_PRECISION


def _run(parts: BuildParts) -> Run:
    """The tiny SD3 on rendered pictures of the shapes world."""
    return Run(
        SFT(dropout=0.1, shift=2.0),
        ShapesImages(count=150_000, tags=(*TAGS, "text"), empty_tokens=256),
        SD3(str(parts.model)),
        Full(),
        name="tiny_sd3_pretrain",
        batches=Batches(iterations=40_500, batch=128, chunk=64),
        optimization=Optimization(
            learning_rate=1.4e-3,
            lr_schedule="late",
            warmup=200,
            weight_decay=0.01,
            ema_decay=0.999,
            mixed_precision=FASTEST_PRECISION,
        ),
        logging=Logging(sample_every=1000),
        checkpoints=Checkpoints(save_every=500),
    )


def tiny_sd3_pretrain() -> Chain:
    """Train the tiny SD3 pipeline from scratch on rendered pictures of the shapes world."""
    parts = BuildParts("SD3", "tiny_sd3_parts")
    return Chain("tiny_sd3_pretrain", (parts, _run(parts)))


def tiny_wan_pretrain() -> Chain:
    """Train the tiny Wan pipeline from scratch on rendered clips of the moving world."""
    parts = BuildParts("Wan", "tiny_wan_parts", pictures=4000, text_steps=1000)
    run = _run(parts).with_options(
        data=MovingClips(count=40_000),
        model=replace(TINY_WAN, path=str(parts.model)),
        name="tiny_wan_pretrain",
        iterations=8000,
        batch=64,
        chunk=32,
        held_out=MovingPrompts(count=48),
        eval_every=1000,
        eval_rewards=("moving_strict", "moving_partial", "moving_smoothness"),
    )
    return Chain("tiny_wan_pretrain", (parts, run))


def tiny_klein_pretrain() -> Chain:
    """Train the tiny FLUX.2-klein pipeline from scratch on edited pictures of the editing world.

    First on cuttings of 32 px around what an edit changes, where an update takes a third of the time, and then on whole
    pictures.  Shapes that are added are blots then, so both come once more: cuttings where most requests add an object,
    with more of the training at high noise, and whole pictures.
    """
    parts = BuildParts("Flux2Klein", "tiny_klein_parts", pictures=6000, autoencoder_steps=5000, text_steps=800)
    cut = _run(parts).with_options(
        data=EditImages(count=40_000, tasks=("recolor", "remove", "add", "count", "retype"), cropped=True),
        model=Flux2Klein(str(parts.model), size=32, max_sequence_length=16),
        name="tiny_klein_cut",
        iterations=5000,
        batch=64,
        chunk=32,
    )
    whole = _on_whole_edits(cut, "tiny_klein_whole", 5000)
    adds = ("add", "count", "add", "recolor", "add", "count", "remove")
    drawn = cut.with_options(
        algorithm=SFT(dropout=0.1, shift=3.0),
        data=EditImages(count=42_000, tasks=adds, cropped=True),
        model=_trained(whole, 32),
        name="tiny_klein_drawn",
        iterations=8000,
        lr_schedule="constant",
        seed=1,
    )
    last = _on_whole_edits(drawn, "tiny_klein_pretrain", 3000).with_options(seed=2)
    return Chain("tiny_klein_pretrain", (parts, cut, whole, drawn, last), processes=2)


def _on_whole_edits(before: Run, name: str, iterations: int) -> Run:
    """Every task on pictures of 64 px, from what a run before it has trained."""
    return before.with_options(
        data=EditImages(count=24_000),
        model=_trained(before, 64),
        name=name,
        iterations=iterations,
        learning_rate=7e-4,
        lr_schedule="late",
        held_out=EditPrompts("test", count=70),
        eval_every=1000,
        eval_rewards=("edits_strict", "edits_done", "edits_preserved"),
    )


def _trained(run: Run, size: int) -> Flux2Klein:
    """The model that a run ends with, for pictures of that size."""
    return Flux2Klein(str(run.folder / "model"), size=size, max_sequence_length=16)
