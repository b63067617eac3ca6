"""Rewards by name: ours, those of installed packages, and a user's own."""

import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

from ..system.errors import ConfigError
from ..system.names import unknown_name
from ..system.optional_dependencies import check_extra
from . import clip, geneval_hf, geneval_mmdet, hpsv3, image_reward, jpeg, moving, ocr, shapes, video_align
from .base import Reward, RewardModels, Scorer
from .functions import GIVEN, is_given, not_given
from .vlm import rewards as vlm

DEFAULT_REWARD_MODELS = RewardModels()
"""Every network on its published weights."""
MODULES = (
    *(shapes, jpeg, moving, ocr, clip, image_reward, hpsv3, video_align),
    *(geneval_hf, geneval_mmdet, vlm),
)
"""The modules whose rewards are ours."""
REWARDS: dict[str, Scorer] = {
    reward.name: reward for module in MODULES for reward in vars(module).values() if isinstance(reward, Reward)
}
ENTRY_POINTS = "afterflow.rewards"
"""The group of entry points under which other packages offer rewards."""


def find_reward(name: str) -> Reward:
    """Return a reward of ours, of an installed package (an entry point), or of a user: `module:function`, or given.

    Raises ConfigError where there is none of this name.
    """
    if name in REWARDS:
        return as_reward(name, REWARDS[name])
    if ":" in name:
        return as_reward(name, import_scorer(name))
    if name in GIVEN:
        return GIVEN[name][0]
    points = entry_points(group=ENTRY_POINTS)
    for point in points:
        if point.name == name:
            return as_reward(name, point.load())
    raise unknown_name("reward", name, [*REWARDS, *GIVEN, *(point.name for point in points)])


def is_taken(name: str) -> bool:
    """Return whether a reward of ours or of an installed package has that name."""
    return name in REWARDS or any(point.name == name for point in entry_points(group=ENTRY_POINTS))


def as_reward(name: str, score: Scorer) -> Reward:
    """Return a reward under this name; a plain function becomes a reward of any range."""
    return replace(score, name=name) if isinstance(score, Reward) else Reward(name, score)


def import_scorer(name: str) -> Scorer:
    """Return what `module:function` names; raise ConfigError where it is not there or no function."""
    module, _, attribute = name.partition(":")
    if (folder := os.getcwd()) not in sys.path:  # a console script's path does not have it
        sys.path.append(folder)
    try:
        scorer = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"reward {name}: {error}; it reads module:function, of a module that Python finds from this folder"
        ) from error
    if not callable(scorer):
        raise ConfigError(f"reward {name} is no function of (images, records)")
    return scorer  # type: ignore[return-value]


def load_reward(name: str, models: RewardModels = DEFAULT_REWARD_MODELS) -> Reward:
    """Return a reward that can score; a network is loaded once.  Raises ConfigError where it cannot be loaded."""
    reward = find_reward(name)
    if reward is GIVEN.get(name, (None,))[0] and not is_given(name):
        raise not_given(name)
    if reward.load is None and name not in models.servers:
        return reward
    try:
        return _loaded(name, models, GIVEN[name][1] if name in GIVEN else "")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        why, option = str(error).partition("\n")[0], f"--reward-models.weights {name} PATH"
        raise ConfigError(f"reward {name} could not be loaded: {why}; {option} takes other weights") from error


@cache
def _loaded(name: str, models: RewardModels, digest: str) -> Reward:
    reward = find_reward(name)
    if name in models.servers:
        return remote_reward(reward, models)
    assert reward.load is not None
    return replace(reward, score=reward.load(models), load=None)


def remote_reward(reward: Reward, models: RewardModels) -> Reward:
    """Return the reward as services score it, normalised there; raise ConfigError where one of them cannot."""
    from .remote.client import RemoteScorer

    scorer = RemoteScorer(reward, models.servers[reward.name].split(","), models.batch)
    scorer.check()
    ends = reward.scale * reward.low, reward.scale * reward.high
    return replace(reward, score=scorer, load=None, scale=1.0, low=min(ends), high=max(ends))


def check_rewards(names: Iterable[str], models: RewardModels = DEFAULT_REWARD_MODELS) -> None:
    """Load every reward and try it on its canary; raise ConfigError for one that does not work here."""
    names = tuple(names)
    for name in models.servers:
        if name not in names:
            raise unknown_name("reward of this run (reward_models.servers)", name, names)
    for name in models.weights:
        find_reward(name)
    for name in names:
        reward, remote = find_reward(name), name in models.servers
        libraries = ("httpx", "msgpack") if remote else reward.libraries
        check_extra(f"reward {name}", libraries, "serve" if remote else reward.extra)
        check_canary(load_reward(name, models))


def check_canary(reward: Reward) -> None:
    """Raise ConfigError where the reward has no score for its canary, or another one than when it was written."""
    canary = reward.canary
    if canary is None:
        return
    scored = reward(canary.picture()[None], [dict(canary.record)])
    if scored.why:
        raise ConfigError(f"reward {reward.name} does not work here: {scored.why[0]}")
    score = float(scored.values[0])
    if abs(score - canary.score) > canary.tolerance:
        raise ConfigError(
            f"reward {reward.name} gives its canary {score:.4g} instead of {canary.score:.4g}; a library it uses has "
            f"changed or is broken (version {reward.version} of the reward)"
        )
