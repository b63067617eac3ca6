"""The interface of algorithms: what the trainer sees of them, and what it gives them.

Supervised algorithms see pairs (image, prompt); on-policy algorithms see steps that the current policy took.  Both end
in `losses`, and the trainer knows nothing else about them.

An algorithm class is final: to vary one, write another beside it that calls the same functions.  The bases here hold
the options that several algorithms have in common; an algorithm repeats a field where its paper sets another default.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Generic, Literal, Protocol, TypeGuard, TypeVar

import torch
from torch import Tensor

from ..objectives.advantages import Blend
from ..sampling.conditioning import Conditioning, Pairs, Velocity
from ..sampling.flow import DensityName, WeightingName
from ..sampling.kernels import KERNELS, Kernel, KernelName
from ..sampling.rollout import Levels, Plan, Transitions
from ..sampling.row_random import RowRandom
from ..sampling.schedules import ScheduleOption, SD3Grid
from ..system.errors import ConfigError
from .lag import Lag

Metrics = dict[str, Tensor]

WITHOUT_KL = "without a KL"
"""Why an option that holds the policy near to a reference has no use."""


def require(holds: bool, message: str) -> None:
    """Raise ConfigError with the message, which says what to change, where an option cannot be."""
    if not holds:
        raise ConfigError(message)


def check_cps(kernel: KernelName, eta: float) -> None:
    """Raise ValueError for a noise level that the kernel cps does not have."""
    require(kernel != "cps" or eta < 1, f"eta = {eta}: cps swaps a share of the noise; take eta < 1")


@dataclass(frozen=True)
class Models:
    """The velocity fields that an algorithm may call.  Only the policy has gradients."""

    policy: Velocity
    """The field that is trained.  It is guided where it explores under guidance, and never where images teach it."""
    reference: Velocity | None = None
    """The policy before training."""
    teachers: Mapping[str, Velocity] = field(default_factory=dict)
    """Teachers by task; one may teach several tasks."""
    anchor: Velocity | None = None
    """The field that all samples stay near to."""
    guided: Velocity | None = None
    """The policy under the run's guidance, where images teach it without."""
    lagged: Mapping[str, Velocity] = field(default_factory=dict)
    """Averages of the policy by name, which follow it iteration by iteration."""
    explorer: Velocity | None = None
    """The field that makes the images of a rollout, where that is not the policy that is trained."""

    @property
    def draws(self) -> Velocity:
        """The field that makes the images of a rollout."""
        return self.explorer or self.policy


class Rows(Protocol):
    """Rows are training examples in any order."""

    @property
    def cond(self) -> Conditioning:
        """Return the conditioning of the rows."""
        ...

    def mass(self, rows: Tensor) -> float:
        """Return how much these rows count beside the other microbatches of an update."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor) -> "Rows": ...


R = TypeVar("R", bound=Rows)

WIN_RATE = "win_rate"
"""The reward that comes from comparing images instead of from one image."""


@dataclass(frozen=True)
class Scores:
    """What rewards and judges say about P groups of G finished images.  NaN marks a missing score."""

    rewards: Mapping[str, Tensor]  # (P, G), higher is better
    judged: Mapping[str, Tensor] = field(default_factory=dict)  # (P, G, G): in [0, 1], whether image i beats image j
    past: Mapping[str, Tensor] = field(default_factory=dict)  # (P, H): earlier rewards of the same prompt, NaN-padded
    prompt: Tensor | None = None  # (P,) long: equal where two groups have one prompt; None where none have
    parts: Mapping[str, Tensor] = field(default_factory=dict)  # (P, G): what rewards are made of, to be logged
    failures: Mapping[str, Sequence[str]] = field(default_factory=dict)  # prompt and reason of each NaN, by reward


@dataclass(frozen=True)
class Comparisons:
    """The pairs of a group that a judge is shown."""

    both_orders: bool = True
    """Whether a pair is shown in both orders; else it is shown once, in a random order."""
    opponents: int | None = None
    """Number of images that an image is compared with; None compares it with all of its group."""

    def check(self, group: int) -> None:
        """Raise ValueError where a group of this size has no such pairs."""
        m = self.opponents
        fits = m is None or (m % 2 == 0 and 2 <= m <= group - 1)
        require(fits, f"compare.opponents = {m}: an even number, from 2 to the {group - 1} others, or None for all")


ReferenceModel = Literal["start", "base", "average"]


@dataclass(frozen=True)
class Reference:
    """The velocity that a KL, or a distance of velocities, is taken to."""

    model: ReferenceModel = "start"
    """start: the policy before training, with the LoRA that it began from.  base: the model without any LoRA.
    average: the policy's own average."""
    guidance_scale: float | None = None
    """Guidance scale of the reference; None takes the policy's."""


@dataclass(frozen=True)
class Requirements:
    """What a run must give to an algorithm."""

    weights: Mapping[str, float] = field(default_factory=dict)
    """Rewards and how much each counts."""
    blend: Blend | None = None
    """How rewards become one advantage, where they do; its gates are rewards too."""
    comparisons: Comparisons | None = None
    """The pairs that a judge compares, if any."""
    history: int = 0
    """Number of earlier rewards of each prompt."""
    reference: Reference | None = None
    """The velocity that it is held near to, if any."""
    lagged: Mapping[str, Lag] = field(default_factory=dict)
    """Averages of the policy that it calls, by name, and how slowly each follows."""
    explorer: str | None = None
    """The average that makes the images of a rollout; None: the policy."""
    all_rows: bool = False
    """Whether a row of advantage 0 has a gradient too, of a KL or a teacher; else no forward pass is spent on it."""
    whole_batch: bool = False
    """Whether the advantages of a prompt depend on the rewards of other prompts."""
    pruned: float = 0.0
    """Share of the selected steps that rewards take out of training."""
    route: str | None = None
    """Key of a record that says which teacher teaches it, if teachers are wanted."""
    anchor: str | None = None
    """The model that all samples stay near to: `base`, or a teacher by its name."""
    pairs: bool = False
    """Whether each image to learn from comes with one that lost against it."""
    evaluations: float = 0.0
    """Velocities computed for an image in an update, where images teach the policy."""

    @property
    def waits_for_batch(self) -> bool:
        """Return whether no advantage is known before all images of the batch are scored."""
        return self.whole_batch or self.history > 0

    @property
    def rewards(self) -> tuple[str, ...]:
        """Return the rewards of single images that have a weight or are a gate; a win rate comes from a judge."""
        names = [*self.weights, *(self.blend.gate if self.blend else ())]
        return tuple(name for name in dict.fromkeys(names) if name != WIN_RATE)


class Algorithm(ABC, Generic[R]):
    """What the trainer sees of an algorithm."""

    @property
    @abstractmethod
    def requirements(self) -> Requirements:
        """Return what a run must give to the algorithm."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences about its options that a run says at its start; nothing is refused for them."""
        return tuple(
            f"algorithm.{name} = {value} has no use {why}"
            for why, names in self.unused().items()
            for name, value in self._changed(names).items()
        )

    def unused(self) -> dict[str, tuple[str, ...]]:
        """Return why → names of options that do nothing as the others are set; they may come from a recipe."""
        return {}

    def check_unused(self, *names: str) -> None:
        """Raise ConfigError for options that were changed and that the method has no use for, as it is set."""
        for name, value in self._changed(names).items():
            raise ConfigError(f"{name} = {value}: {type(self).__name__} has no use for it as it is set; leave it out")

    def _changed(self, names: Sequence[str]) -> dict[str, object]:
        """Return the values of those options, such as beta or prune.every, that are not at their defaults."""
        values = {name: attrgetter(name)(self) for name in names}
        return {name: value for name, value in values.items() if value != default_of(type(self), name)}

    @abstractmethod
    def losses(self, models: Models, batch: R) -> Iterator[tuple[Tensor, Metrics]]:
        """Yield scalars to descend, one after another so that only one graph is in memory, and scalars to log.

        Both add up to averages over the mass of the batch.
        """


def default_of(options: type, name: str) -> object:
    """Return the default of an option of a dataclass, or of an option of its options, such as prune.every."""
    name, _, rest = name.partition(".")
    (default,) = (option.default for option in fields(options) if option.name == name)
    return attrgetter(rest)(default) if rest else default


@dataclass(frozen=True)
class Supervised(Algorithm[Pairs]):
    """An algorithm that learns from images with prompts."""

    density: DensityName = "logit_normal"
    """Density from which training times are drawn, before the shift."""
    shift: float | None = 3.0
    """Shift of training times towards the noise, as SD3's sampler shifts its steps; None takes the model's own."""
    weighting: WeightingName = "none"
    """Weight of the loss at time t: 1 (none), t^-2 (sigma_sqrt), or highest in the middle (cosmap)."""
    dropout: float = 0.0
    """Share of rows whose prompt is replaced by the empty one, so that guidance has something to steer from."""

    def losses(self, models: Models, batch: Pairs) -> Iterator[tuple[Tensor, Metrics]]:
        """Yield the regression losses, with random numbers from the seeds of the rows."""
        assert batch.seeds is not None
        return self.regression_losses(models, batch, RowRandom.seeded(batch.seeds))

    @abstractmethod
    def masses(self, batch: Pairs) -> Tensor | None:
        """Return how much each row counts in its update, (B,) fp64, by its seed; None where all count alike."""

    @abstractmethod
    def regression_losses(self, models: Models, batch: Pairs, random: RowRandom) -> Iterator[tuple[Tensor, Metrics]]:
        """Yield scalars to descend and scalars to log; both add up to averages over the batch."""

    def check_times(self) -> None:
        """Raise ValueError for a shift or a dropout that cannot be."""
        require(self.shift is None or self.shift > 0, f"shift = {self.shift}: it must be positive")
        require(0 <= self.dropout < 1, f"dropout = {self.dropout}: a share of the prompts, so 0 <= dropout < 1")


@dataclass(frozen=True)
class OnPolicy(Algorithm[R]):
    """An algorithm that learns from steps that the current policy took."""

    weights: Mapping[str, float] = field(default_factory=dict)
    """Rewards and how much each counts."""
    steps: int = 10
    """Number of denoising steps of a rollout; evaluation takes more."""
    schedule: ScheduleOption = SD3Grid()
    """Times of the steps between noise and image; None takes the grid of the model's own pipeline."""
    kernel: KernelName = "flow_sde"
    """Kernel that draws a stochastic step."""
    eta: float = 0.7
    """Noise level of the stochastic steps (the papers' a; for cps on [0, 1])."""

    @property
    def step_kernel(self) -> Kernel:
        """Return the kernel that draws each step of a rollout."""
        return KERNELS[self.kernel]

    @abstractmethod
    def plan(self, step: int, generator: torch.Generator) -> Plan:
        """Return the plan of the rollouts of iteration `step`."""

    def select(self, plan: Plan, prompts: int, generator: torch.Generator) -> Levels:
        """Return which states of P prompts may be trained, N of (P, W_{k+1}) bool, before a reward is known.

        The plan and the credit take others out.

        Args:
            plan: The plan of the rollouts.
            prompts: P.
            generator: The source of what is random in the choice.
        """
        return [torch.ones(prompts, width, dtype=torch.bool) for width in plan.widths[1:]]

    @abstractmethod
    def credit(self, plan: Plan, log_prob: Levels, scores: Scores) -> Levels:
        """Return the advantages of each step, N of (P, W_{k+1}, R).

        NaN takes a state out of training: it has no reward, or its reward takes it out.  A state of advantage 0 stays
        in the mean of the loss.

        Args:
            plan: The plan of the rollouts.
            log_prob: The log-probability of each step, N of (P, W_{k+1}).
            scores: The scores of the finished images.
        """

    @abstractmethod
    def rows(self, models: Models, steps: Transitions) -> R:
        """Return the rows to train on, from the steps of a rollout with their advantages."""

    @abstractmethod
    def loss(self, models: Models, batch: R) -> tuple[Tensor, Metrics]:
        """Return a scalar to descend, averaged over the mass of the batch, and scalars to log.

        The trainer leaves rows without a gradient out of the batch, and counts them in the mean over an update.
        """

    def losses(self, models: Models, batch: R) -> Iterator[tuple[Tensor, Metrics]]:
        """Yield the one loss."""
        yield self.loss(models, batch)


def explores(algorithm: Algorithm) -> TypeGuard[OnPolicy]:
    """Return whether the policy makes its own examples by rollouts; else images teach it."""
    return isinstance(algorithm, OnPolicy)
