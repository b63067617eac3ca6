"""What an algorithm is.

Supervised algorithms see pairs (image, prompt); on-policy algorithms see steps that the current
policy took.  Both end in `loss`, and the trainer knows nothing else about them.

An algorithm class is final: to vary one, write another beside it that calls the same functions.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from ..objectives.advantages import Blend
from ..sampling.conditioning import Conditioning, Pairs, Velocity
from ..sampling.kernels import KERNELS, Kernel, KernelName
from ..sampling.rollout import Plan, Rollout
from ..sampling.row_random import RowRandom
from .checks import require

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Models:
    """The velocity fields an algorithm may call.  Only the policy has gradients."""

    policy: Velocity
    """What is trained: under guidance where it is explored so, as it is where images teach it."""
    reference: Velocity | None = None
    teachers: Mapping[str, Velocity] = field(default_factory=dict)
    """By task; one may teach several."""
    anchor: Velocity | None = None
    """What all samples stay near to."""
    guided: Velocity | None = None
    """The policy under the run's guidance, where images teach it without."""


class Rows(Protocol):
    """Training examples in any order: what `credit` returns and `loss` takes."""

    @property
    def cond(self) -> Conditioning: ...

    def mass(self, rows: Tensor) -> float:
        """How much these rows count beside the other microbatches of an update."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor) -> "Rows": ...


class Steps(Rows, Protocol):
    """Rows cut out of rollouts, those of this process among those of all."""

    @property
    def place(self) -> Tensor:
        """(len,) long: where each stands among the rows of all processes."""
        ...

    @property
    def total(self) -> int:
        """How many those are."""
        ...

    @property
    def prompt(self) -> Tensor:
        """(len,) long: whose rollout each is of, among the iteration's prompts."""
        ...

    def __getitem__(self, rows: Tensor) -> "Steps": ...


R = TypeVar("R", bound=Steps)

WIN_RATE = "win_rate"
"""The reward that comes from comparing images instead of from one image."""


@dataclass(frozen=True)
class Scores:
    """What was said about P groups of G finished images.  NaN: no score could be had."""

    rewards: Mapping[str, Tensor]  # (P, G), higher is better
    judged: Mapping[str, Tensor] = field(default_factory=dict)  # (P, G, G): in [0, 1], whether image i beats image j
    past: Mapping[str, Tensor] = field(default_factory=dict)  # (P, H): earlier rewards of the same prompt, NaN-padded
    parts: Mapping[str, Tensor] = field(default_factory=dict)  # (P, G): what rewards are made of, to be logged
    failures: Mapping[str, Sequence[str]] = field(default_factory=dict)  # prompt and reason of each NaN, by reward


class Supervised(ABC):
    @property
    @abstractmethod
    def evaluations(self) -> float:
        """Velocities computed for an image in an update."""

    @abstractmethod
    def losses(self, models: Models, batch: Pairs, draws: RowRandom) -> Iterator[tuple[Tensor, Metrics]]:
        """Scalars to descend one after another, so that only one graph is in memory, and scalars to log.

        Both add up, to averages over the batch.  Each row of it has random numbers of its own.
        """


@dataclass(frozen=True)
class Comparisons:
    """Which pairs of a group a judge is shown."""

    both_orders: bool = True
    """Each pair twice; else once, in a random order."""
    opponents: int | None = None
    """Others that an image is compared with, None: all of its group."""

    def check(self, group: int) -> None:
        m = self.opponents
        fits = m is None or (m % 2 == 0 and 2 <= m <= group - 1)
        require(fits, f"compare.opponents = {m}: an even number, from 2 to the {group - 1} others, or None for all")


@dataclass(frozen=True)
class Requirements:
    """What an algorithm is to be given beside a rollout of the policy."""

    rewards: tuple[str, ...]
    """Scores of single images; a win rate is none of them, `credit` takes it from `judged`."""
    blend: Blend | None = None
    """How rewards become one advantage, where they do; its gates are rewards too."""
    comparisons: Comparisons | None = None
    """The pairs it wants judged, if any."""
    history: int = 0
    """Earlier rewards of each prompt, at most so many."""
    reference: bool = False
    """The velocity of the model before training."""
    route: str | None = None
    """The key of a record that says which teacher teaches it, if teachers are wanted."""
    anchor: str | None = None
    """The model that all samples stay near to: `base`, or a teacher by its name."""


def pointwise(weights: Mapping[str, float], blend: Blend) -> tuple[str, ...]:
    """The rewards of single images that have a weight or are a gate."""
    return tuple(name for name in dict.fromkeys([*weights, *blend.gate]) if name != WIN_RATE)


class OnPolicy(ABC, Generic[R]):
    weights: Mapping[str, float]
    """The rewards it needs, and how much each counts."""
    kernel: KernelName
    """The name of `step_kernel`."""

    @property
    @abstractmethod
    def requirements(self) -> Requirements:
        """What `credit` and `loss` are to be given."""

    @property
    def step_kernel(self) -> Kernel:
        """What draws each step of a rollout."""
        return KERNELS[self.kernel]

    @abstractmethod
    def plan(self, step: int, generator: torch.Generator) -> Plan:
        """The rollouts of iteration `step`."""

    @abstractmethod
    def credit(self, models: Models, rollout: Rollout, scores: Scores, generator: torch.Generator) -> R:
        """The rows to train on and their advantages, from what was said about the leaves.

        Scores are those of all processes' prompts, P, of which the rollout has its share.
        """

    @abstractmethod
    def loss(self, models: Models, batch: R) -> tuple[Tensor, Metrics]:
        """A scalar to descend, averaged over the mass of the batch, and scalars to log."""
