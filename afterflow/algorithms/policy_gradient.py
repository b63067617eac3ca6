"""What the policy-gradient methods share: their options, their advantages, and which steps are trained.

Their losses are means over all steps that are trained, as in the papers.  A step of advantage 0, as in a tied group, is
in the mean and costs no forward pass; one without a reward, or not chosen, is NaN and in no mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..objectives.advantages import Blend, Normalize, advantages, gated
from ..sampling.rollout import Transitions
from .base import Models, OnPolicy, check_cps, require

MAX_STEPS = 10_000
"""Steps of a rollout beyond which its plan alone would fill the memory."""


@dataclass(frozen=True)
class PolicyGradient(OnPolicy[Transitions]):
    """A method that descends the clipped ratio of its own steps."""

    blend: Blend = Blend()
    """How several rewards become one advantage."""
    max_advantage: float = 5.0
    """Advantages are clamped to ± this."""
    clip: float = 1e-4
    """ε of the clipped ratio; tiny because log-probabilities are means over coordinates."""
    divergence: float | None = None
    """δ of Flow-DPPO, which replaces the clip: the loss is -ρA, and a step has no gradient where the policy has left
    the one that sampled by a KL above δ and would go further.  Published: 1e-7, for cps 1e-6.  None: the clip."""

    def unused(self) -> dict[str, tuple[str, ...]]:
        """Add the clip where a mask replaces it."""
        return super().unused() | ({"beside divergence": ("clip",)} if self.divergence is not None else {})

    def rows(self, models: Models, steps: Transitions) -> Transitions:
        """Return the steps themselves."""
        return steps

    def check_policy_gradient(self) -> None:
        """Raise ValueError for a rollout without stochastic steps to train, and for a clip that is not positive."""
        require(self.steps >= 2, f"steps = {self.steps}: the step onto the image is not trained; take at least 2")
        require(
            self.steps <= MAX_STEPS,
            f"steps = {self.steps}: at most {MAX_STEPS}, which is far more than any sampler takes",
        )
        require(self.eta > 0, f"eta = {self.eta}: a policy gradient needs stochastic steps; take eta > 0")
        check_cps(self.kernel, self.eta)
        positive = self.clip > 0 and self.max_advantage > 0
        require(positive, f"clip = {self.clip}, max_advantage = {self.max_advantage}: both must be positive")
        limit = self.divergence
        require(limit is None or limit > 0, f"divergence = {limit}: a KL that is allowed, so positive; None: the clip")


def check_unguarded(guard: bool, divergence: float | None) -> None:
    """Raise ValueError where GRPO-Guard's ratio, which is made for a clip, meets Flow-DPPO's mask."""
    alone = not guard or divergence is None
    require(alone, f"divergence = {divergence} masks the true ratio, and guard has its own: set guard = False")


@dataclass(frozen=True)
class GroupRelative(PolicyGradient):
    """A method that compares the images of a prompt with each other."""

    group: int = 12
    """Number of images per prompt."""
    shared_noise: bool = True
    """Whether all images of a prompt start from one noise."""
    normalize: Normalize = Normalize(ddof=1, eps=1e-8)
    """How rewards become advantages."""

    def check_group(self) -> None:
        """Raise ValueError for a group of one, and for what no policy gradient can be."""
        require(self.group >= 2, f"group = {self.group}: an advantage compares images of one prompt; take at least 2")
        self.check_policy_gradient()


def group_advantages(algorithm: GroupRelative, rewards: Mapping[str, Tensor]) -> Tensor:
    """Return the advantages (P, G, R) of rewards by name, (P, G) each."""
    a = algorithm
    return advantages(gated(rewards, a.blend.gate), a.weights, a.normalize, a.blend, a.max_advantage)


def share_of_steps(steps: int, fraction: float) -> int:
    """Return how many of the steps before the last `fraction` is; raise ValueError where that is none."""
    count = int((steps - 1) * fraction) if 0 < fraction <= 1 else 0
    require(
        count >= 1, f"fraction = {fraction}: a share of the {steps - 1} steps before the last, at least one of them"
    )
    return count


def random_steps(prompts: int, group: int, steps: int, fraction: float, generator: torch.Generator) -> list[Tensor]:
    """Return N masks (P, G) bool: a random share of the steps before the last for each image, never the last.

    Args:
        prompts: P.
        group: G.
        steps: N.
        fraction: The share of an image's steps that is chosen.
        generator: The source of the choice.
    """
    order = torch.rand(prompts, group, steps - 1, generator=generator).argsort(-1).argsort(-1)
    chosen = order < share_of_steps(steps, fraction)
    return [*chosen.unbind(2), torch.zeros(prompts, group, dtype=torch.bool)]


def compares_prompts(normalize: Normalize, blend: Blend) -> bool:
    """Return whether an advantage depends on the rewards of other prompts."""
    return "batch" in (normalize.centre, normalize.scale) or blend.again
