"""The prompts that a run is about, each fit for what will be asked of it."""

from collections.abc import Callable, Iterable, Sequence

from ..data.images import ImageSource
from ..data.prompts import check_tag_schedule
from ..envs.shapes.prompts import validate
from ..models.adapters import Teacher
from ..rewards.registry import find_reward
from ..rewards.shapes_judge import ShapesJudge
from .config import Run


def needs(run: Run, names: Iterable[str]) -> dict[str, Callable]:
    """What these rewards, and the judge, ask of a record."""
    asked = {name: known.needs for name in names if (known := find_reward(name)).needs is not None}
    return asked | {"the judge": validate} if isinstance(run.judge, ShapesJudge) else asked


def prompt_records(run: Run) -> list[dict]:
    """The prompts to explore, each fit for every reward; none where images come with theirs."""
    if isinstance(run.data, ImageSource):
        return []
    records, route = (
        run.data.records(run.seed, needs(run, run.algorithm.requirements.rewards)),
        run.algorithm.requirements.route,
    )
    check_tag_schedule(records, run.batches.tag_schedule)
    if route is not None:
        check_routes(records, route, run.teachers)
    return records


def check_routes(records: Sequence[dict], route: str, teachers: Sequence[Teacher]) -> None:
    """ValueError for a prompt without a task, and for a task without a teacher."""
    tasks = [task for teacher in teachers for task in teacher.tasks]
    for record in records:
        if not isinstance(record.get(route), str):
            raise ValueError(f"prompt {record['prompt']!r} has no task under {route!r}, so no teacher; write one to it")
        if record[route] not in tasks:
            task = f"the task {record[route]!r} of prompt {record['prompt']!r}"
            raise ValueError(f"{task} has no teacher; there are teachers for {', '.join(tasks)}")


def held_out_records(run: Run) -> list[dict]:
    """The prompts to evaluate on, each fit for every reward that is measured there."""
    return [] if run.evaluation.held_out is None else run.evaluation.held_out.records(run.seed, needs(run, run.watched))


def known_records(run: Run) -> dict[str, dict]:
    """The run's own prompts, held out or not, by their text."""
    return {record["prompt"]: record for record in [*held_out_records(run), *prompt_records(run)]}
