"""Rewards by name: ours, those of installed packages, and a user's own."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import entry_points

import numpy as np

from ..system.errors import ConfigError, InputError
from ..system.names import unknown_name
from ..system.optional_dependencies import check_extra
from . import (
    clip,
    edit_reward,
    edits,
    geneval_hf,
    geneval_mmdet,
    hpsv3,
    image_reward,
    jpeg,
    moving,
    ocr,
    preservation,
    shapes,
    video_align,
)
from .base import Judge, OrderCanary, Reward, RewardModels, Scorer
from .functions import GIVEN, is_given, not_given
from .messages import MAX_RECORD, length_of_texts
from .named_code import check_code_name, import_named
from .vlm import edit_ratings, soft_tifa
from .vlm import rewards as vlm
from .vlm.judge import VLMJudge

_log = logging.getLogger(__name__)

DEFAULT_REWARD_MODELS = RewardModels()
"""Every network on its published weights."""
MODULES = (
    *(shapes, jpeg, moving, edits, ocr, clip, image_reward, hpsv3, video_align),
    *(geneval_hf, geneval_mmdet, vlm, soft_tifa, edit_ratings, edit_reward, preservation),
)
"""The modules whose rewards are ours."""
REWARDS: dict[str, Scorer] = {
    reward.name: reward for module in MODULES for reward in vars(module).values() if isinstance(reward, Reward)
}
JUDGE = "judge"
"""The name of the judge among the names of rewards."""
ENTRY_POINTS = "afterflow.rewards"
"""The group of entry points under which other packages offer rewards."""
RESOLVED: dict[str, Reward] = {}
"""Name → reward, of what was imported: `module:function`, and rewards of other packages."""


def find_reward(name: str) -> Reward:
    """Return a reward of ours, of an installed package (an entry point), or of a user: `module:function`, or given.

    Nothing is imported for it: of what `resolve_reward` has not imported, the name alone is known.  Raises ConfigError
    where there is none of this name.
    """
    if name in REWARDS:
        return as_reward(name, REWARDS[name])
    if name in RESOLVED:
        return RESOLVED[name]
    if ":" in name:
        check_code_name(name)
        return Reward(name, None)
    if name in GIVEN:
        return GIVEN[name][0]
    points = [point.name for point in entry_points(group=ENTRY_POINTS)]
    if name in points:
        return Reward(name, None)
    raise unknown_name("reward", name, [*REWARDS, *GIVEN, *points])


def needs_of(names: Iterable[str], models: RewardModels = DEFAULT_REWARD_MODELS) -> dict[str, Callable[[dict], None]]:
    """Return the checks of records that these rewards make, by name; of what is not imported yet none is known.

    Where a service scores, it makes those checks that take the reward's libraries.
    """
    checks = {}
    for name in names:
        reward = find_reward(name)
        if name in models.servers:
            checks[name] = partial(check_served, reward.client_needs or reward.needs)
        elif reward.needs is not None:
            checks[name] = reward.needs
    return checks


def check_served(needs: Callable[[dict], None] | None, record: dict) -> None:
    """Raise InputError for a record that a service would refuse, by its length or by what its reward needs."""
    if (length := length_of_texts(record)) > MAX_RECORD:
        raise InputError(
            f"it has {length} characters, and a service takes {MAX_RECORD}; save a picture that it holds as a file"
        )
    if needs is not None:
        needs(record)


def weights_read_here(name: str, models: RewardModels) -> tuple[str, ...]:
    """Return the names in `models.weights` that a reward reads; none where a service scores."""
    return () if name in models.servers else find_reward(name).weights_read


def resolve_reward(name: str) -> Reward:
    """Return a reward that is about to be called; its module is imported where a person named it.

    Raises ConfigError where nobody did, or where there is none of this name.
    """
    if name in REWARDS or (name in GIVEN and ":" not in name):
        return find_reward(name)
    if ":" in name:
        RESOLVED[name] = as_reward(name, import_named(name))
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == name and name not in RESOLVED:
            RESOLVED[name] = as_reward(name, point.load())
    return find_reward(name)


def is_taken(name: str) -> bool:
    """Return whether a reward of ours or of an installed package has that name."""
    return name in REWARDS or any(point.name == name for point in entry_points(group=ENTRY_POINTS))


def as_reward(name: str, score: Scorer) -> Reward:
    """Return a reward under this name; a plain function becomes a reward of any range."""
    return replace(score, name=name) if isinstance(score, Reward) else Reward(name, score)


def load_reward(name: str, models: RewardModels = DEFAULT_REWARD_MODELS) -> Reward:
    """Return a reward that can score; a network is loaded once.  Raises ConfigError where it cannot be loaded."""
    reward = resolve_reward(name)
    if reward is GIVEN.get(name, (None,))[0] and not is_given(name):
        raise not_given(name)
    if reward.load is None and name not in models.servers:
        return reward
    try:
        return _loaded(name, models, GIVEN[name][1] if name in GIVEN else "")
    except MemoryError:
        raise
    except Exception as error:  # libraries that read weights have no common type of errors
        raise not_loaded(reward, error) from error


def not_loaded(reward: Reward, error: Exception) -> ConfigError:
    """Return the error for a reward that cannot be loaded, with the option that takes other weights of it."""
    why = str(error).partition("\n")[0]
    if not isinstance(error, OSError | ValueError | RuntimeError) or not why:
        why = f"{type(error).__name__}: {why}"
    if isinstance(error, ConfigError) or not reward.weights_read:
        return ConfigError(f"reward {reward.name} could not be loaded: {why}")
    option = f"--reward-models.weights {reward.weights_read[0]} PATH"
    return ConfigError(f"reward {reward.name} could not be loaded: {why}; {option} takes other weights")


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
    """Load every reward and try it on its canary; raise ConfigError for one that does not work here or sees nothing."""
    names = tuple(names)
    for name in models.ignore_canary:
        if name not in (*names, JUDGE):
            raise unknown_name("reward of this run (reward_models.ignore_canary)", name, (*names, JUDGE))
    for name in models.servers:
        if name not in names:
            raise unknown_name("reward of this run (reward_models.servers)", name, names)
    rewards = {name: resolve_reward(name) for name in names}
    check_read(rewards, models)
    for name, reward in rewards.items():
        remote = name in models.servers
        libraries = ("httpx", "msgpack") if remote else reward.libraries
        check_extra(f"reward {name}", libraries, "serve" if remote else reward.extra)
        report_blindness(name, canary_complaint(name, models), models)


def check_read(rewards: Mapping[str, Reward], models: RewardModels) -> None:
    """Raise ConfigError for weights and options that no reward of a run reads here, with the name that one reads."""
    here = [reward for name, reward in rewards.items() if name not in models.servers]
    served = [reward for name, reward in rewards.items() if name in models.servers]
    readable = dict.fromkeys(name for reward in here for name in reward.weights_read)
    for name in models.weights:
        if name in readable:
            continue
        if any(name in reward.weights_read for reward in served):
            raise ConfigError(f"reward_models.weights: what reads {name} is scored by a service; name them to that")
        if name in rewards:
            read = " and ".join(rewards[name].weights_read)
            raise ConfigError(
                f"reward_models.weights: {name} has no weights of its own; "
                + (f"it reads those of {read}, so name these" if read else "leave it out")
            )
        if not readable:
            raise ConfigError(
                f"no reward of this run (reward_models.weights) is called {name!r}, and none reads weights"
            )
        raise unknown_name("reward of this run (reward_models.weights)", name, readable)
    for name in models.options:
        if any(name in reward.options for reward in here):
            continue
        if any(name in reward.options for reward in served):
            raise ConfigError(f"reward_models.options: what reads {name} is scored by a service; name it to that")
        raise ConfigError(f"reward_models.options: no reward of this run reads {name}; leave it out")


def check_judge_sees(judge: Judge | None, models: RewardModels) -> None:
    """Try a judge that is a network on photographs in both orders; raise ConfigError where it does not tell them apart.

    Other judges follow rules.
    """
    if isinstance(judge, VLMJudge):
        report_blindness(JUDGE, judge.complaint(), models)


def report_blindness(name: str, complaint: str | None, models: RewardModels) -> None:
    """Raise ConfigError with a complaint about a reward or the judge; warn where the user goes on all the same."""
    if complaint is None:
        return
    if name not in models.ignore_canary:
        raise ConfigError(f"{complaint}; --reward-models.ignore-canary {name} would go on all the same")
    _log.warning("%s; it goes on all the same, because ignore_canary names it", complaint)


def canary_complaint(name: str, models: RewardModels) -> str | None:
    """Load a reward; return what is wrong with its scores of its canary, in one sentence, or None where nothing is.

    ConfigError is raised where it has no score for it.
    """
    reward, remote = load_reward(name, models), name in models.servers
    canary = reward.canary
    if isinstance(canary, OrderCanary):
        return None if remote and canary.local else order_complaint(reward, canary)
    if canary is None:
        if remote or find_reward(name).load is not None:
            _log.warning("reward %s is a network without a canary, so nobody knows whether it sees anything", name)
        return None
    [score] = canary_scores(reward, canary.picture()[None], [dict(canary.record)])
    if abs(score - canary.score) <= canary.tolerance:
        return None
    return (
        f"reward {reward.name} gives its canary {score:.4g} instead of {canary.score:.4g}; a library it uses has "
        f"changed or is broken (version {reward.version} of the reward)"
    )


def order_complaint(reward: Reward, canary: OrderCanary) -> str | None:
    """Return the first two pictures that a reward does not tell apart, in one sentence; None where there are none."""
    cases = canary.cases()
    images = np.stack([image for case in cases for image in (case.better, case.worse)])
    scores = canary_scores(reward, images, [dict(case.record) for case in cases for _ in range(2)])
    for case, better, worse in zip(cases, scores[::2], scores[1::2]):
        if better - worse < reward.scale * canary.margin:
            return (
                f"reward {reward.name} is blind: for {case.record['prompt'] or 'the same picture'!r} the right picture "
                f"gets {better:.4g} and a wrong one {worse:.4g}; its weights, its server or a library is not what it "
                "should be"
            )
    return None


def canary_scores(reward: Reward, images: np.ndarray, records: Sequence[dict]) -> list[float]:
    """Return the scores of images (B, H, W, 3), or clips, NaN without one; raise ConfigError where most have none."""
    scored = reward(images, records)
    if len(scored.why) > len(images) / 2:
        raise ConfigError(f"reward {reward.name} does not work here: {scored.why[min(scored.why)]}")
    return scored.values.tolist()
