"""Flow-OPD (arXiv:2605.08063): specialists teach one student on the states that the student itself visits.

plan    G images of each prompt, by the ODE or the SDE
credit  every state counts alike
rows    v_T ← the velocity of the teacher of the prompt's task, v_A ← the anchor's, at every state, once
loss    mean_j ω_j ‖v_θ - v_T‖² + β ω_j ‖v_θ - v_A‖²                                     (pathwise)

The paper puts -ω ‖v_θ - v_T‖², detached, as a reward into a clipped surrogate.  At a state that is already there its
expected gradient is 0 (`state_kl`, kept as the control it is); the released code works because it forgets to detach.
`sampled_logratio` rewards log π_T - log π_θ of the step that was taken, which is right in expectation and noisy, and
`full` adds to the pathwise gradient that of the states still to come.  The code's anchor is the base model, the
paper's a teacher of image quality.  The code drops groups whose task reward is constant; no reward is needed here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..objectives.distillation import StepWeight, self_normalised, step_weight
from ..objectives.losses import clipped_surrogate, flow_matching
from ..sampling.conditioning import Conditioning, Velocity
from ..sampling.device_copies import to_device
from ..sampling.kernels import log_prob, velocity_of
from ..sampling.rollout import Levels, Plan, Transitions, chain
from ..sampling.schedules import grid
from .base import Metrics, Models, OnPolicy, Requirements, Scores, check_cps, require


@dataclass(frozen=True)
class TeacherTargets:
    """States of rollouts, M rows, and the velocities that are to be learnt there."""

    steps: Transitions
    teacher: Tensor  # (M, ...) velocities
    anchor: Tensor | None  # (M, ...)
    weight: Tensor  # (M,) ω
    score: Tensor  # (M,) the reward of the step that was taken, per coordinate

    @property
    def cond(self) -> Conditioning:
        """Return the conditioning of the states."""
        return self.steps.cond

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, rows: Tensor) -> "TeacherTargets":
        there = to_device(rows, self.teacher.device)
        anchor = None if self.anchor is None else self.anchor[there]
        return TeacherTargets(self.steps[rows], self.teacher[there], anchor, self.weight[there], self.score[there])

    def mass(self, rows: Tensor) -> float:
        """Return the number of these states."""
        return float(len(rows))


@dataclass(frozen=True)
class FlowOPD(OnPolicy[TeacherTargets]):
    """Flow-OPD (arXiv:2605.08063).  Its rewards are logged, and none is trained on."""

    group: int = 16
    """Number of images per prompt."""
    sampler: Literal["ode", "sde"] = "ode"
    """Sampler of the images; the gradients that need a log-probability need the SDE."""
    weight: StepWeight = "ode"
    """ω, the weight of a distance at each step; flow_grpo is the released code's."""
    gradient: Literal["pathwise", "state_kl", "sampled_logratio", "full"] = "pathwise"
    """Gradient by which the distance is brought down."""
    self_normalise: bool = False
    """Whether each distance is divided by the mean error, detached, so that near and far states pull alike."""
    route: str = "tag"
    """Key of a record that names its task, as in GenEval's records; every teacher has a list of tasks."""
    anchor: str | None = "base"
    """Model that every sample stays near to, whatever its task: the base model, a teacher by its name, or None."""
    beta: float = 0.04
    """Weight of the anchor (manifold anchor regularisation)."""
    clip: float = 1e-4
    """ε of the clipped ratio, where a log-probability is trained on."""

    def __post_init__(self) -> None:
        require(self.steps >= 2, f"steps = {self.steps}: the last step is not learnt from; take at least 2")
        require(self.eta > 0, f"eta = {self.eta}: the SDE, and the divergence of its steps, need eta > 0")
        check_cps(self.kernel, self.eta)
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

    def unused(self) -> dict[str, tuple[str, ...]]:
        """Add what only another gradient, or an anchor with a weight, asks for."""
        clip = {"with gradient = pathwise": ("clip",)} if self.gradient == "pathwise" else {}
        return super().unused() | clip | ({"with beta = 0": ("anchor",)} if self.beta == 0 else {})

    @property
    def requirements(self) -> Requirements:
        """Return the rewards to log, the route to the teachers, and the anchor where it has a weight."""
        anchor = self.anchor if self.beta > 0 else None
        return Requirements(self.weights, route=self.route, anchor=anchor, all_rows=True)

    def plan(self, step: int, generator: torch.Generator) -> Plan:
        """Return rollouts of the ODE or the SDE whose steps but the last are learnt from."""
        eta = self.eta if self.sampler == "sde" else 0.0
        return chain(grid(self.schedule, self.steps), self.group, eta, range(self.steps - 1), density=False)

    def credit(self, plan: Plan, log_prob: Levels, scores: Scores) -> Levels:
        """Return zeros: every state is learnt from, and no score counts."""
        return [torch.zeros(len(log_prob[0]), self.group, 1)] * self.steps

    @torch.no_grad()
    def rows(self, models: Models, steps: Transitions) -> TeacherTargets:
        """Return the velocities of teachers and anchor at all states, computed once."""
        targets = TeacherTargets(
            steps,
            routed_velocity(models.teachers, steps, self.route),
            None if models.anchor is None else models.anchor(steps.x, steps.t, steps.cond).float(),
            step_weight(self.weight, self.step_kernel, steps.t, steps.s, torch.full_like(steps.t, self.eta)),
            torch.zeros_like(steps.t),
        )
        return targets if self.gradient == "pathwise" else replace(targets, score=self._score(targets))

    def _score(self, targets: TeacherTargets) -> Tensor:
        """Return the reward (M,) of each step that was taken, by its own state or by those after it."""
        e, kernel = targets.steps, self.step_kernel

        def gain(v: Tensor) -> Tensor:
            return log_prob(kernel(e.x, v, e.t, e.s, e.eta), e.x_next) - e.log_prob

        if self.gradient == "sampled_logratio":
            return gain(targets.teacher) + (0 if targets.anchor is None else self.beta * gain(targets.anchor))
        cost = self._cost(targets, velocity_of(kernel, e.mean, e.x, e.t, e.s, e.eta))
        if self.gradient == "state_kl":
            return -cost
        by_step = cost.view(self.steps - 1, -1)  # rows are step by step, each with the same images
        return -(by_step.flip(0).cumsum(0).flip(0) - by_step).flatten()

    def _cost(self, targets: TeacherTargets, v: Tensor) -> Tensor:
        """Return ω ‖v - v_T‖² + β ω ‖v - v_A‖², (M,)."""
        distance = self_normalised if self.self_normalise else flow_matching
        cost = targets.weight * distance(v, targets.teacher)
        return cost if targets.anchor is None else cost + self.beta * targets.weight * distance(v, targets.anchor)

    def loss(self, models: Models, batch: TeacherTargets) -> tuple[Tensor, Metrics]:
        """Return the cost, or the clipped loss of its score, or both (full)."""
        e = batch.steps
        v = models.policy(e.x, e.t, e.cond)
        cost = self._cost(batch, v).mean()
        metrics = {"cost": cost.detach(), "teacher_distance": flow_matching(v.detach(), batch.teacher).mean()}
        if batch.anchor is not None:
            metrics["anchor_distance"] = flow_matching(v.detach(), batch.anchor).mean()
        if self.gradient == "pathwise":
            return cost, metrics
        log_ratio = log_prob(self.step_kernel(e.x, v, e.t, e.s, e.eta), e.x_next) - e.log_prob
        # Log-probabilities are means over coordinates; their gradient is the score's only when summed.
        score = e.x[0].numel() * clipped_surrogate(log_ratio, batch.score, self.clip).mean()
        return score + (cost if self.gradient == "full" else 0), metrics


def routed_velocity(teachers: Mapping[str, Velocity], states: Transitions, route: str) -> Tensor:
    """Return the velocity of the teacher of each row's task, (M, ...) fp32; a teacher of several tasks is called once.

    route: the key of a record that names its task.
    """
    tasks = [record[route] for record in states.cond.records()]
    velocity = torch.zeros_like(states.x, dtype=torch.float32)
    for teacher in dict.fromkeys(teachers.values()):
        taught = [i for i, task in enumerate(tasks) if teachers[task] is teacher]
        if taught:
            rows = torch.tensor(taught)
            there = to_device(rows, states.x.device)
            velocity[there] = teacher(states.x[there], states.t[there], states.cond[rows]).float()
    return velocity
