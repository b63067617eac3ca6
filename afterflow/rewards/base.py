"""What a reward is, and what a judge is."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import urlsplit

import numpy as np
import torch

from ..system.names import unknown_name


@dataclass(frozen=True)
class Scored:
    """What is said about B images."""

    values: np.ndarray
    """(B,) float; NaN: no score could be had."""
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)
    """(B,) each: what a value is made of, to be logged beside it."""
    why: Mapping[int, str] = field(default_factory=dict)
    """Image → why it has no score."""

    def of(self, image: int) -> "Scored":
        """What is said about one of them."""
        parts = {name: values[image : image + 1] for name, values in self.parts.items()}
        return Scored(self.values[image : image + 1], parts, {0: self.why[image]} if image in self.why else {})


class Scorer(Protocol):
    def __call__(self, images: np.ndarray, records: Sequence[dict], /) -> "np.ndarray | Scored":
        """uint8 (B, H, W, 3), or clips (B, F, H, W, 3), and their B records → float (B,), NaN = no score."""
        ...


log = logging.getLogger("afterflow.rewards")
OPTIONS = (
    "geneval_threshold",
    "geneval_counting_threshold",
    "video_align_fps",
    "video_align_vq",
    "video_align_mq",
    "video_align_ta",
)


@dataclass(frozen=True)
class RewardModels:
    """Rewards that are networks: where they run, and on whose weights."""

    device: str | None = None
    """None: the first accelerator, or the CPU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of their weights and passes."""
    batch: int = 32
    """Images of one pass."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Reward → hub id, folder or file of its weights, where they are not the published ones."""
    options: Mapping[str, float] = field(default_factory=dict)
    """Numbers that rewards read: geneval_threshold (.3), geneval_counting_threshold (.9), video_align_fps (16, of the
    clips), video_align_vq, _mq and _ta (1, what VideoReward's ratings count for)."""
    servers: Mapping[str, str] = field(default_factory=dict)
    """Reward → address of the service that scores it (afterflow serve-rewards), or several with commas between."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"reward_models.batch = {self.batch}: at least 1")
        for name in self.options:
            if name not in OPTIONS:
                raise unknown_name("option of reward_models", name, OPTIONS)
        for name, addresses in self.servers.items():
            for address in addresses.split(","):
                check_address(f"reward_models.servers: {name}", address)
            if name in self.weights:
                raise ValueError(f"reward_models.weights: {name} is scored by a service, which has weights of its own")

    @property
    def on(self) -> str:
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    def published(self, reward: str, where: tuple[str, str | None]) -> tuple[str, str | None]:
        """Hub id or folder, and revision: those given, or the published ones."""
        return (self.weights[reward], None) if reward in self.weights else where

    def words(self, reward: str, where: tuple[str, str]) -> tuple[str, str | None]:
        """Of the tokenizer: a folder of weights has its own."""
        given = self.weights.get(reward)
        return (given, None) if given is not None and Path(given).is_dir() else where


def check_address(what: str, address: str) -> None:
    """ValueError for one with a secret in it: run.json, logs and model cards tell addresses to everybody."""
    parts = urlsplit(address)
    if parts.username or parts.password or parts.query:
        where = f"{parts.scheme}://{parts.hostname}"
        raise ValueError(
            f"{what}: the address at {where} holds a name, key or query; set the environment variable instead"
        )


@dataclass(frozen=True)
class Canary:
    """A picture whose score is known: a library of another version, or broken preprocessing, shows before training."""

    picture: Callable[[], np.ndarray]
    """() → uint8 (H, W, 3), or a clip."""
    record: Mapping
    score: float
    tolerance: float


@dataclass(frozen=True)
class Reward:
    """A function that scores images, and what one has to know of it.  Weights and normalisation are the run's."""

    name: str
    score: Scorer | None
    """None: `load` makes it."""
    low: float = -math.inf
    """The scorer says nothing lower."""
    high: float = math.inf
    """Nor anything higher."""
    version: str = "1"
    """Changes whenever the same image may get another score."""
    needs: Callable[[dict], None] | None = None
    """What it reads of a record besides the prompt: ValueError with one sentence when it is not there."""
    clips: bool = False
    """It sees whole clips; others see images, and a clip's frames one by one."""
    extra: str | None = None
    """The extra of afterflow that brings its libraries."""
    libraries: tuple[str, ...] = ()
    """They."""
    canary: Canary | None = None
    scale: float = 1.0
    """What the scorer's numbers are multiplied by: the published normalisation."""
    load: Callable[[RewardModels], Scorer] | None = None
    """Makes the scorer of a network."""

    def __call__(self, images: np.ndarray, records: Sequence[dict]) -> Scored:
        """B scores.  An image without one, or with one out of range, has NaN and a reason, never a number.

        ValueError when the answer is not one number for each image.
        """
        assert self.score is not None
        try:
            found = self.score(images, records)
        except Exception as error:
            if len(images) == 1:
                return Scored(np.array([np.nan]), {}, {0: f"{type(error).__name__}: {error}"})
            # Which of them it was is worth knowing, and the others have their scores.
            log.warning("reward %s failed on %d images, which are scored one by one: %r", self.name, len(images), error)
            return concatenate_scored([self(images[i : i + 1], records[i : i + 1]) for i in range(len(images))])
        found = found if isinstance(found, Scored) else Scored(found)
        values = np.array(found.values, np.float64)
        if values.shape != (len(images),):
            raise ValueError(
                f"reward {self.name} answered with shape {values.shape} for {len(images)} images; one number for each"
            )
        why = dict(found.why)
        for i in np.flatnonzero(~((values >= self.low) & (values <= self.high) & np.isfinite(values))).tolist():
            said = f"{values[i]:g} is outside of [{self.low:g}, {self.high:g}]"
            why.setdefault(i, "it is not a finite number" if not math.isfinite(values[i]) else said)
        values[list(why)] = np.nan
        return Scored(self.scale * values, found.parts, why)


def concatenate_scored(scored: Sequence[Scored]) -> Scored:
    """Of batches one after another, as of one.  A part that some of them do not have is NaN there."""
    names = dict.fromkeys(name for each in scored for name in each.parts)
    nothing = lambda each: np.full(len(each.values), np.nan)
    column = lambda name: np.concatenate([each.parts.get(name, nothing(each)) for each in scored])
    before = np.cumsum([0, *(len(each.values) for each in scored)]).tolist()
    why = {first + i: reason for first, each in zip(before, scored) for i, reason in each.why.items()}
    return Scored(np.concatenate([each.values for each in scored]), {name: column(name) for name in names}, why)


def network_reward(
    name: str, low: float = -math.inf, high: float = math.inf, **about
) -> Callable[[Callable[[RewardModels], Scorer]], Reward]:
    """Make a reward of the function below, which loads one."""
    return lambda load: Reward(name, None, low, high, load=load, **about)


def reward(name: str, low: float = -math.inf, high: float = math.inf, **about) -> Callable[[Scorer], Reward]:
    """Make a reward of the function below; `about` is what else `Reward` says of one."""
    return lambda score: Reward(name, score, low, high, **about)


class Judge(Protocol):
    def __call__(
        self,
        images: np.ndarray,
        records: Sequence[dict],
        first: np.ndarray,
        second: np.ndarray,
        seeds: np.ndarray,
    ) -> "np.ndarray | Scored":
        """Which of two images answers their prompt better?

        uint8 (B, H, W, 3), their B records, Q pairs of rows, the one shown first and the one shown second, of the same
        record, and a random number (Q,) int64 for each pair, for judges that draw → float (Q,) in [0, 1]: 1 the first,
        0 the second, 0.5 neither; NaN with a reason where it has no answer.
        """
        ...


Verdicts = Callable[[np.ndarray, Sequence[dict]], list[dict[str, float]]]


def remembering(verify: Callable[[dict, np.ndarray], dict[str, float]]) -> Verdicts:
    """Every verdict on each image of a batch; the last batch's are kept, because rewards ask for them one by one."""
    last: tuple[bytes, list[dict], list[dict[str, float]]] = (b"", [], [])

    def verdicts(images: np.ndarray, records: Sequence[dict]) -> list[dict[str, float]]:
        nonlocal last
        key, asked, found = images.tobytes(), list(records), last  # another thread may put another batch there
        if (key, asked) != found[:2]:
            found = last = (key, asked, [verify(record, image) for record, image in zip(asked, images)])
        return found[2]

    return verdicts
