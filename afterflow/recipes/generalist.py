"""From specialists to one generalist on the shapes world, and what to compare it with.

Each task is rewarded by the verifier alone, without guidance.  Teachers are kept in folders of their own name, so that
chains share them: a stage that is there already is not trained again.
"""

from dataclasses import replace

from ..algorithms.flow_grpo import FlowGRPO
from ..algorithms.flow_opd import FlowOPD
from ..algorithms.sft import SFT
from ..data.images import ImageFolder
from ..data.prompts import ShapesPrompts
from ..experiment.config import Run
from ..experiment.stages import Chain, Merge, Samples
from ..models.adapters import LoRA, Teacher
from .shapes import shapes_flow_grpo
from .shapes_forward import shapes_nft
from .shapes_methods import SHAPES_WEIGHTS, shapes_flow_grpo_guard

TASKS = {
    "counting": ("counting",),
    "relations": ("two_object", "position"),
    "binding": ("colors", "color_attr"),
    "text": ("text",),
}
TASK_TAGS = tuple(tag for tags in TASKS.values() for tag in tags)
ITERATIONS = 50
"""Iterations of every teacher, about five minutes."""
NFT_ITERATIONS = 125
"""Iterations of a teacher by DiffusionNFT, whose seconds are those of the others."""


def _run(name: str, tags: tuple[str, ...], iterations: int = ITERATIONS) -> Run:
    """shapes_flow_grpo on some tags."""
    held_out = ShapesPrompts("test", count=20 * len(tags), tags=tags)
    data = ShapesPrompts(tags=tags)
    run = shapes_flow_grpo().with_options(data=data, held_out=held_out, learning_rate=1.5e-3)
    return run.with_options(name=name, iterations=iterations, eval_every=iterations // 4)


def shapes_teacher_counting() -> Run:
    """A specialist that counts."""
    return _run("shapes_teacher_counting", TASKS["counting"])


def shapes_teacher_relations() -> Run:
    """A specialist that places two objects."""
    return _run("shapes_teacher_relations", TASKS["relations"])


def shapes_teacher_binding() -> Run:
    """A specialist that gives objects their colours."""
    return _run("shapes_teacher_binding", TASKS["binding"])


def shapes_teacher_text() -> Run:
    """A specialist that spells signs."""
    return _run("shapes_teacher_text", TASKS["text"])


def shapes_teacher_fidelity() -> Run:
    """A specialist for clean pictures, whatever they show: the anchor that Flow-OPD's paper chose."""
    run = _run("shapes_teacher_fidelity", TASK_TAGS)
    assert isinstance(run.algorithm, FlowGRPO)
    return replace(run, algorithm=replace(run.algorithm, weights={"shapes_fidelity": 1.0}))


def shapes_generalist() -> Chain:
    """Four specialists, their merge as a cold start, and Flow-OPD from it: one student for all tasks."""
    return Chain("shapes_generalist", (*_teachers(), _merge(), _student("shapes_generalist", _merge())))


def shapes_generalist_no_anchor() -> Chain:
    """The same without an anchor."""
    student = _student("shapes_generalist_no_anchor", _merge())
    student = replace(student, algorithm=replace(student.algorithm, beta=0.0))  # type: ignore[call-arg]
    return Chain("shapes_generalist_no_anchor", (*_teachers(), _merge(), student))


def shapes_generalist_quality_anchor() -> Chain:
    """The same near to a teacher of fidelity instead of the base, on every sample."""
    student, quality = _student("shapes_generalist_quality_anchor", _merge()), shapes_teacher_fidelity()
    assert isinstance(student.algorithm, FlowOPD)
    anchor = Teacher("fidelity", f"runs/{quality.name}/lora")
    algorithm = replace(student.algorithm, anchor=anchor.name)
    student = replace(student, algorithm=algorithm, teachers=(*student.teachers, anchor))
    return Chain("shapes_generalist_quality_anchor", (*_teachers(), quality, _merge(), student))


def shapes_generalist_from_base() -> Chain:
    """Flow-OPD without a cold start."""
    return Chain("shapes_generalist_from_base", (*_teachers(), _student("shapes_generalist_from_base", None)))


def shapes_merge_only() -> Chain:
    """The four specialists merged, and nothing more."""
    return Chain("shapes_merge_only", (*_teachers(), _merge()))


def shapes_generalist_nft() -> Chain:
    """The strongest chain known, in small: NFT teachers of composition, a Guard teacher of text, and distillation.

    As DiffusionOPD has it (arXiv:2605.15055): rollouts of the ODE, distances of the step's means, and no anchor.
    """
    teachers = (*(_nft_teacher(task) for task in ("counting", "relations", "binding")), _guard_teacher())
    folders = {task: f"runs/{run.name}/lora" for task, run in zip(TASKS, teachers)}
    specialists = tuple(Teacher(task, folders[task], tags) for task, tags in TASKS.items())
    merge = Merge(tuple(folders.values()), name="shapes_merge_nft", rank=32)
    student = replace(_student("shapes_generalist_nft", merge), teachers=specialists)
    student = replace(student, algorithm=replace(student.algorithm, beta=0.0))  # type: ignore[call-arg]
    return Chain("shapes_generalist_nft", (*teachers, merge, student))


def shapes_mixed_nft() -> Run:
    """DiffusionNFT on the prompts of all tasks at once, for as long as the chain's teachers and student.

    At a teacher's rate so long a run would collapse.  At this one it had not after 288 iterations, when it was stopped.
    """
    return _nft_run("shapes_mixed_nft", TASK_TAGS, 5 * NFT_ITERATIONS, 2e-4)


def shapes_sft_teachers() -> Chain:
    """SFT on what the specialists draw, instead of distillation on what the student draws."""
    prompts = ShapesPrompts(tags=TASK_TAGS)
    samples = Samples(shapes_flow_grpo().model, _specialists(), prompts, "shapes_teacher_samples")  # type: ignore[arg-type]
    student = shapes_flow_grpo().with_options(
        algorithm=SFT(),
        data=ImageFolder(str(samples.folder / "images"), caption="caption"),
        name="shapes_sft_teachers",
        iterations=200,
        batch=64,
        learning_rate=3e-4,
        held_out=ShapesPrompts("test", count=120, tags=TASK_TAGS),
        eval_every=50,
        eval_rewards=tuple(SHAPES_WEIGHTS),
    )
    return Chain("shapes_sft_teachers", (*_teachers(), samples, student))


def shapes_mixed_grpo() -> Run:
    """The seesaw: Flow-GRPO on the prompts of all tasks at once, for as long as four specialists and their student."""
    return _run("shapes_mixed_grpo", TASK_TAGS, 5 * ITERATIONS)


def shapes_mixed_grpo_turns() -> Run:
    """The same by turns: three iterations of composition for each of text, as Flow-OPD's baseline has them."""
    turns = {tag: 3 for tag in TASK_TAGS if tag != "text"} | {"text": 5}
    return shapes_mixed_grpo().with_options(name="shapes_mixed_grpo_turns", tag_schedule=turns)


def shapes_cascade() -> Chain:
    """One task after another, each going on from the last one's LoRA."""
    stages, start = [], None
    for task, tags in TASKS.items():
        run = _run(f"shapes_cascade_{task}", tags)
        tune = replace(run.tune, start=start)  # type: ignore[call-arg]
        stages.append(replace(run, tune=tune))
        start = str(stages[-1].folder / "lora")
    return Chain("shapes_cascade", tuple(stages))


def _teachers() -> tuple[Run, ...]:
    return shapes_teacher_counting(), shapes_teacher_relations(), shapes_teacher_binding(), shapes_teacher_text()


def _nft_teacher(task: str) -> Run:
    # At 1e-3, which all tasks together stand, a teacher of counting alone collapses after 50 iterations.
    return _nft_run(f"shapes_nft_teacher_{task}", TASKS[task], NFT_ITERATIONS, 5e-4)


def _nft_run(name: str, tags: tuple[str, ...], iterations: int, learning_rate: float) -> Run:
    """shapes_nft on some tags."""
    of_tags = _run(name, tags, iterations)
    options = {"data": of_tags.data, "evaluation": of_tags.evaluation, "iterations": iterations}
    return shapes_nft().with_options(name=name, learning_rate=learning_rate, **options)


def _guard_teacher() -> Run:
    run = _run("shapes_guard_teacher_text", TASKS["text"])
    return replace(run, algorithm=shapes_flow_grpo_guard().algorithm)


def _specialists() -> tuple[Teacher, ...]:
    return tuple(Teacher(task, f"runs/shapes_teacher_{task}/lora", tags) for task, tags in TASKS.items())


def _merge() -> Merge:
    loras = tuple(str(teacher.lora) for teacher in _specialists())
    return Merge(loras, name="shapes_merge", rank=32)


def _student(name: str, start: Merge | None) -> Run:
    """Flow-OPD by the ODE, near the base on every sample; what a merge holds has rank = alpha."""
    tune = LoRA(rank=32, alpha=32, start=None if start is None else str(start.folder / "lora"))
    run = _run(name, TASK_TAGS, 40)
    assert isinstance(run.algorithm, FlowGRPO)
    algorithm = FlowOPD(steps=run.algorithm.steps, group=4)
    return run.with_options(algorithm=algorithm, teachers=_specialists(), tune=tune, batch=32, learning_rate=2e-3)
