"""Rewards by name."""

import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from importlib import import_module
from importlib.metadata import entry_points

from ..system.names import unknown_name
from ..system.optional_dependencies import check_extra
from . import clip, hpsv3, image_reward, jpeg, moving, ocr, shapes, video_align
from . import geneval_hf as detector
from . import geneval_mmdet as mmdet
from .base import Reward, RewardModels, Scorer
from .vlm import rewards as vlm

DEFAULT_REWARD_MODELS = RewardModels()

REWARDS: dict[str, Scorer] = {
    reward.name: reward
    for reward in (
        shapes.strict,
        shapes.partial,
        shapes.partial_flowgrpo,
        shapes.quality,
        jpeg.compressibility,
        jpeg.incompressibility,
        moving.strict,
        moving.partial,
        moving.smoothness,
        ocr.ocr,
        ocr.ocr_flowgrpo,
        clip.clipscore,
        clip.pickscore,
        clip.hpsv2,
        clip.aesthetic,
        clip.image_similarity,
        image_reward.image_reward,
        hpsv3.hpsv3,
        video_align.video_align,
        *detector.geneval_hf,
        *mmdet.geneval,
        vlm.vlm_alignment,
        vlm.vlm_quality,
        vlm.vlm_points,
        vlm.unified_reward,
    )
}
GROUP = "afterflow.rewards"
"""Entry points under which other packages offer rewards."""


def find_reward(name: str) -> Reward:
    """One of ours, of an installed package (an entry point), or a user's own, `module:function`.

    ValueError where there is none.
    """
    if name in REWARDS:
        return described(name, REWARDS[name])
    if ":" in name:
        return described(name, from_path(name))
    for point in entry_points(group=GROUP):
        if point.name == name:
            return described(name, point.load())
    raise unknown_name("reward", name, [*REWARDS, *(point.name for point in entry_points(group=GROUP))])


def described(name: str, score: Scorer) -> Reward:
    """A plain function is a reward of any range."""
    return replace(score, name=name) if isinstance(score, Reward) else Reward(name, score)


def from_path(name: str) -> Scorer:
    """What `module:function` stands for; ValueError where it is not there."""
    module, _, attribute = name.partition(":")
    if (here := os.getcwd()) not in sys.path:  # a console script's path does not have it
        sys.path.append(here)
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"reward {name}: {error}; it reads module:function, of a module that Python finds from this folder"
        ) from error
    if not callable(found):
        raise ValueError(f"reward {name} is no function of (images, records)")
    return found  # type: ignore[return-value]


_loaded: dict[tuple[str, str], Reward] = {}


def load_reward(name: str, models: RewardModels = DEFAULT_REWARD_MODELS) -> Reward:
    """A reward that can be asked; a network is loaded once.  ValueError where it cannot be."""
    known = find_reward(name)
    if known.load is None and name not in models.servers:
        return known
    key = name, repr(models)
    if key not in _loaded:
        try:
            _loaded[key] = elsewhere(known, models) if name in models.servers else loaded(known, models)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            why, option = str(error).partition("\n")[0], f"--reward-models.weights {name} PATH"
            raise ValueError(f"reward {name} could not be loaded: {why}; {option} takes other weights") from error
    return _loaded[key]


def loaded(known: Reward, models: RewardModels) -> Reward:
    assert known.load is not None
    return replace(known, score=known.load(models), load=None)


def elsewhere(known: Reward, models: RewardModels) -> Reward:
    """The reward as services score it, normalised there; ValueError where one of them cannot."""
    from .remote.client import Remote

    asked = Remote(known, models.servers[known.name].split(","), models.batch)
    asked.check()
    ends = known.scale * known.low, known.scale * known.high
    return replace(known, score=asked, load=None, scale=1.0, low=min(ends), high=max(ends))


def check_rewards(names: Iterable[str], models: RewardModels = DEFAULT_REWARD_MODELS) -> None:
    """ValueError for a reward that does not work here, or does not say of its canary what it said when it was made."""
    names = tuple(names)
    for name in models.servers:
        if name not in names:
            raise unknown_name("reward of this run (reward_models.servers)", name, names)
    for name in models.weights:
        find_reward(name)
    for name in names:
        known = find_reward(name)
        here = ("httpx", "msgpack") if name in models.servers else known.libraries
        extra = "serve" if name in models.servers else known.extra
        check_extra(f"reward {name}", here, extra)
        known = load_reward(name, models)
        if known.canary is None:
            continue
        scored = known(known.canary.picture()[None], [dict(known.canary.record)])
        if scored.why:
            raise ValueError(f"reward {name} does not work here: {scored.why[0]}")
        found, expected = float(scored.values[0]), known.canary.score
        if abs(found - expected) > known.canary.tolerance:
            raise ValueError(
                f"reward {name} gives its canary {found:.4g} instead of {expected:.4g}; a library it uses has changed "
                f"or is broken (version {known.version} of the reward)"
            )
