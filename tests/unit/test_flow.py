import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from afterflow.sampling.flow import interpolate, logit_normal, mode, predict_noise, predict_x0, renoise, weighting
from afterflow.sampling.schedules import DynamicShift, LinearShift, SD3Grid
from toy import draws


@pytest.mark.parametrize(
    "schedule, steps, times",
    [
        (SD3Grid(), 10, [1, 0.96013, 0.91335, 0.85769, 0.79037, 0.70728, 0.60215, 0.46488, 0.27805, 0.00893, 0]),
        (DynamicShift(), 6, [1, 0.90374, 0.78970, 0.65249, 0.48422, 0.27300, 0]),
        (LinearShift(3.0), 2, [1, 0.75, 0]),
    ],
)
def test_schedules_are_those_of_the_published_code(schedule, steps, times):
    torch.testing.assert_close(schedule.times(steps), torch.tensor(times), atol=6e-6, rtol=0)


def test_linear_shift_has_no_tiny_last_step():
    assert LinearShift(3.0).times(16)[-2].item() == pytest.approx(0.1667, abs=5e-5)
    assert LinearShift(3.0).times(25)[-2].item() == pytest.approx(0.1111, abs=5e-5)


@pytest.mark.parametrize("steps", [2, 10, 28, 40])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_shifted_schedules_are_those_of_diffusers(steps, shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(SD3Grid(shift).times(steps), scheduler.sigmas, atol=1e-6, rtol=0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, steps + 1)[:-1].tolist())
    torch.testing.assert_close(LinearShift(shift).times(steps), scheduler.sigmas, atol=1e-6, rtol=0)


@pytest.mark.parametrize("steps", [4, 6, 28])
@pytest.mark.parametrize("tokens, mu", [(256, 0.5), (1024, 0.63), (4096, 1.15)])
def test_the_flux_schedule_is_that_of_diffusers(steps, tokens, mu):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist(), mu=mu)
    torch.testing.assert_close(DynamicShift(tokens).times(steps), scheduler.sigmas, atol=1e-6, rtol=0)


def test_a_point_and_its_velocity_tell_both_ends_of_the_line():
    x0, noise = torch.randn(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    t = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    x, v = interpolate(x0, noise, t), noise - x0
    torch.testing.assert_close(x[[0, 4]], torch.stack([x0[0], noise[4]]))
    torch.testing.assert_close(x[1], 0.9 * x0[1] + 0.1 * noise[1])
    torch.testing.assert_close(predict_x0(x, v, t), x0)
    torch.testing.assert_close(predict_noise(x, v, t), noise)


def test_logit_normal_times_have_standard_normal_logits():
    logits = logit_normal(draws(50_000)).logit()
    assert logits.mean().item() == pytest.approx(0, abs=0.02)
    assert logits.std().item() == pytest.approx(1, abs=0.02)


def test_mode_is_dense_in_the_middle_and_nowhere_absent():
    """The density is 1 / |dt/du| (SD3, eq. 20)."""
    t = mode(draws(200_000))
    assert 0 <= t.min() < 0.001 and 0.999 < t.max() <= 1
    assert t.mean().item() == pytest.approx(0.5, abs=0.005)
    u = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad((1 - u - 1.29 * ((torch.pi / 2 * u).cos() ** 2 - 1 + u)), u)[0].abs()
    near = ((t - 0.5).abs() < 0.005).float().mean() / 0.01
    assert near.item() == pytest.approx((1 / slope).item(), rel=0.03)


def test_weightings_are_those_of_sd3():
    t = torch.tensor([0.25, 0.5, 1.0])
    assert weighting("none", t).tolist() == [1, 1, 1]
    assert weighting("sigma_sqrt", t).tolist() == [16, 4, 1]
    grid = (torch.arange(100_000) + 0.5) / 100_000
    # cosmap is a density on [0, 1], and its mirror image.
    assert weighting("cosmap", grid).mean().item() == pytest.approx(1.0, abs=1e-4)
    assert torch.allclose(weighting("cosmap", t[:1]), weighting("cosmap", 1 - t[:1]))


def test_renoising_stays_on_the_line_to_the_noise():
    x0, noise = torch.randn(2, 5, 3)
    s, t = torch.full((5,), 0.3), torch.linspace(0.3, 1, 5)
    torch.testing.assert_close(renoise(interpolate(x0, noise, s), noise, s, t), interpolate(x0, noise, t))


def test_no_grid_starts_above_pure_noise():
    for tokens in range(1, 400):
        times = DynamicShift(tokens, terminal=0.02).times(4)
        assert 1 - 1e-6 < times[0] <= 1 and (times.diff() < 0).all()
