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

from ..advantages import Blend
from ..cond import Cond, Pairs, Velocity
from ..kernels import KERNELS, Gaussian, Kernel, KernelName, log_prob
from ..losses import clipped_surrogate, guard_log_ratio
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

WIN_RATE = "win_rate"
"""The reward that comes from comparing images instead of from one image."""


@dataclass(frozen=True)
class Scores:
    """What was said about P groups of G finished images.  NaN: no score could be had."""

    rewards: Mapping[str, Tensor]  # (P, G), higher is better
    judged: Mapping[str, Tensor] = field(default_factory=dict)  # (P, G, G): in [0, 1], whether image i beats image j
    past: Mapping[str, Tensor] = field(default_factory=dict)  # (P, H): earlier rewards of the same prompt, NaN-padded


class Supervised(ABC):
    @abstractmethod
    def loss(self, models: Models, batch: Pairs, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """A scalar to descend, averaged over the batch, and scalars to log."""


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


class OnPolicy(ABC, Generic[R]):
    weights: Mapping[str, float]
    """The rewards it needs, and how much each counts."""
    blend: Blend
    """How they become one advantage; its gates are rewards too."""
    kernel: KernelName
    """The name of `step_kernel`."""

    @property
    def pointwise(self) -> tuple[str, ...]:
        """The rewards to ask for, gates included: all but the win rate, which `credit` takes from `judged`."""
        return tuple(name for name in dict.fromkeys([*self.weights, *self.blend.gate]) if name != WIN_RATE)

    @property
    def remembers(self) -> int:
        """How many earlier rewards of each prompt `credit` wants to see."""
        return 0

    @property
    def comparisons(self) -> Comparisons | None:
        """The pairs it wants judged, if any."""
        return None

    @property
    def step_kernel(self) -> Kernel:
        """What draws each step of a rollout."""
        return KERNELS[self.kernel]

    @property
    @abstractmethod
    def needs_reference(self) -> bool:
        """Whether `credit` or `loss` calls the reference."""

    @abstractmethod
    def plan(self, step: int, generator: torch.Generator) -> Plan:
        """The rollouts of iteration `step`."""

    @abstractmethod
    def credit(self, models: Models, rollout: Rollout, scores: Scores, generator: torch.Generator) -> R:
        """The rows to train on and their advantages, from what was said about the leaves."""

    @abstractmethod
    def loss(self, models: Models, batch: R) -> tuple[Tensor, Metrics]:
        """A scalar to descend, averaged over the mass of the batch, and scalars to log."""


def require(holds: bool, sentence: str) -> None:
    """ValueError with the sentence, which says what to change, where an option cannot be."""
    if not holds:
        raise ValueError(sentence)


def check_group(group: int) -> None:
    require(group >= 2, f"group = {group}: an advantage compares images of one prompt; take at least 2")


def check_policy_gradient(steps: int, kernel: KernelName, eta: float, clip: float, max_advantage: float) -> None:
    require(steps >= 2, f"steps = {steps}: the step onto the image is not trained; take at least 2")
    require(eta > 0, f"eta = {eta}: a policy gradient needs stochastic steps; take eta > 0")
    require(kernel != "cps" or eta < 1, f"eta = {eta}: cps swaps a share of the noise; take eta < 1")
    positive = clip > 0 and max_advantage > 0
    require(positive, f"clip = {clip}, max_advantage = {max_advantage}: both must be positive")


def untied(advantage: Tensor) -> Tensor:
    """(..., R) with NaN where nothing would pull on a step, so that no forward pass is spent on it."""
    return torch.where((advantage == 0).all(-1, keepdim=True), torch.nan, advantage)


def share_of_steps(steps: int, fraction: float) -> int:
    """How many of the steps before the last `fraction` is; ValueError where that is none."""
    count = int((steps - 1) * fraction)
    holds = 0 < fraction <= 1 and count >= 1
    require(holds, f"fraction = {fraction}: a share of the {steps - 1} steps before the last, at least one of them")
    return count


def random_steps(advantage: Tensor, steps: int, keep: int, generator: torch.Generator) -> list[Tensor]:
    """For each of `steps`, (P, G, 1) bool: whether an image trains it; each trains `keep` of them."""
    order = torch.rand(*advantage.shape[:2], steps, generator=generator).argsort(-1).argsort(-1)
    return list((order < keep).to(advantage.device)[..., None].unbind(2))


def step(velocity: Velocity, kernel: Kernel, batch: Edges) -> Gaussian:
    """The Gaussian from which `velocity` would have drawn the children of batch.x: M rows."""
    return kernel(batch.x, velocity(batch.x, batch.t, batch.cond), batch.t, batch.s, batch.eta)


def per_child(p: Gaussian, batch: Edges) -> Gaussian:
    """A Gaussian of M parents → one row for each of their K children."""
    return p if len(batch.log_prob) == len(batch) else Gaussian(*(a[batch.parent] for a in p))


def log_ratio(p: Gaussian, batch: Edges) -> Tensor:
    """log ρ = log p(x_s | x_t) - log p_old(x_s | x_t) of the policy's kernels p (M, ...): (K,)."""
    return log_prob(per_child(p, batch), batch.x_next) - batch.log_prob


def guarded_log_ratio(p: Gaussian, batch: Edges) -> Tensor:
    """GRPO-Guard's, (K,), for kernels p (M, ...)."""
    new, old = per_child(p, batch), per_child(Gaussian(batch.mean, p.std), batch)
    return guard_log_ratio(new, old, batch.x_next)


def policy_loss(
    log_ratio: Tensor, batch: Edges, clip: float, step_weight: Tensor | None = None
) -> tuple[Tensor, Metrics]:
    """PPO's clipped surrogate, summed over rewards, averaged over children; log_ratio (K,), step_weight (M,)."""
    surrogate = clipped_surrogate(log_ratio[:, None], batch.advantage, clip).sum(-1)
    loss = (surrogate if step_weight is None else surrogate * step_weight[batch.parent]).mean()
    ratio = log_ratio.detach().exp()
    return loss, {
        "policy_loss": loss.detach(),
        "ratio_mean": ratio.mean(),
        "ratio_max": ratio.max(),
        "clip_fraction": ((ratio - 1).abs() > clip).float().mean(),
    }
