"""What a reward is, and what a judge is."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

import numpy as np

from ..system.addresses import check_address, check_no_secrets
from ..system.checks import check_at_least_one, check_finite
from ..system.errors import AfterflowError, ConfigError
from ..system.input_pictures import with_digests
from ..system.names import unknown_name
from .vlm.servers import ChatServer

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

REWARD_OPTIONS = (
    "geneval_threshold",
    "geneval_counting_threshold",
    "video_align_fps",
    "video_align_vq",
    "video_align_mq",
    "video_align_ta",
)


PUBLIC_MODULES = ("builtins", "afterflow")
"""Whose names of exceptions may be shown to anyone."""


class NoAnswer(AfterflowError):
    """A server that a reward asks gave no answer; asking about each image alone would give none either."""


class ErrorReason(str):
    """A reason that repeats an exception's words: they may name files, addresses and keys, so no service passes it on.

    `kind` is the name of the exception's class, or of the nearest one that is Python's or ours.
    """

    kind: str

    @classmethod
    def of(cls, error: BaseException, text: str) -> "ErrorReason":
        """Return a text about an exception as a reason."""
        reason = cls(text)
        reason.kind = public_kind(error)
        return reason


def public_kind(error: BaseException) -> str:
    """Return the name of an exception's class, or of the nearest one that is Python's or ours."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__.partition(".")[0] in PUBLIC_MODULES)


@dataclass(frozen=True)
class Scored:
    """The scores of B images."""

    values: np.ndarray
    """The scores, (B,) floats.  NaN means that an image has no score."""
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Named components of the scores, (B,) floats each, which are logged beside them."""
    why: Mapping[int, str] = field(default_factory=dict)
    """The reason for every missing score, by the row of its image."""

    def row(self, index: int) -> "Scored":
        """Return what is scored about one image, as a batch of one."""
        parts = {name: values[index : index + 1] for name, values in self.parts.items()}
        return Scored(self.values[index : index + 1], parts, {0: self.why[index]} if index in self.why else {})


class Scorer(Protocol):
    """A function that scores images."""

    def __call__(self, images: np.ndarray, records: Sequence[dict], /) -> "np.ndarray | Scored":
        """Score uint8 images (B, H, W, 3), or clips (B, F, H, W, 3), with B records: floats (B,), NaN = no score."""
        ...


@dataclass(frozen=True)
class RewardModels:
    """Where rewards that are networks run, and on whose weights."""

    device: str | None = None
    """The torch device of the networks.  None takes the first accelerator, or the CPU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The precision of the networks' weights and forward passes."""
    batch: int = 32
    """Number of images in a forward pass."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Weights by reward, where they are not the published ones: a hub id, a folder or a file."""
    options: Mapping[str, float] = field(default_factory=dict)
    """Numbers that rewards read.  They are geneval_threshold (.3), geneval_counting_threshold (.9), video_align_fps (16
    frames a second), and video_align_vq, _mq and _ta (1, the weights of VideoReward's three ratings)."""
    servers: Mapping[str, str] = field(default_factory=dict)
    """Addresses by reward, of services that score it (afterflow serve-rewards).  Commas separate several."""
    chat: ChatServer = ChatServer()
    """What the chat server is that the rewards of vision-language models ask."""
    ignore_canary: tuple[str, ...] = field(default=(), repr=False)
    """Rewards, or `judge`, that are used even though they do not tell the pictures apart on which they are tried."""

    def __post_init__(self) -> None:
        check_finite(self, "reward_models")
        check_at_least_one(self, "batch", prefix="reward_models.")
        check_no_secrets(self, "reward_models")
        for name in self.options:
            if name not in REWARD_OPTIONS:
                raise unknown_name("option of reward_models", name, REWARD_OPTIONS)
        for name, addresses in self.servers.items():
            for address in addresses.split(","):
                check_address(f"reward_models.servers: {name}", address)
            if name in self.weights:
                raise ConfigError(f"reward_models.weights: {name} is scored by a service, which has weights of its own")

    def __hash__(self) -> int:
        return hash((self.device, self.dtype, self.batch))  # equal ones have equal mappings, which have no hash

    @property
    def torch_device(self) -> str:
        """Return the device that is given, or the first accelerator, or the CPU."""
        import torch

        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    def weights_source(self, reward: str, published: tuple[str, str | None]) -> tuple[str, str | None]:
        """Return the hub id or folder of a reward's weights, and the revision: those given, or the published ones."""
        return (self.weights[reward], None) if reward in self.weights else published


@dataclass(frozen=True)
class Canary:
    """A picture whose score is known, which shows a changed library or broken preprocessing before training."""

    picture: Callable[[], np.ndarray]
    """Makes the picture, uint8 (H, W, 3), or a clip (F, H, W, 3)."""
    record: Mapping
    """The record of the picture's prompt."""
    score: float
    """The score that the reward had for it when it was written."""
    tolerance: float
    """The largest allowed difference from that score."""


@dataclass(frozen=True)
class CanaryCase:
    """Two pictures of which one must score more than the other."""

    better: np.ndarray
    """The picture that scores more, uint8 (H, W, 3), or a clip (F, H, W, 3)."""
    worse: np.ndarray
    """A picture of the same size that scores less."""
    record: Mapping
    """The record for which both are scored."""


@dataclass(frozen=True)
class OrderCanary:
    """Pictures whose order is known, where their scores are not: a network that mixes them up sees nothing."""

    cases: Callable[[], Sequence[CanaryCase]]
    """Makes the cases, whose pictures all have one size."""
    margin: float = 1e-3
    """The least difference of two scores that counts as one."""
    local: bool = False
    """Whether records name files, so that only the process that scores can try it."""


@dataclass(frozen=True)
class Reward:
    """A function that scores images, with what training has to know about it."""

    name: str
    """The name that users type."""
    score: Scorer | None
    """The function itself.  It is None where `load` makes it."""
    low: float = -math.inf
    """The lowest score that the function can give."""
    high: float = math.inf
    """The highest score that the function can give."""
    version: str = "1"
    """A label that changes whenever the same image may get another score."""
    needs: Callable[[dict], None] | None = None
    """Raises ValueError, in one sentence, where a record lacks what the reward reads besides the prompt.  A service
    tells its clients the sentence of an InputError."""
    client_needs: Callable[[dict], None] | None = None
    """The part of `needs` that is checked where a service scores, without the reward's libraries.  None: all of it."""
    side: int | None = None
    """Height and width in pixels of the only images that it judges.  None: it judges those of every size."""
    clips: bool = False
    """Whether it scores whole clips.  Other rewards score images, and the frames of a clip one by one."""
    extra: str | None = None
    """The extra of afterflow that installs its libraries."""
    libraries: tuple[str, ...] = ()
    """The libraries that it imports and that afterflow itself does not need."""
    canary: Canary | OrderCanary | None = None
    """A picture with a known score, or pictures in a known order, on which the reward is tried before training."""
    sees: str | None = None
    """The part of its scores that counts what it sees in a picture.  Where that is 0 everywhere, its scores say
    nothing."""
    scale: float = 1.0
    """The factor of its scores: what a published normalisation multiplies by."""
    load: Callable[[RewardModels], Scorer] | None = None
    """Loads a network and returns the function that scores with it."""
    weights: tuple[str, ...] | None = None
    """The names in `RewardModels.weights` that `load` reads.  None: its own alone, or none without `load`."""
    options: tuple[str, ...] = ()
    """The names in `RewardModels.options` that `load` reads."""

    @property
    def weights_read(self) -> tuple[str, ...]:
        """Return the names in `RewardModels.weights` that loading it reads."""
        if self.load is None:
            return ()
        return (self.name,) if self.weights is None else self.weights

    def __hash__(self) -> int:
        return hash(self.name)  # so that it can be the key of a weight; a canary's record has no hash

    def __call__(self, images: np.ndarray, records: Sequence[dict]) -> Scored:
        """Score B images.  An image without a score, or with one out of range, has NaN and a reason, never a number.

        The function sees images that it cannot write into, and records of its own.

        Raises ValueError when the answer, or a part of it, is not one number for each image.
        """
        assert self.score is not None
        try:
            scored = self.score(read_only(images), own_copies(records))
        except Exception as error:
            if len(images) == 1 or isinstance(error, NoAnswer):
                reason = ErrorReason.of(error, f"{type(error).__name__}: {error}")
                return Scored(np.full(len(images), np.nan), {}, dict.fromkeys(range(len(images)), reason))
            # Which of them it was is worth knowing, and the others have their scores.
            message = "reward %s failed on %d images, which are scored one by one: %r"
            _log.warning(message, self.name, len(images), error)
            return concatenate_scored([self(images[i : i + 1], records[i : i + 1]) for i in range(len(images))])
        request = f"for {len(images)} images; one number for each"
        scored = checked_answer(f"reward {self.name}", scored, len(images), request)
        values, why = np.array(scored.values), dict(scored.why)
        for i in np.flatnonzero(~((values >= self.low) & (values <= self.high) & np.isfinite(values))).tolist():
            out_of_range = f"{values[i]:g} is outside of [{self.low:g}, {self.high:g}]"
            why.setdefault(i, out_of_range if math.isfinite(values[i]) else "it is not a finite number")
        values[list(why)] = np.nan
        return Scored(self.scale * values, scored.parts, why)


def read_only(images: np.ndarray) -> np.ndarray:
    """Return a view of images that cannot be written into: others score, judge and store the same ones."""
    view = images.view()
    view.flags.writeable = False
    return view


def own_copies(records: Sequence[dict]) -> list[dict]:
    """Return copies of records, of which those that are one object stay one."""
    copies = {id(record): deepcopy(record) for record in records}
    return [copies[id(record)] for record in records]


def checked_answer(who: str, answer: "np.ndarray | Scored", count: int, request: str) -> Scored:
    """Return an answer with fp64 numbers; ValueError where it, or a part of it, is not one number for each row.

    Args:
        who: What messages call the reward or judge.
        answer: Its answer.
        count: Number of images, or of pairs.
        request: What was asked of it, after the shape of an answer.
    """
    scored = answer if isinstance(answer, Scored) else Scored(answer)
    values = checked_numbers(who, scored.values, count, request)
    parts = {
        name: checked_numbers(f"{who}, part {name!r},", part, count, request) for name, part in scored.parts.items()
    }
    rows = [row for row in scored.why if not (isinstance(row, int | np.integer) and 0 <= row < count)]
    if rows:
        raise ValueError(f"{who} gave a reason for row {rows[0]!r}, and its rows are 0 to {count - 1}")
    return Scored(values, parts, scored.why)


def checked_numbers(who: str, numbers: object, count: int, request: str) -> np.ndarray:
    """Return numbers as (count,) fp64; ValueError where they are not one for each row."""
    try:
        values = np.array(numbers, np.float64)
    except Exception as error:  # of what is no array, as a tensor of an accelerator, each library has its own
        raise ValueError(f"{who} answered with no numbers {request} ({type(error).__name__}: {error})") from error
    if values.shape != (count,):
        raise ValueError(f"{who} answered with shape {values.shape} {request}")
    return values


def concatenate_scored(batches: Sequence[Scored]) -> Scored:
    """Return the scores of several batches as one.  A part that a batch does not have is NaN there."""
    names = dict.fromkeys(name for batch in batches for name in batch.parts)
    missing = [np.full(len(batch.values), np.nan) for batch in batches]
    column = lambda name: np.concatenate([batch.parts.get(name, nan) for batch, nan in zip(batches, missing)])
    offsets = np.cumsum([0, *(len(batch.values) for batch in batches)]).tolist()
    why = {offset + i: reason for offset, batch in zip(offsets, batches) for i, reason in batch.why.items()}
    return Scored(np.concatenate([batch.values for batch in batches]), {name: column(name) for name in names}, why)


def reward(name: str, low: float = -math.inf, high: float = math.inf, **fields) -> Callable[[Scorer], Reward]:
    """Make a reward of the decorated function, which scores images; `fields` are other fields of `Reward`."""
    return lambda score: Reward(name, score, low, high, **fields)


def network_reward(
    name: str, low: float = -math.inf, high: float = math.inf, **fields
) -> Callable[[Callable[[RewardModels], Scorer]], Reward]:
    """Make a reward of the decorated function, which loads a network; `fields` are other fields of `Reward`."""
    return lambda load: Reward(name, None, low, high, load=load, **fields)


@dataclass(frozen=True)
class ImagePairs:
    """Pairs of images for a judge; the two images of a pair were made for the same prompt."""

    images: np.ndarray
    """The uint8 images, (B, H, W, 3)."""
    records: Sequence[dict]
    """The B records of the images."""
    first: np.ndarray
    """The rows of the images that are shown first, (Q,)."""
    second: np.ndarray
    """The rows of the images that are shown second, (Q,)."""
    seeds: np.ndarray
    """A random number for each pair, (Q,) int64, for judges that draw."""


class Judge(Protocol):
    """A function that says which of two images is better."""

    def __call__(self, pairs: ImagePairs, /) -> "np.ndarray | Scored":
        """Judge Q pairs: floats (Q,) in [0, 1], where 1 is the first image, 0 the second, and 0.5 neither.

        A pair without an answer has NaN, and a reason in `Scored.why`.
        """
        ...


def remember_last_batch(
    compute: Callable[[np.ndarray, Sequence[dict]], list[_T]],
) -> Callable[[np.ndarray, Sequence[dict]], list[_T]]:
    """Make the decorated function remember its last batch, because several rewards ask about it one by one.

    A batch is another one where the file of a picture that a record names has changed.
    """
    last: tuple[bytes, list[dict], list[_T]] = (b"", [], [])

    def remembered(images: np.ndarray, records: Sequence[dict]) -> list[_T]:
        nonlocal last
        memory = last  # another thread may store another batch
        pixels, rows = images.tobytes(), list(map(with_digests, records))
        if memory[:2] != (pixels, rows):
            memory = last = (pixels, rows, compute(images, list(records)))
        return memory[2]

    return remembered


def verdict_reward(
    name: str, verdicts: Callable[[np.ndarray, Sequence[dict]], list[dict[str, float]]], low: float = 0.0, **fields
) -> Reward:
    """Return the reward WORLD_VERDICT, one verdict of a world's verifier; `fields` are other fields of `Reward`."""
    key = name.partition("_")[2]
    score = lambda images, records: np.array([verdict[key] for verdict in verdicts(images, records)])
    return Reward(name, score, low, 1.0, **fields)
