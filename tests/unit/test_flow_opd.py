"""Flow-OPD on a Gaussian chain whose objective is known, and its routing."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from afterflow.algorithms.base import Models, Scores
from afterflow.algorithms.flow_opd import FlowOPD
from afterflow.sampling import rollout
from afterflow.sampling.conditioning import Embedding, condition
from afterflow.sampling.kernels import KERNELS, velocity_slope
from afterflow.sampling.schedules import LinearShift
from afterflow.sampling.seeds import generator
from toy import MLP, TASKS, credited, exact, learn, prompts

STEPS, ETA, TEACHER, ANCHOR = 4, 0.6, -0.8, -0.2
CHAIN = FlowOPD(
    steps=STEPS, schedule=LinearShift(1.0), group=1, sampler="sde", eta=ETA, weight="kl", beta=0.3, route="prompt"
)


class Scaled(nn.Module):
    """v = a x: Gaussian states stay Gaussian."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, x, t, cond):
        return self.a * x


def objective(a, follow):
    """Mean over steps of the exact KLs to teacher and anchor; the states' variance follows a where `follow`."""
    times, kernel = CHAIN.schedule.times(STEPS), KERNELS[CHAIN.kernel]
    variance, total = torch.ones(1), 0.0
    for t, s in zip(times[: STEPS - 1, None], times[1:STEPS, None]):
        eta = torch.full_like(t, ETA)
        slope, p = velocity_slope(kernel, t, s, eta), kernel(torch.ones(1, 1), torch.zeros(1, 1), t, s, eta)
        weight = slope**2 / (2 * p.std[:, 0] ** 2)
        seen = variance if follow else variance.detach()
        total = total + weight * seen * ((a - TEACHER) ** 2 + CHAIN.beta * (a - ANCHOR) ** 2)
        variance = (p.mean[:, 0] + slope * a) ** 2 * variance + p.std[:, 0] ** 2
    return total.sum() / (STEPS - 1)


def gradient(algorithm, P=60_000):
    """Of the algorithm's loss in a, from P rollouts of two coordinates each; and its standard error."""
    policy = Scaled(0.5)
    cond = condition(Embedding(torch.zeros(1, 1, 2)), Embedding(torch.zeros(1, 1, 2)), [{"prompt": "one"}])
    cond = cond[torch.zeros(P, dtype=torch.long)]
    models = Models(policy, teachers={"one": Scaled(TEACHER)}, anchor=Scaled(ANCHOR))

    source = generator(0, "chain")
    noise = torch.randn(P, 1, 2, generator=source)
    with pytest.MonkeyPatch.context() as patch:  # one generator for all prompts is quick
        patch.setattr(rollout, "prompt_noise", lambda _, width, like: torch.randn(like.shape, generator=source))
        drawn = rollout.sample(policy, algorithm.step_kernel, algorithm.plan(0, generator()), cond, noise, ())
    rows = credited(algorithm, drawn, Scores({}), models)
    parts = []
    for part in torch.arange(len(rows)).view(STEPS - 1, 10, -1).unbind(1):
        loss, _ = algorithm.loss(models, rows[part.flatten()])
        parts.append(torch.autograd.grad(loss, policy.a)[0])
    parts = torch.stack(parts)
    return parts.mean().item(), (parts.std() / 10**0.5).item()


def exact_gradient(follow):
    a = torch.tensor(0.5, requires_grad=True)
    return torch.autograd.grad(objective(a, follow), a)[0].item()


def test_the_pathwise_gradient_is_that_of_the_divergence_at_the_states_visited():
    found, error = gradient(CHAIN)
    assert found == pytest.approx(exact_gradient(follow=False), abs=4 * error) and error < 0.01 * found


def test_the_sampled_log_ratio_gives_the_same_in_expectation():
    found, error = gradient(replace(CHAIN, gradient="sampled_logratio", clip=10.0))
    assert found == pytest.approx(exact_gradient(follow=False), abs=4 * error)
    assert error < 0.1 * found and error > 2 * gradient(CHAIN)[1]


def test_the_full_gradient_is_that_of_the_objective():
    found, error = gradient(replace(CHAIN, gradient="full", clip=10.0))
    assert found == pytest.approx(exact_gradient(follow=True), abs=4 * error)
    # The states still to come matter here: without them the gradient is another.
    assert abs(exact_gradient(follow=True) - exact_gradient(follow=False)) > 8 * error


def test_the_detached_state_divergence_has_no_gradient_in_expectation():
    found, error = gradient(replace(CHAIN, gradient="state_kl", clip=10.0))
    assert found == pytest.approx(0, abs=4 * error) and error < 0.1 * exact_gradient(follow=False)


LEFT, RIGHT = (lambda x, t, cond: exact(x, t, mean=-2.0)), (lambda x, t, cond: exact(x, t, mean=2.0))
PLANE = FlowOPD(steps=5, group=3, route="prompt", beta=0.0)


class Counted:
    """A velocity field that keeps the rows it was asked about."""

    def __init__(self, velocity):
        self.velocity, self.calls = velocity, []

    def __call__(self, x, t, cond):
        self.calls.append(cond.records())
        return self.velocity(x, t, cond)


def lessons(algorithm, policy, teachers, anchor=None, P=4):
    cond = prompts(P)
    draws = [generator(0, p) for p in range(P)]
    noise = rollout.prompt_noise(draws, algorithm.group, torch.empty(P, 1, 2))
    drawn = rollout.sample(policy, algorithm.step_kernel, algorithm.plan(0, generator()), cond, noise, draws)
    return credited(algorithm, drawn, Scores({}), Models(policy, teachers=teachers, anchor=anchor))


@pytest.mark.parametrize("gradient", ["pathwise", "state_kl", "full"])
def test_a_student_that_is_its_own_teacher_has_nothing_to_learn(gradient):
    policy = MLP()
    algorithm = replace(PLANE, sampler="sde", gradient=gradient, beta=0.5)
    rows = lessons(algorithm, policy, dict.fromkeys(TASKS, policy), policy)
    loss, metrics = algorithm.loss(Models(policy), rows)
    grads = torch.autograd.grad(loss, policy.parameters())
    assert abs(loss.item()) < 1e-9 and max(g.abs().max() for g in grads) < 1e-5
    assert metrics["teacher_distance"] == metrics["anchor_distance"] == 0


def test_each_teacher_is_asked_once_about_the_prompts_of_its_tasks():
    left, right, anchor = Counted(LEFT), Counted(RIGHT), Counted(LEFT)
    rows = lessons(PLANE, MLP(), {"left": left, "right": right}, anchor)
    assert len(rows) == 4 * 3 * 4  # nothing is dropped, and the last step is not learnt from
    for teacher, task in ((left, "left"), (right, "right")):
        assert [{record["prompt"] for record in call} for call in teacher.calls] == [{task}]
        assert len(teacher.calls[0]) == 2 * 3 * 4
    assert [len(call) for call in anchor.calls] == [len(rows)]
    both = Counted(LEFT)
    lessons(PLANE, MLP(), {"left": both, "right": both})
    assert [len(call) for call in both.calls] == [len(rows)]


def test_a_teacher_changes_the_loss_of_its_own_rows_alone():
    policy = MLP()
    one = lessons(PLANE, policy, {"left": LEFT, "right": RIGHT})
    other = lessons(PLANE, policy, {"left": LEFT, "right": LEFT})
    of_left = torch.tensor([record["prompt"] == "left" for record in one.cond.records()])
    assert torch.equal(one.teacher[of_left], other.teacher[of_left])
    assert not torch.isclose(one.teacher[~of_left], other.teacher[~of_left]).any()


def test_rows_keep_together_what_belongs_together():
    algorithm = replace(PLANE, sampler="sde", gradient="full", beta=0.5)
    rows = lessons(algorithm, MLP(), {"left": LEFT, "right": RIGHT}, LEFT)
    chosen = torch.randperm(len(rows), generator=generator())[:7]
    part = rows[chosen]
    assert len(part) == 7 and rows.mass(chosen) == 7
    assert torch.equal(part.steps.x, rows.steps.x[chosen]) and torch.equal(part.score, rows.score[chosen])
    torch.testing.assert_close(part.anchor, LEFT(part.steps.x, part.steps.t, None))


def test_the_anchor_counts_beta_times_what_the_teacher_does():
    policy = MLP()
    cost = {}
    for beta in (0.0, 0.04, 1.0):
        algorithm = replace(PLANE, beta=beta, weight="x0")
        anchor = RIGHT if beta else None
        rows = lessons(algorithm, policy, dict.fromkeys(TASKS, LEFT), anchor)
        cost[beta] = algorithm.loss(Models(policy), rows)[0].item()
    assert cost[0.04] - cost[0.0] == pytest.approx(0.04 * (cost[1.0] - cost[0.0]), rel=1e-4)
    assert (
        replace(PLANE, beta=0.0).requirements.anchor is None and replace(PLANE, beta=0.1).requirements.anchor == "base"
    )


def silent(leaves, records, generator, clock):
    return Scores({})


@pytest.mark.parametrize("options", [{}, {"weight": "v"}, {"weight": "v", "self_normalise": True}], ids=str)
def test_two_specialists_make_a_generalist_in_the_plane(options):
    """By the ODE, without a reward: each task's prompts end where its own teacher's do."""
    model, algorithm = MLP(), replace(PLANE, steps=8, **options)
    teachers = {"left": LEFT, "right": RIGHT}
    for _ in learn(algorithm, model, 100, teachers=teachers, score=silent, lr=3e-3):
        pass
    cond, draws = prompts(64), [generator(1, p) for p in range(64)]
    noise = rollout.prompt_noise(draws, 1, torch.empty(64, 1, 2))
    plan = replace(algorithm, group=1).plan(0, generator())
    leaves = rollout.sample(model, algorithm.step_kernel, plan, cond, noise, ()).leaves[:, 0]
    assert leaves[::2].mean().item() == pytest.approx(-2, abs=0.25)
    assert leaves[1::2].mean().item() == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"gradient": "full"}, "take sampler = sde"),
        ({"gradient": "state_kl"}, "take sampler = sde"),
        ({"gradient": "full", "sampler": "sde", "self_normalise": True}, "take pathwise"),
        ({"beta": -1.0}, "beta = -1"),
        ({"group": 0}, "group = 0"),
        ({"steps": 1}, "take at least 2"),
    ],
)
def test_options_that_cannot_be_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        FlowOPD(**options)
