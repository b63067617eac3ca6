"""What a changed run measures: held-out prompts and evaluators of a recipe do not fit the data of a user."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..algorithms.base import WIN_RATE, explores
from ..data.clips import MovingClips, MovingPrompts
from ..data.edits import EditImages, EditPrompts
from ..data.images import ImageSource, ShapesImages
from ..data.pairs import SampledPairs
from ..data.prompts import ShapesPrompts

if TYPE_CHECKING:
    from .config import Run

TRAINED = "trained"
"""The value of best_by that stands for the trained reward which counts most."""
OWN_SHARE = 0.1
"""Share of a user's prompts that is held out in place of a recipe's held-out prompts."""
NO_EVALUATION: Mapping[str, Any] = {
    "held_out": None,
    "held_out_share": 0.0,
    "eval_every": 0,
    "eval_rewards": (),
    "best_by": None,
}
"""The options with which nothing is measured while a run trains."""
WORLDS = {
    "shapes": (ShapesPrompts, ShapesImages),
    "moving": (MovingPrompts, MovingClips),
    "edits": (EditPrompts, EditImages),
}
"""World → its data.  Its rewards have its name before theirs, and judge nothing but its own prompts."""


def fit_evaluation(before: "Run", after: "Run", given: Collection[str]) -> "Run":
    """Return a run whose evaluation fits the data and rewards that it has instead of those of `before`.

    Other data take a share of their own prompts as held-out ones, and images, which have no prompts to spare, none.
    Evaluators of a world stay where its rewards are trained.  best/ is chosen by what is trained where nothing that
    is measured belongs to it.

    Args:
        before: The run that the evaluation was made for, such as a recipe's.
        after: The run with other options.
        given: Names of the options that were set on purpose, which stay.
    """
    if after.evaluation.eval_every == 0 or "evaluation" in given:
        return after
    own_data = source_of(before) != source_of(after)
    trained = after.algorithm.requirements.rewards
    new_rewards = [name for name in trained if name not in before.algorithm.requirements.rewards]
    if not own_data and not new_rewards:
        return after
    changes: dict[str, Any] = {}
    if own_data and not {"held_out", "held_out_share"} & set(given):
        if not explores(after.algorithm):
            changes = {name: value for name, value in NO_EVALUATION.items() if name not in given}
            return replace(after, evaluation=replace(after.evaluation, **changes))
        changes |= {"held_out": None, "held_out_share": OWN_SHARE}
    rewards = after.evaluation.eval_rewards
    if "eval_rewards" not in given:
        judged = {world_of(name) for name in trained} or worlds_of_data(after)
        rewards = tuple(name for name in rewards if name in trained or world_of(name) in {None, *judged})
        changes["eval_rewards"] = rewards
    hidden = [name for name in rewards if name not in trained]
    fits = all(world_of(name) is not None for name in hidden) if new_rewards else True
    if "best_by" not in given and "eval_rewards" not in given and trained and not (hidden and fits):
        changes["best_by"] = TRAINED
    return replace(after, evaluation=replace(after.evaluation, **changes))


def source_of(run: "Run") -> tuple[str, str | None]:
    """Return the kind of a run's data, and where they come from if that is a user's choice."""
    data = run.data
    data = data.prompts if isinstance(data, SampledPairs) else data
    return type(data).__name__, getattr(data, "path", getattr(data, "dataset", None))


def worlds_of_data(run: "Run") -> set[str | None]:
    """Return the worlds that a run's images are of, or must be of to be used."""
    worlds: set[str | None] = {world for world, kinds in WORLDS.items() if isinstance(run.data, kinds)}
    return worlds | {world_of(name) for name in rewards_of_data(run.data)}


def rewards_of_data(data: object) -> tuple[str, ...]:
    """Return the rewards of single images that images to learn from must reach, or by which they win."""
    if not isinstance(data, ImageSource):
        return ()
    weights = data.weights if isinstance(data, SampledPairs) else ()
    return tuple(name for name in dict.fromkeys([*weights, *data.min_reward]) if name != WIN_RATE)


def world_of(reward: str) -> str | None:
    """Return the world whose prompts alone a reward of ours judges; None for any other reward."""
    return next((world for world in WORLDS if reward.startswith(f"{world}_") and ":" not in reward), None)
