"""Distances of velocities as divergences of steps: against torch.distributions, autograd and the closed forms."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from afterflow.objectives.distillation import self_normalised, step_weight
from afterflow.objectives.losses import flow_matching
from afterflow.sampling.flow import expand
from afterflow.sampling.kernels import KERNELS, velocity_of, velocity_slope
from afterflow.sampling.schedules import LinearShift, SD3Grid

# The last step onto the image and, for cps, its lack of a density there are never asked for.
TIMES = SD3Grid().times(10)
T, S = TIMES[:-2], TIMES[1:-1]


@pytest.fixture
def states():
    draws = torch.Generator().manual_seed(0)
    return torch.randn(3, len(T), 4, 5, generator=draws)  # x and two velocities


@pytest.mark.parametrize("name", KERNELS)
def test_the_kl_weight_is_the_divergence_of_two_steps(name, states):
    x, v, other = states
    eta = torch.full_like(T, 0.7)
    p, q = (KERNELS[name](x, each, T, S, eta) for each in (v, other))
    exact = kl_divergence(Normal(p.mean, p.std), Normal(q.mean, q.std)).flatten(1).mean(1)
    torch.testing.assert_close(
        step_weight("kl", KERNELS[name], T, S, eta) * flow_matching(v, other), exact, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", KERNELS)
def test_the_gradient_is_that_of_the_divergence(name, states):
    x, v, other = states
    eta, v = torch.full_like(T, 0.7), v.clone().requires_grad_()
    p, q = KERNELS[name](x, v, T, S, eta), KERNELS[name](x, other, T, S, eta)
    (exact,) = torch.autograd.grad(kl_divergence(Normal(p.mean, p.std), Normal(q.mean, q.std)).sum(), v)
    weighted = step_weight("kl", KERNELS[name], T, S, eta) * flow_matching(v, other)
    (ours,) = torch.autograd.grad(weighted.sum() * v[0].numel(), v)
    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5)


def test_the_ode_weight_is_half_the_squared_distance_of_where_steps_lead(states):
    x, v, other = states
    moved = (KERNELS["flow_sde"](x, each, T, S, torch.zeros_like(T)).mean for each in (v, other))
    a, b = moved
    torch.testing.assert_close(
        step_weight("ode", KERNELS["flow_sde"], T, S, torch.zeros_like(T)) * flow_matching(v, other),
        0.5 * ((a - b) ** 2).flatten(1).mean(1),
        rtol=1e-4,
        atol=1e-7,
    )


def test_closed_forms_of_the_spec():
    a, d = 0.7, T - S
    eta, flow = torch.full_like(T, a), KERNELS["flow_sde"]
    kl = d * (1 + a**2 / 2) ** 2 * (1 - T) / (2 * a**2 * T)
    kl[0] = d[0] * (1 - S[0]) / (2 * a**2)
    torch.testing.assert_close(step_weight("kl", flow, T, S, eta), kl, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(step_weight("flow_grpo", flow, T, S, eta), kl * d, rtol=1e-4, atol=1e-7)
    # The step at .278 carries so much of the whole; steps above .75 almost nothing.
    for name, share, early in (("kl", 0.64, 0.04), ("flow_grpo", 0.76, 0.01), ("ode", 0.47, 0.12)):
        weight = step_weight(name, flow, T, S, eta)
        assert (weight[8] / weight.sum()).item() == pytest.approx(share, abs=0.006)
        assert (weight[:5].sum() / weight.sum()).item() == pytest.approx(early, abs=0.006)
    dance = step_weight("kl", KERNELS["dance_sde"], T, S, eta)
    slope = d * (1 + a**2 * (1 - T) / (2 * T))
    torch.testing.assert_close(dance, slope**2 / (2 * a**2 * d), rtol=1e-4, atol=1e-7)
    half = torch.tensor(a * torch.pi / 2)
    c = S * half.cos() * (1 - T) - (1 - S) * T
    cps = step_weight("kl", KERNELS["cps"], T, S, eta)
    torch.testing.assert_close(cps, c**2 / (2 * S**2 * half.sin() ** 2), rtol=1e-4, atol=1e-7)


def test_plain_weights():
    assert (step_weight("v", KERNELS["flow_sde"], T, S, T) == 1).all()
    torch.testing.assert_close(step_weight("x0", KERNELS["flow_sde"], T, S, T), T**2)


@pytest.mark.parametrize("name", KERNELS)
def test_the_velocity_of_a_step_is_found_again(name, states):
    x, v, _ = states
    eta = torch.full_like(T, 0.5)
    mean = KERNELS[name](x, v, T, S, eta).mean
    torch.testing.assert_close(velocity_of(KERNELS[name], mean, x, T, S, eta), v, rtol=1e-3, atol=1e-3)
    assert (velocity_slope(KERNELS[name], T, S, eta) < 0).all()


def test_self_normalised_distances_pull_alike_from_near_and_far():
    t = LinearShift().times(4)[:-1]
    v = torch.randn(len(t), 6)
    near, far = ((expand(scale * torch.ones_like(t), v) * torch.ones_like(v)) for scale in (0.01, 10.0))
    gradients = []
    for away in (near, far):
        moved = (v + away).requires_grad_()
        gradients.append(torch.autograd.grad(self_normalised(moved, v).sum(), moved)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)


def test_errors_of_both_signs_have_their_mean_size_divided_out():
    v, other = torch.tensor([[3.0, 0.0], [0.1, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 0.1]])
    assert self_normalised(v, other).tolist() == pytest.approx([(9 + 1) / 2 / 2, 0.01 / 0.1])
    assert self_normalised(v, v).eq(0).all()
    tiny = torch.full((1, 4), 1e-7)
    assert self_normalised(tiny, 0 * tiny).item() == pytest.approx(1e-14 / 1e-6)  # no smaller divisor
