"""Online DPO: Diffusion-DPO (arXiv:2311.12908) on pairs of the policy's own, drawn anew in every iteration.

plan    G images of each prompt by the ODE
credit  the best image of a group wins over its worst; the others teach nothing, nor do groups without spread
rows    T times for each pair, with one noise for both of its images
loss    -log σ(-β/2 [(d_θ - d_ref)_winner - (d_θ - d_ref)_loser]),   d = mean (v - v*)²

At the reference it is log 2.  Rewards rank the images, or a judge by win rates, which may be a person.  An iteration
with `updates` above 1 learns from its pairs in so many steps before they are drawn again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..objectives.advantages import combine, gated
from ..objectives.losses import flow_matching, preference_loss
from ..objectives.preferences import best_and_worst, win_rates
from ..sampling.noised import Together, mean_of_units
from ..sampling.rollout import Levels, Plan
from ..sampling.training_times import TrainingTimes
from .base import WIN_RATE, Comparisons, Metrics, Requirements, Scores, require
from .forward_process import ForwardProcess, NoisedStates, NoiseSharing


@dataclass(frozen=True)
class OnlineDPO(ForwardProcess):
    """Online DPO (after arXiv:2311.12908)."""

    together: ClassVar[Together] = "group"
    uses_reference: ClassVar[bool] = True

    weights: Mapping[str, float] = field(default_factory=lambda: {WIN_RATE: 1.0})
    """Weights of rewards, or of win_rate where a judge compares."""
    group: int = 8
    times: TrainingTimes = TrainingTimes(4, shared="group")
    noise: NoiseSharing = "group"
    kl: float = 0.0
    beta: float = 100.0
    """β: how dear it is to leave the reference; 100 is that of flow_grpo's script for SD3.5."""
    compare: Comparisons = Comparisons()
    """Pairs that a judge sees, where there is one."""

    def __post_init__(self) -> None:
        self.check_forward()
        self.check_unused("normalize", "max_advantage")
        plain = self.blend.how == "raw_sum" and not self.blend.again
        require(plain, "blend: a pair is of the best and the worst by one sum; take raw_sum without again")
        require(self.beta > 0, f"beta = {self.beta}: it must be positive")
        self.compare.check(self.group)
        if WIN_RATE not in self.weights:
            self.check_unused("compare")

    @property
    def requirements(self) -> Requirements:
        """Return the rewards, the reference, and the pairs to compare where there is a judge."""
        compare = self.compare if WIN_RATE in self.weights else None
        return replace(super().requirements, comparisons=compare, whole_batch=False)

    @property
    def uses_old(self) -> bool:
        """Whether the loss needs the old policy's velocity: it does not."""
        return False

    @property
    def unit_rows(self) -> int:
        """The number of rows of a pair."""
        return 2

    def credit(self, plan: Plan, log_prob: Levels, scores: Scores) -> Levels:
        """Return 1 for the best image of a group and -1 for its worst, NaN for the others, one level of (P, G, 1)."""
        won = {WIN_RATE: win_rates(scores.judged[WIN_RATE])} if WIN_RATE in self.weights else {}
        reward = combine(gated({**scores.rewards, **won}, self.blend.gate), self.weights)
        best, worst, apart = best_and_worst(reward)
        role = torch.full_like(reward, torch.nan).scatter(1, worst[:, None], -1.0).scatter(1, best[:, None], 1.0)
        return [role.where(apart[:, None], torch.nan)[..., None]]

    def objective(self, states: NoisedStates) -> tuple[Tensor, Metrics]:
        """Return the loss of each row's pair, (B,), the log-odds and the share of pairs that the policy ranks right."""
        assert states.reference is not None
        moved = flow_matching(states.v, states.line) - flow_matching(states.reference, states.line)
        # A pair has two rows, so that their sum is twice their mean.
        logit = -self.beta * mean_of_units(states.rows.advantage * moved, states.rows.unit)
        metrics = {"preference_logit": logit.mean(), "preference_accuracy": (0.5 + 0.5 * logit.sign()).mean()}
        return preference_loss(logit), {name: value.detach() for name, value in metrics.items()}
