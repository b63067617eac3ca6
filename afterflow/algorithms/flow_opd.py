"""Flow-OPD (arXiv:2605.08063): specialists teach one student on the states that the student itself visits.

plan    G images of each prompt, by the ODE or the SDE
credit  v_T ← the velocity of the teacher of the prompt's task, v_A ← the anchor's, at every state, once
loss    mean_j ω_j ‖v_θ - v_T‖² + β ω_j ‖v_θ - v_A‖²                                     (pathwise)

The paper puts -ω ‖v_θ - v_T‖², detached, as a reward into a clipped surrogate.  At a state that is already there its
expected gradient is 0 (`state_kl`, kept as the control it is); the released code works because it forgets to detach.
`sampled_logratio` rewards log π_T - log π_θ of the step that was taken, which is right in expectation and noisy, and
`full` adds to the pathwise gradient that of the states still to come.  The code's anchor is the base model, the
paper's a teacher of image quality.  The code drops groups whose task reward is constant; no reward is asked for here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from ..objectives.distillation import StepWeight, self_normalised, squared_distance, step_weight
from ..objectives.losses import clipped_surrogate
from ..sampling.conditioning import Conditioning, Velocity
from ..sampling.kernels import KernelName, log_prob, velocity_of
from ..sampling.rollout import Plan, Rollout, Transitions, chain, transitions
from ..sampling.schedules import DynamicShift, LinearShift, SD3Grid, grid
from .base import Metrics, Models, OnPolicy, Requirements, Scores
from .checks import require


@dataclass(frozen=True)
class Lessons:
    """States of rollouts, M rows, and what is to be learnt there."""

    transitions: Transitions
    teacher: Tensor  # (M, ...) velocities
    anchor: Tensor | None  # (M, ...)
    weight: Tensor  # (M,) ω
    score: Tensor  # (M,) what the step that was taken is rewarded with, per coordinate

    @property
    def cond(self) -> Conditioning:
        return self.edges.cond

    @property
    def place(self) -> Tensor:
        return self.edges.place

    @property
    def total(self) -> int:
        return self.edges.total

    @property
    def prompt(self) -> Tensor:
        return self.edges.prompt

    def __len__(self) -> int:
        return len(self.edges)

    def __getitem__(self, rows: Tensor) -> "Lessons":
        anchor = None if self.anchor is None else self.anchor[rows]
        return Lessons(self.edges[rows], self.teacher[rows], anchor, self.weight[rows], self.score[rows])

    def mass(self, rows: Tensor) -> float:
        """How many states these are."""
        return float(len(rows))


@dataclass(frozen=True)
class FlowOPD(OnPolicy[Lessons]):
    steps: int = 10
    """Denoising steps of a rollout; the last is not learnt from."""
    schedule: SD3Grid | LinearShift | DynamicShift | None = SD3Grid()
    """Where the steps stop between noise and image. None: the grid of the model's own pipeline."""
    group: int = 16
    """Images per prompt."""
    sampler: Literal["ode", "sde"] = "ode"
    """How they are drawn; the gradients that need a log-probability need the SDE."""
    kernel: KernelName = "flow_sde"
    """What draws a step of the SDE, and whose divergence the weights kl and flow_grpo are."""
    eta: float = 0.7
    """Its noise level."""
    weight: StepWeight = "ode"
    """ω: what a distance counts at each step; flow_grpo is the released code's."""
    gradient: Literal["pathwise", "state_kl", "sampled_logratio", "full"] = "pathwise"
    """How the distance is brought down."""
    self_normalise: bool = False
    """Divide each distance by the mean error, detached, so that near and far states pull alike."""
    route: str = "tag"
    """Key of a record that names its task, as GenEval's records have it; a teacher has a list of those it knows."""
    anchor: str | None = "base"
    """What every sample stays near to, whatever its task: the base model, or a teacher by its name; None: nothing."""
    beta: float = 0.04
    """Weight of the anchor (manifold anchor regularisation)."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Rewards to log, with the weights of their sum; none is trained on."""
    clip: float = 1e-4
    """ε of the clipped ratio, where a log-probability is trained on."""

    def __post_init__(self) -> None:
        require(self.steps >= 2, f"steps = {self.steps}: the last step is not learnt from; take at least 2")
        require(self.eta > 0, f"eta = {self.eta}: the SDE, and the divergence of its steps, need eta > 0")
        require(self.kernel != "cps" or self.eta < 1, f"eta = {self.eta}: cps swaps a share of the noise; take eta < 1")
        require(self.clip > 0, f"clip = {self.clip}: it must be positive")
        length = self.weight == "flow_grpo" and self.kernel == "cps"
        require(not length, "weight = flow_grpo leaves out the step's length, which cps does not have; take kl")
        same = self.gradient != "sampled_logratio" or self.weight == "kl"
        require(same, "gradient = sampled_logratio is that of the divergence, whatever the weight; set weight = kl")
        require(self.group >= 1, f"group = {self.group}: at least 1")
        require(self.beta >= 0, f"beta = {self.beta}: the weight of the anchor is 0 or more")
        drawn = self.gradient == "pathwise" or self.sampler == "sde"
        require(drawn, f"gradient = {self.gradient} needs the log-probability of a step: take sampler = sde")
        plain = not self.self_normalise or self.gradient == "pathwise"
        require(plain, f"self_normalise changes the distance that gradient = {self.gradient} is of: take pathwise")

    @property
    def requirements(self) -> Requirements:
        return Requirements(tuple(self.weights), route=self.route, anchor=self.anchor if self.beta > 0 else None)

    def plan(self, step: int, generator: torch.Generator) -> Plan:
        eta = self.eta if self.sampler == "sde" else 0.0
        return chain(grid(self.schedule, self.steps), self.group, eta, range(self.steps - 1), density=False)

    @torch.no_grad()
    def credit(self, models: Models, rollout: Rollout, scores: Scores, generator: torch.Generator) -> Lessons:
        states = transitions(rollout, [torch.zeros(len(rollout.log_prob[0]), self.group, 1)] * self.steps)
        eta = torch.full_like(states.t, self.eta)
        lessons = Lessons(
            states,
            taught(models.teachers, states, self.route),
            None if models.anchor is None else models.anchor(states.x, states.t, states.cond).float(),
            step_weight(self.weight, self.step_kernel, states.t, states.s, eta),
            torch.zeros_like(states.t),
        )
        return lessons if self.gradient == "pathwise" else replace(lessons, score=self._score(lessons))

    def _score(self, lessons: Lessons) -> Tensor:
        """(M,): what each step that was taken is rewarded with, by its own state or by those after it."""
        e, kernel = lessons.edges, self.step_kernel
        if self.gradient == "sampled_logratio":
            gain = lambda v: log_prob(kernel(e.x, v, e.t, e.s, e.eta), e.x_next) - e.log_prob
            return gain(lessons.teacher) + (0 if lessons.anchor is None else self.beta * gain(lessons.anchor))
        cost = self._cost(lessons, velocity_of(kernel, e.mean, e.x, e.t, e.s, e.eta))
        if self.gradient == "state_kl":
            return -cost
        by_step = cost.view(self.steps - 1, -1)  # rows are step by step, each with the same images
        return -(by_step.flip(0).cumsum(0).flip(0) - by_step).flatten()

    def _cost(self, lessons: Lessons, v: Tensor) -> Tensor:
        """ω ‖v - v_T‖² + β ω ‖v - v_A‖², (M,)."""
        distance = self_normalised if self.self_normalise else squared_distance
        cost = lessons.weight * distance(v, lessons.teacher)
        return cost if lessons.anchor is None else cost + self.beta * lessons.weight * distance(v, lessons.anchor)

    def loss(self, models: Models, batch: Lessons) -> tuple[Tensor, Metrics]:
        e = batch.edges
        v = models.policy(e.x, e.t, e.cond)
        cost = self._cost(batch, v).mean()
        metrics = {"cost": cost.detach(), "teacher_distance": squared_distance(v.detach(), batch.teacher).mean()}
        if batch.anchor is not None:
            metrics["anchor_distance"] = squared_distance(v.detach(), batch.anchor).mean()
        if self.gradient == "pathwise":
            return cost, metrics
        log_ratio = log_prob(self.step_kernel(e.x, v, e.t, e.s, e.eta), e.x_next) - e.log_prob
        # Log-probabilities are means over coordinates; their gradient is the score's only when summed.
        score = e.x[0].numel() * clipped_surrogate(log_ratio, batch.score, self.clip).mean()
        return score + (cost if self.gradient == "full" else 0), metrics


def taught(teachers: Mapping[str, Velocity], states: Transitions, route: str) -> Tensor:
    """(M, ...) fp32: the velocity of the teacher of each row's task; a teacher of several tasks is asked once."""
    tasks = [record[route] for record in states.cond.records()]
    found = torch.zeros_like(states.x, dtype=torch.float32)
    for teacher in dict.fromkeys(teachers.values()):
        mine = [i for i, task in enumerate(tasks) if teachers[task] is teacher]
        if mine:
            rows = torch.tensor(mine, device=states.x.device)
            found[rows] = teacher(states.x[rows], states.t[rows], states.cond[rows]).float()
    return found
