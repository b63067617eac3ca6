"""CRD, centred reward distillation (arXiv:2603.14128): what the policy gained at an image shall be its reward.

plan    G images of each prompt by the ODE, from an average of the policy
credit  A = (R - mean) / std of the group,   R̃ = clip(A, ±c) / 2c + 1/2
loss    (c/β) [ β (q - mean q) - (R̃ - mean R̃) ]²  +  λ ‖v_θ - v_ref‖²
        q = S(v_old) - S(v_θ), means over the images of a prompt at one time
old     d = min(0.25 + 0.005 k, 0.999); the average that draws: d = 0 until k = 75, then 0.0075 more each, at most 0.999

Second-hand: equations are those of another project's trainer.  It centres over the whole batch; here over the group, in
which the unknown constant of the policy's density cancels.  It scales the KL by the reward; here the KL is plain, to
the base under guidance 4.5.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..objectives.advantages import Normalize
from ..objectives.regression import centred, image_error, optimality
from ..sampling.noised import Together
from ..sampling.training_times import TrainingTimes
from .base import Metrics, Reference, require
from .forward_process import ForwardProcess, NoisedStates, NoiseSharing
from .lag import Lag

EXPLORER_AVERAGE = "drawing"
"""Name of the average that draws the images."""


@dataclass(frozen=True)
class CRD(ForwardProcess):
    """CRD (arXiv:2603.14128)."""

    together: ClassVar[Together] = "group"

    times: TrainingTimes = TrainingTimes(shared="group")
    noise: NoiseSharing = "group"
    normalize: Normalize = Normalize()
    kl: float = 0.1
    reference: Reference = Reference("base", 4.5)
    lag: Lag = Lag(0.25, 0.005, highest=0.999)
    drawing_lag: Lag = Lag(flat=75, slope=0.0075, highest=0.999)
    """How slowly the average that draws the images follows."""
    beta: float = 1.0
    """β, the gain that a unit of reward asks for, inverted."""

    def __post_init__(self) -> None:
        self.check_forward()
        require(self.beta > 0, f"beta = {self.beta}: it must be positive")

    @property
    def averages(self) -> dict[str, Lag]:
        """The averages of the policy by name."""
        drawing = {} if self.drawing_lag.follows_at_once else {EXPLORER_AVERAGE: self.drawing_lag}
        return super().averages | drawing

    @property
    def explorer(self) -> str | None:
        """The average that draws the images; None: the policy."""
        return EXPLORER_AVERAGE if EXPLORER_AVERAGE in self.averages else None

    def objective(self, states: NoisedStates) -> tuple[Tensor, Metrics]:
        """Return the squared misfit of each row's gain, (B,), and the mean gain."""
        rows = states.rows
        error = lambda v: image_error(v, states.x, rows.t, states.x0)
        gain = error(states.old) - error(states.v)
        reward = optimality(rows.advantage, self.max_advantage)
        # The mean has no gradient, as published.
        gained = gain - gain.detach() + centred(gain.detach(), rows.unit)
        misfit = self.beta * gained - centred(reward, rows.unit)
        return self.max_advantage / self.beta * misfit.square(), {"gain": gain.detach().mean()}
