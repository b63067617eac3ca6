import math
from dataclasses import replace

import pytest
import torch

from afterflow.sampling.kernels import flow_sde
from afterflow.sampling.rollout import chain, sample
from afterflow.sampling.schedules import DynamicShift, LinearShift, SD3Grid
from afterflow.sampling.solvers import second_order
from toy import MEAN, STD, exact, prompts


def multistep(alpha, sigma, x, m0, m1, k):
    """DPM-Solver++ 2M in its published form (arXiv:2211.01095, alg. 2), step k of lists of α and σ, in floats."""
    lam = [math.log(a / s) if 0 < s < 1 else (math.inf if s == 0 else -math.inf) for a, s in zip(alpha, sigma)]
    h, h_before = lam[k + 1] - lam[k], lam[k] - lam[k - 1]
    d = m0 + (m0 - m1) / (2 * h_before / h)
    return sigma[k + 1] / sigma[k] * x - alpha[k + 1] * (math.exp(-h) - 1) * d


@pytest.mark.parametrize("times", [(0.9, 0.7, 0.4), (0.99, 0.5, 0.45), (0.3, 0.2, 0.05)])
def test_a_step_agrees_with_the_published_form(times):
    x, v, m1 = 0.7, -0.4, 0.1
    before, t, s = (torch.tensor([time]) for time in times)
    m0 = x - times[1] * v
    ours = x - (times[1] - times[2]) * v + second_order(torch.tensor([m0]), torch.tensor([m1]), before, t, s)
    assert ours.item() == pytest.approx(multistep([1 - u for u in times], times, x, m0, m1, 1), abs=1e-6)


@pytest.mark.parametrize("before, s", [(1.0, 0.3), (0.8, 0.0)], ids=["after pure noise", "onto the image"])
def test_at_the_ends_only_euler_is_left(before, s):
    t = torch.tensor([0.5])
    extra = second_order(torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([before]), t, torch.tensor([s]))
    assert torch.equal(extra, torch.zeros(1, 2))


def on_the_flow(t, z):
    """Where the flow between N(0, 1) and N(MEAN, STD²) carries the noise z to at time t."""
    return (1 - t) * MEAN + ((1 - t) ** 2 * STD**2 + t**2) ** 0.5 * z


def error(steps, order):
    """Of the way from t = 0.9 to 0.2: at the ends of the line, where λ is infinite, there is no second order."""
    z = torch.randn(1, 64, 2, generator=torch.Generator().manual_seed(0))
    plan = chain(torch.linspace(0.9, 0.2, steps + 1), 64, 0.0, ())
    plan = replace(plan, second_order=tuple(range(steps)) if order == 2 else ())
    found = sample(exact, flow_sde, plan, prompts(1), on_the_flow(0.9, z), ()).leaves
    return (found - on_the_flow(0.2, z)).abs().mean().item()


def test_halving_the_step_halves_the_error_of_euler_and_at_least_quarters_that_of_the_second_order():
    assert 1.8 < error(8, 1) / error(16, 1) < 2.2
    assert error(8, 2) / error(16, 2) > 3.5
    assert error(16, 2) < error(16, 1) / 20


@pytest.mark.parametrize("schedule", [LinearShift(3.0), LinearShift(1.0), SD3Grid(3.0), DynamicShift()])
def test_the_rest_of_a_schedule_goes_from_t_to_the_image_in_even_unshifted_steps(schedule):
    rest = schedule.rest(0.6, 4)
    assert rest[0].item() == pytest.approx(0.6) and rest[-1] == 0 and (rest.diff() < 0).all()
    even = rest / (schedule.warp - (schedule.warp - 1) * rest)
    torch.testing.assert_close(even.diff(), even.diff()[:1].expand(4))
    full = LinearShift(3.0).times(10)
    torch.testing.assert_close(LinearShift(3.0).rest(float(full[4]), 6), full[4:])


def test_second_order_goes_on_from_the_states_parent():
    """Where a state has just branched, the image predicted before it is its parent's."""
    plan = replace(chain(torch.linspace(0.9, 0.1, 5), 6, 0.4, (1,), shared_noise=True), second_order=(2, 3))
    noise = torch.randn(2, 1, 2, generator=torch.Generator().manual_seed(0))
    made = sample(exact, flow_sde, plan, prompts(2), noise, [torch.Generator().manual_seed(p) for p in range(2)])
    x0 = lambda k: made.x[k] - plan.times[k] * exact(made.x[k].flatten(0, 1), plan.times[[k]]).view_as(made.x[k])
    for k in (2, 3):
        before, t, s = (plan.times[[j]] for j in (k - 1, k, k + 1))
        euler = made.x[k] - (t - s) * (made.x[k] - x0(k)) / t
        extra = second_order(x0(k).flatten(0, 1), x0(k - 1).expand(2, 6, 2).flatten(0, 1), before, t, s)
        torch.testing.assert_close(made.x[k + 1], euler + extra.view_as(euler), rtol=1e-4, atol=1e-5)
        assert extra.abs().max() > 1e-3


def test_a_line_through_one_number_of_tokens_is_refused():
    with pytest.raises(ValueError, match="both are 256"):
        DynamicShift(low=(256, 0.5), high=(256, 1.15))
    assert DynamicShift(low=(256, 0.5), high=(4096, 256.0)).warp > 0
