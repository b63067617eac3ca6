"""FlowAWR (arXiv:2606.30376): one regression, to the old policy's velocity moved towards good images.

plan    G images of each prompt by the ODE, from the old policy
credit  A_i = G softmax_i(R / γ) - 1 over the group,   γ = std of all rewards of the iteration
loss    ‖v_θ - sg[v_old + A (v* - v_old)]‖²  +  λ ‖v_θ - v_ref‖²
old     d of itself and 1 - d of the policy after each iteration,   d = min(0.001 k, 0.5)

A is above -1, so that a bad image pushes away at most as hard as an average one would pull.  Ours bounds it from above
too, by max_advantage: one good image among many failures would have nearly G.  Second-hand: no official code was seen,
and equations are those of a re-implementation.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..objectives.advantages import combine, gated
from ..objectives.losses import flow_matching
from ..objectives.regression import displaced_target, softmax_advantages
from ..sampling.rollout import Levels, Plan
from .base import Metrics, Scores, require
from .forward_process import ForwardProcess, NoisedStates


@dataclass(frozen=True)
class FlowAWR(ForwardProcess):
    """FlowAWR (arXiv:2606.30376)."""

    old_draws: ClassVar[bool] = True

    standardize: bool = False
    """Whether advantages are divided by their standard deviation over the iteration, as for rewards by rules."""

    def __post_init__(self) -> None:
        self.check_forward()
        self.check_unused("normalize")
        plain = self.blend.how == "raw_sum" and not self.blend.again
        require(plain, "blend: FlowAWR has one sum and one advantage; take raw_sum without again")

    def credit(self, plan: Plan, log_prob: Levels, scores: Scores) -> Levels:
        """Return the advantages of the finished images, one level of (P, G, 1)."""
        reward = combine(gated(scores.rewards, self.blend.gate), self.weights)
        advantage = softmax_advantages(reward)
        if self.standardize:
            advantage = advantage / advantage[advantage.isfinite()].std(correction=0).clamp(min=1e-2)
        return [advantage.clamp(-self.max_advantage, self.max_advantage)[..., None]]

    def objective(self, states: NoisedStates) -> tuple[Tensor, Metrics]:
        """Return the squared distance of each row to its target, (B,)."""
        target = displaced_target(states.line, states.old, states.rows.advantage)
        return flow_matching(states.v, target), {}
