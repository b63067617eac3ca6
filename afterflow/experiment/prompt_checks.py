"""The prompts of a run, each checked against the rewards that will read its record."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..data.edits import EditImages, EditPrompts
from ..data.images import HubImages, ImageSource, StoredImages, StoredSource
from ..data.pairs import HubPairs, SampledPairs, StoredPairs
from ..data.prompt_lists import check_record
from ..data.prompts import check_tag_schedule
from ..envs.shapes.edits import SIZE, edit_suite
from ..envs.shapes.prompts import validate
from ..models.adapters import Teacher
from ..models.families import FAMILIES
from ..models.pipeline import Pretrained
from ..rewards.base import RewardModels
from ..rewards.registry import find_reward, needs_of
from ..rewards.shapes_judge import ShapesJudge
from ..rewards.votes.judge import Votes
from ..sampling.seeds import number
from ..system.errors import ConfigError, InputError
from ..system.input_pictures import check_all_readable, check_inputs, content_key, input_names, prompt_key
from ..system.pictures import WHITE, check_color
from .config import Run
from .evaluation_fit import rewards_of_data


def record_checks(run: Run, names: Iterable[str]) -> dict[str, Callable]:
    """Return the checks that these rewards, and the judge, make of a record."""
    checks = needs_of(names, run.reward_models)
    return checks | {"the judge": validate} if isinstance(run.judge, ShapesJudge) else checks


def caption_records(data: object) -> list[dict]:
    """Return records of images to learn from that are there before training, for the pictures they are about.

    InputError where the images, or the pictures that they are about, are not there.
    """
    if isinstance(data, EditImages):
        return edit_suite(data.split, 1, 0, data.tasks[:1])
    if isinstance(data, StoredImages):
        return [entry.record for entry in data.listing().entries]
    return [winner.record for winner, _ in data.pair_listing().pairs] if isinstance(data, StoredPairs) else []


def number_of_inputs(run: Run) -> int:
    """Return the number of pictures that each prompt of the run is about.

    A data set of the hub, which would be fetched to know it, counts as one without, or with one for an editor.
    """
    if isinstance(run.data, EditPrompts):
        return 1  # without the drawing of all of them
    if isinstance(run.data, HubImages | HubPairs) and not Path(run.data.dataset).is_dir():
        return int(FAMILIES[type(run.model)].takes_pictures == "must")
    records = caption_records(run.data) or prompt_records(run)
    return len(input_names(records[0])) if records else 0


def has_inputs(run: Run) -> bool:
    """Return whether the prompts of a run, or what its images are made of, have input pictures."""
    if isinstance(run.data, ImageSource) and not isinstance(run.data, SampledPairs):
        return number_of_inputs(run) > 0
    prompts = run.data.prompts if isinstance(run.data, SampledPairs) else run.data
    return any(map(input_names, prompts.records(run.seed)))


def check_input_pictures(run: Run, records: Sequence[dict]) -> int:
    """Return the number of pictures that each prompt, or caption of images, is about.

    InputError where the model has no use for them or needs some, where one cannot be read, and where people judge, who
    would not see them.  ConfigError where targets would be brought to another shape or background than they are.
    """
    family = FAMILIES[type(run.model)]
    captions = caption_records(run.data)
    records = [*records, *captions]
    inputs = check_inputs(records, family.takes_pictures, family.stock, family.most_pictures)
    if inputs and isinstance(run.judge, Votes):
        raise InputError("judge = Votes: its page does not show what an edit began with; take another judge")
    if inputs and isinstance(run.data, StoredSource):
        check_like_targets(run.data)
    if isinstance(run.data, StoredSource) and run.data.min_size is None and run.data.unreadable == "stop":
        check_min_reward(run.data.min_reward, captions, run.reward_models)  # of all images, because none is left out
    check_all_readable(records)
    return inputs


def check_min_reward(names: Iterable[str], records: Sequence[dict], models: RewardModels) -> None:
    """Raise InputError where a reward that chooses images could not judge the record of one."""
    required = {f"min_reward {name}": needs for name, needs in needs_of(names, models).items()}
    for record in records if required else ():
        check_record(record, f"the image of {record['prompt']!r}", required)


def check_drawn_size(config: Pretrained, rewards: Iterable[str], option: str, data: object = None) -> None:
    """Raise ConfigError where a model draws in another size than a reward judges; no weights are fetched.

    Args:
        config: The model.
        rewards: Names of the rewards.
        option: The option that sets the model's size.
        data: What is learnt from; whole edits of the editing world have one size.
    """
    sides = {f"{name} judges": side for name in rewards if (side := find_reward(name).side) is not None}
    if isinstance(data, EditImages) and not data.cropped:
        sides["EditImages has"] = SIZE
    height, width = config.load("meta").drawn_size if sides else (0, 0)
    for what, side in sides.items():
        if (height, width) != (side, side):
            draws = f"{config.path} draws {width} x {height}"
            raise ConfigError(f"{what} {side} x {side} px, and {draws}; add {option} {side}")


def check_like_targets(data: StoredSource) -> None:
    """Raise ConfigError where targets would have another shape or background than the pictures they are made of."""
    if data.buckets:
        raise ConfigError(
            "data.buckets = True: input pictures are cropped to the one shape that the model draws, so other targets "
            "would not fit them; leave it out, and train on each shape in a run of its own"
        )
    if check_color("data.background", data.background) != WHITE:
        raise ConfigError(
            f"data.background = {data.background}: input pictures are laid over white, and targets would not be; take "
            "white, or save both without transparency"
        )


def prompt_records(run: Run) -> list[dict]:
    """Return the prompts to draw images of, each fit for every reward; none where images come with theirs."""
    if isinstance(run.data, SampledPairs):
        return run.data.prompts.records(run.seed, record_checks(run, rewards_of_data(run.data)))
    if isinstance(run.data, ImageSource):
        return []
    records = run.data.records(run.seed, record_checks(run, run.algorithm.requirements.rewards))
    records, _ = without_share(records, run.evaluation.held_out_share)
    route = run.algorithm.requirements.route
    check_tag_schedule(records, run.batches.tag_schedule)
    if route is not None:
        check_routes(records, route, run.teachers)
    return records


def check_routes(records: Sequence[dict], route: str, teachers: Sequence[Teacher]) -> None:
    """Check that each prompt has a task with a teacher.  InputError names the first that has none."""
    tasks = [task for teacher in teachers for task in teacher.tasks]
    for record in records:
        if not isinstance(record.get(route), str):
            raise InputError(f"prompt {record['prompt']!r} has no task under {route!r}, so no teacher; write one to it")
        if record[route] not in tasks:
            task = f"the task {record[route]!r} of prompt {record['prompt']!r}"
            raise InputError(f"{task} has no teacher; there are teachers for {', '.join(tasks)}")


def held_out_records(run: Run) -> list[dict]:
    """Return the prompts to evaluate on, each fit for every reward that is measured there."""
    checks, share = record_checks(run, run.watched), run.evaluation.held_out_share
    if share and not isinstance(run.data, ImageSource):
        return without_share(run.data.records(run.seed, checks), share)[1]
    return [] if run.evaluation.held_out is None else run.evaluation.held_out.records(run.seed, checks)


def without_share(records: list[dict], share: float) -> tuple[list[dict], list[dict]]:
    """Return the records without a share of their different prompts, and one record of each prompt in that share.

    A prompt is a text about its pictures.  Both alone decide which come first, so that seeds, and lists that grow or
    move, hold out the same ones.
    """
    if not share:
        return records, []
    keys = [content_key(record) for record in records]
    by_prompt = dict(zip(keys, records))
    count = min(round(share * len(by_prompt)), len(by_prompt) - 1)
    held_out = set(sorted(by_prompt, key=lambda key: number("held out", *key))[:count])
    return [record for key, record in zip(keys, records) if key not in held_out], [
        by_prompt[key] for key in sorted(held_out)
    ]


def known_records(run: Run, prompt: str) -> list[dict]:
    """Return the run's own records of a prompt's text, held out or not, each about other pictures."""
    records = [record for record in [*held_out_records(run), *prompt_records(run)] if record["prompt"] == prompt]
    return list({prompt_key(record): record for record in records}.values())
