"""V-GRPO (arXiv:2604.23380): a ratio of variational likelihoods, with less variance.

plan    G images of each prompt by the ODE
credit  A = (R - mean) / std of the group
rows    N = 4 times, one from each equal part of the schedule; times and noise are the same for all images of a prompt
loss    -min(ρA, clip(ρ) A),   ρ = exp(L_θ - L_before),   L = -(1/N) Σ_j S(v_θ; t_j, ε_j)
        with one update ρ is 1, and A becomes η tanh(A/η)
        + b mean (x̂_θ - x̂_old)², where earlier skills must stay

Second-hand: the official code was not seen, and equations are those of a re-implementation.  It reports that two times
fail (on the shapes world two early ones do not), that eight are little better, and that without shared times and noise
training diverges.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..objectives.advantages import Normalize
from ..objectives.losses import flow_matching
from ..objectives.regression import image_error
from ..sampling.noised import Together, mean_of_units
from ..sampling.training_times import TrainingTimes
from .base import Metrics, require
from .forward_process import ForwardProcess, NoisedStates, NoiseSharing, ratio_loss


@dataclass(frozen=True)
class VGRPO(ForwardProcess):
    """V-GRPO (arXiv:2604.23380)."""

    together: ClassVar[Together] = "image"
    has_ratio: ClassVar[bool] = True

    times: TrainingTimes = TrainingTimes(4, "segments", shared="group")
    noise: NoiseSharing = "group"
    normalize: Normalize = Normalize()
    kl: float = 0.0
    clip: float = 1e-2
    """ε of the clipped ratio, which acts from the second update of an iteration."""
    squash: float = 3.0
    """η, about which advantages are bounded where an iteration has one update."""
    trust: float = 0.0
    """b, the weight of the squared distance of predicted images to the old policy's (0.3 where skills must stay)."""

    def __post_init__(self) -> None:
        self.check_forward()
        require(self.clip > 0 and self.squash > 0, f"clip = {self.clip}, squash = {self.squash}: both must be positive")
        require(self.trust >= 0, f"trust = {self.trust}: a weight, so 0 or more")

    @property
    def uses_old(self) -> bool:
        """Whether the loss needs the old policy's velocity."""
        return self.trust > 0

    def log_likelihood(self, states: NoisedStates) -> Tensor:
        """Return L of each row's image, (B,); the times of an image have the same."""
        return -mean_of_units(image_error(states.v, states.x, states.rows.t, states.x0), states.rows.unit)

    def objective(self, states: NoisedStates) -> tuple[Tensor, Metrics]:
        """Return the clipped loss of each row's image, (B,), and what to log."""
        advantage = states.rows.advantage
        if states.rows.before is None:
            advantage = self.squash * (advantage / self.squash).tanh()
        loss, metrics = ratio_loss(self.log_likelihood(states), states.rows, advantage, self.clip)
        if self.uses_old:
            loss = loss + self.trust * states.rows.t**2 * flow_matching(states.v, states.old)
        return loss, metrics
