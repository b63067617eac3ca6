"""AWM, advantage-weighted matching (arXiv:2509.25050): the flow-matching loss as a log-likelihood.

plan    G images of each prompt by the ODE                                       (released: SA-Solver with noise 0.4)
credit  A = (R - mean of the group) / std of the batch, clipped to ±5, over 5
loss    -min(ρA, clip(ρ) A) + λ ‖v_θ - v_ref‖² + γ ‖v_θ - v_old‖²,   ρ = exp(L_θ - L_before)
        L = -(t/p) ((ℓ + 1e-10)^p - (1e-10)^p),   ℓ = mean (v_θ - v*)²,   p = 1/4
old     an average of the policy, d = min(0.001 k, 0.3)

With one update ρ is 1, and the gradient is that of -A L.  Others found it unstable without the average.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..objectives.losses import flow_matching
from ..objectives.regression import weighted_log_likelihood
from ..sampling.training_times import TrainingTimes
from .base import Metrics, require
from .forward_process import ForwardProcess, NoisedStates, ratio_loss
from .lag import Lag


@dataclass(frozen=True)
class AWM(ForwardProcess):
    """AWM (arXiv:2509.25050)."""

    has_ratio: ClassVar[bool] = True

    steps: int = 14
    times: TrainingTimes = TrainingTimes(6, "strata", (0.05, 0.9), "batch")
    kl: float = 0.001
    lag: Lag = Lag(highest=0.3)
    power: float = 0.25
    """p of the log-likelihood; 1 is the squared error weighted by t."""
    clip: float = 1e-4
    """ε of the clipped ratio, which acts from the second update of an iteration."""
    trust: float = 1.0
    """γ, the weight of the squared distance to the average of the policy; 0 needs none."""

    def __post_init__(self) -> None:
        self.check_forward()
        require(0 < self.power <= 1, f"power = {self.power}: in (0, 1]; 1 is the squared error")
        require(self.clip > 0, f"clip = {self.clip}: it must be positive")
        require(self.trust >= 0, f"trust = {self.trust}: a weight, so 0 or more")

    @property
    def uses_old(self) -> bool:
        """Whether the loss needs the average's velocity."""
        return self.trust > 0

    def log_likelihood(self, states: NoisedStates) -> Tensor:
        """Return L of each row, (B,)."""
        error = (states.v.double() - states.line.double()).square().flatten(1).mean(1)
        return weighted_log_likelihood(error, states.rows.t, self.power)

    def objective(self, states: NoisedStates) -> tuple[Tensor, Metrics]:
        """Return the clipped loss of each row, with the distance to the average, (B,), and what to log."""
        advantage = states.rows.advantage / self.max_advantage
        loss, metrics = ratio_loss(self.log_likelihood(states), states.rows, advantage, self.clip)
        return (loss + self.trust * flow_matching(states.v, states.old) if self.uses_old else loss), metrics
