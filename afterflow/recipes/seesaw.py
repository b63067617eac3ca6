"""Two tasks in conflict on the shapes world, which is what Flow-OPD was made for, and the ways to learn both.

Composition: prompts that count or name colours, rewarded by the verifier.  Style: prompts that do neither, rewarded for
one small colourless object (`shapes_style`).  Training for one makes pictures of the other's prompts worse.  A LoRA of
rank 2 and minutes of training leave little room to tell the two kinds of prompt apart.

All but the student of Flow-OPD train by DiffusionNFT, which reaches Flow-GRPO's score in a third of its time here
(docs/claims.md).  Iterations are counted by seconds, and shares moved, in bench/seesaw.py.
"""

from dataclasses import replace

from ..algorithms.flow_opd import FlowOPD
from ..data.prompts import ShapesPrompts
from ..experiment.config import Run
from ..experiment.stages import Chain, Merge
from ..models.adapters import LoRA, Teacher
from ..rewards.shapes import STYLE_TAGS
from .shapes_forward import STEPS, shapes_nft

COMPOSITION_TAGS = ("counting", "colors", "color_attr")
_ROUTED = {"shapes_style_or_verdict": 1.0}
RANK = 2
SEESAW_TASKS = {"composition": COMPOSITION_TAGS, "style": STYLE_TAGS}
"""Task → the tags of its prompts."""


def shapes_seesaw_prompts() -> Run:
    """Both tasks at once, each prompt with the reward of its own task."""
    return _run("shapes_seesaw_prompts", _ROUTED, (*COMPOSITION_TAGS, *STYLE_TAGS), 130)


def shapes_seesaw_rewards() -> Run:
    """Both tasks at once, every prompt with a sum of both rewards: the seesaw."""
    weights = {"shapes_strict": 0.25, "shapes_partial": 0.25, "shapes_style": 0.5}
    return _run("shapes_seesaw_rewards", weights, (*COMPOSITION_TAGS, *STYLE_TAGS), 130)


def shapes_seesaw_cascade() -> Chain:
    """First composition, then style from there."""
    first = _teacher("composition")
    second = _run("shapes_seesaw_cascade", _ROUTED, STYLE_TAGS, 80)
    second = replace(second, tune=replace(_LORA, start=f"runs/{first.name}/lora"))
    return Chain("shapes_seesaw_cascade", (first, second))


def shapes_seesaw_opd() -> Chain:
    """A specialist for each task, their merge at the same rank, and Flow-OPD from it."""
    teachers = tuple(_teacher(task) for task in SEESAW_TASKS)
    merge = Merge(tuple(f"runs/{run.name}/lora" for run in teachers), name="shapes_seesaw_merge", rank=RANK)
    student = shapes_seesaw_prompts().with_options(
        algorithm=FlowOPD(_ROUTED, steps=STEPS, group=4),
        name="shapes_seesaw_opd",
        teachers=tuple(
            Teacher(task, f"runs/{run.name}/lora", tags) for run, (task, tags) in zip(teachers, SEESAW_TASKS.items())
        ),
        tune=LoRA(rank=RANK, alpha=RANK, start=f"runs/{merge.name}/lora"),
        iterations=40,
        batch=8,
        learning_rate=4e-3,
    )
    return Chain("shapes_seesaw_opd", (*teachers, merge, student))


_LORA = LoRA(rank=RANK, alpha=2 * RANK)


def _teacher(task: str) -> Run:
    return _run(f"shapes_seesaw_teacher_{task}", _ROUTED, SEESAW_TASKS[task], 50)


def _run(name: str, weights: dict[str, float], tags: tuple[str, ...], iterations: int) -> Run:
    """shapes_nft on some tags, at a low rank, without measurements on the way."""
    nft = shapes_nft()
    run = nft.with_options(
        algorithm=replace(nft.algorithm, weights=weights),
        data=ShapesPrompts(tags=tags),
        tune=_LORA,
        held_out=None,
        eval_every=0,
        eval_rewards=(),
    )
    return run.with_options(name=name, iterations=iterations, batch=4, learning_rate=4e-3)
