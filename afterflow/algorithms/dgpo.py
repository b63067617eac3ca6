"""DGPO, direct group preference optimisation (arXiv:2510.08425): DPO's idea for groups.

plan    G images of each prompt by the ODE
credit  A = (R - mean) / std of the group
rows    4 times of the first 60 % of the steps; one noise for all images and times of a prompt
loss    w A_i d_i,   d = mean (v_θ - v*)²,   w = sg σ(β mean_i A_i (d_i - d_ref,i)) of the group
        nothing where A > 0 and ρ > 1 + ε, or A < 0 and ρ < 1 - ε,   ρ = exp(d_old - d)
        + λ ‖v_θ - v_ref‖²
old     an average of the policy, d = min(0.001 k, 0.3)

Groups that the policy already ranks right weigh less.  From the paper and from what others report of it: its code has
no licence and was not opened.  The paper's rollouts come from another, fast average after 200 steps; here from the
policy.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..objectives.advantages import Normalize
from ..objectives.losses import flow_matching
from ..objectives.regression import group_weight
from ..sampling.noised import Together
from ..sampling.training_times import TrainingTimes
from .base import Metrics, require
from .forward_process import ForwardProcess, NoisedStates, NoiseSharing
from .lag import Lag


@dataclass(frozen=True)
class DGPO(ForwardProcess):
    """DGPO (arXiv:2510.08425)."""

    together: ClassVar[Together] = "group"
    uses_reference: ClassVar[bool] = True

    times: TrainingTimes = TrainingTimes(4, span=(0.0, 0.6), shared="group")
    noise: NoiseSharing = "prompt"
    normalize: Normalize = Normalize()
    kl: float = 1e-3
    lag: Lag = Lag(highest=0.3)
    beta: float = 100.0
    """β, how sharply groups that are already ranked right are let go."""
    clip: float = 1e-4
    """ε: rows that have moved further than this in their own direction, from the average, have no gradient."""

    def __post_init__(self) -> None:
        self.check_forward()
        require(self.beta > 0 and self.clip > 0, f"beta = {self.beta}, clip = {self.clip}: both must be positive")

    def objective(self, states: NoisedStates) -> tuple[Tensor, Metrics]:
        """Return the weighted loss of each row, (B,), the mean weight and the share of rows without a gradient."""
        assert states.reference is not None
        A = states.rows.advantage
        d, reference, old = (flow_matching(v, states.line) for v in (states.v, states.reference, states.old))
        w = group_weight(A, d - reference, states.rows.unit, self.beta)
        ratio = (old - d.detach()).exp()
        done = ((A > 0) & (ratio > 1 + self.clip)) | ((A < 0) & (ratio < 1 - self.clip))
        metrics = {"group_weight": w.mean(), "clip_fraction": done.float().mean()}
        return w * A * d.where(~done, d.detach()), metrics
