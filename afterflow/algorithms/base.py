"""What an algorithm is.

Supervised algorithms see pairs (image, prompt); on-policy algorithms see steps that the current
policy took.  Both end in `loss`, and the trainer knows nothing else about them.

An algorithm class is final: to vary one, write another beside it that calls the same functions.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from ..cond import Cond, Pairs, Velocity
from ..kernels import Gaussian, Kernel
from ..rollout import Edges, Plan, Rollout

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Models:
    """The velocity fields an algorithm may call.  Only the policy has gradients."""

    policy: Velocity
    """What is trained: under guidance where it is explored so, as it is where images teach it."""
    reference: Velocity | None = None
    teachers: Mapping[str, Velocity] = field(default_factory=dict)  # one per task
    guided: Velocity | None = None
    """The policy under the run's guidance, where images teach it without."""


class Rows(Protocol):
    """Training examples in any order: what `credit` returns and `loss` takes."""

    @property
    def cond(self) -> Cond: ...

    def mass(self, rows: Tensor) -> float:
        """How much these rows count beside the other microbatches of an update."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor) -> "Rows": ...


R = TypeVar("R", bound=Rows)


class Supervised(ABC):
    @abstractmethod
    def loss(self, models: Models, batch: Pairs, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """A scalar to descend, averaged over the batch, and scalars to log."""


class OnPolicy(ABC, Generic[R]):
    weights: Mapping[str, float]
    """The rewards it needs, and how much each counts."""

    @property
    @abstractmethod
    def step_kernel(self) -> Kernel:
        """What draws each step of a rollout."""

    @property
    @abstractmethod
    def needs_reference(self) -> bool:
        """Whether `credit` or `loss` calls the reference."""

    @abstractmethod
    def plan(self, step: int, generator: torch.Generator) -> Plan:
        """The rollouts of iteration `step`."""

    @abstractmethod
    def credit(self, models: Models, rollout: Rollout, rewards: Mapping[str, Tensor], generator: torch.Generator) -> R:
        """The rows to train on and their advantages, from named rewards (P, G) of the leaves."""

    @abstractmethod
    def loss(self, models: Models, batch: R) -> tuple[Tensor, Metrics]:
        """A scalar to descend, averaged over the mass of the batch, and scalars to log."""


def step(velocity: Velocity, kernel: Kernel, batch: Edges) -> Gaussian:
    """The Gaussian from which `velocity` would have drawn the children of batch.x: M rows."""
    return kernel(batch.x, velocity(batch.x, batch.t, batch.cond), batch.t, batch.s, batch.eta)


def per_child(p: Gaussian, batch: Edges) -> Gaussian:
    """A Gaussian of M parents → one row for each of their M * C children."""
    children = batch.x_next.shape[1]
    return p if children == 1 else Gaussian(*(a.repeat_interleave(children, 0) for a in p))


def weighted_mean(value: Tensor, batch: Edges) -> Tensor:
    """Mean of value (M, C) over the children that count."""
    return (value * batch.weight).sum() / batch.weight.sum()
