import math

import pytest
import torch

from afterflow.sampling.flow import expand
from afterflow.sampling.kernels import (
    KERNELS,
    cps,
    dance_sde,
    flow_sde,
    kl,
    log_prob,
    variance_free,
    velocity_of,
    velocity_slope,
    wan_sde,
)
from afterflow.sampling.schedules import DynamicShift, LinearShift, SD3Grid
from toy import exact

every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)

# From the authors' code: LinearShift(3) in 10 steps at η = 0.7.
# step: (g, mean[0], mean[1], mean of the mean, log-probability); for cps std in place of g
FLOW_SDE = {
    0: (3.7040496, -0.7907143, -0.6893358, -0.0015809, -1.8957726),
    1: (3.6373045, -0.7686136, -0.6719497, -0.0022710, -1.7920099),
    5: (1.2124355, -1.0220833, -0.8975708, -0.0045926, -6.5780497),
    9: (0.4041452, -1.2295834, -1.1009346, -0.0137777, -24.1775112),
}
CPS = {
    0: (0.8591848, -0.5092053, -0.4453613, -0.0015809, -0.9754661),
    1: (0.8224676, -0.5552002, -0.4878878, -0.0026209, -1.0310510),
    5: (0.5940044, -0.8103285, -0.7220543, -0.0077171, -1.3691025),
    9: (0.0, -1.25, -1.1116834, -0.0110664, -2.0440521),
}


def published_step(kernel, i):
    times = LinearShift(3.0).times(10)
    x = torch.linspace(-1, 1, 16).view(1, 1, 4, 4)
    v = torch.linspace(0, 3, 16).cos().view(1, 1, 4, 4)
    x_next = torch.linspace(0, 5, 16).sin().view(1, 1, 4, 4)
    return kernel(x, v, times[[i]], times[[i + 1]], torch.tensor([0.7])), x_next, (times[i] - times[i + 1]).item()


@pytest.mark.parametrize("i", FLOW_SDE)
def test_flow_sde_is_the_authors_code(i):
    p, x_next, dt = published_step(flow_sde, i)
    mean = p.mean.flatten()
    found = [
        p.std.item() / math.sqrt(dt),
        mean[0].item(),
        mean[1].item(),
        mean.mean().item(),
        log_prob(p, x_next).item(),
    ]
    assert found == pytest.approx(FLOW_SDE[i], abs=1e-6, rel=2e-6)


@pytest.mark.parametrize("i", CPS)
def test_cps_is_the_authors_code(i):
    p, x_next, _ = published_step(cps, i)
    mean = p.mean.flatten()
    found = [p.std.item(), mean[0].item(), mean[1].item(), mean.mean().item(), variance_free(p, x_next).item()]
    assert found == pytest.approx(CPS[i], abs=1e-6, rel=2e-6)


def random_step(seed=0):
    """Rows at different times, the first from pure noise."""
    draws = torch.Generator().manual_seed(seed)
    x, v, other = torch.randn(3, 4, 3, 8, 8, generator=draws).unbind()
    t, s, eta = torch.tensor([[1.0, 0.9, 0.6, 0.2], [0.95, 0.6, 0.5, 0.1], [0.7, 0.3, 0.5, 0.9]])
    return x, v, other, t, s, eta


@every_kernel
def test_without_noise_a_step_is_euler(kernel):
    x, v, _, t, s, _ = random_step()
    p = kernel(x, v, t, s, torch.zeros(4))
    torch.testing.assert_close(p.mean, x - expand(t - s, x) * v, atol=1e-6, rtol=0)
    assert (p.std == 0).all()


@every_kernel
def test_rows_of_a_batch_do_not_mix(kernel):
    x, v, _, t, s, eta = random_step()
    together = kernel(x, v, t, s, eta)
    for row in range(4):
        alone = kernel(*(a[[row]] for a in (x, v, t, s, eta)))
        torch.testing.assert_close(alone.mean, together.mean[[row]])
        torch.testing.assert_close(alone.std, together.std[[row]])


@every_kernel
def test_half_precision_states_meet_fp32_arithmetic(kernel):
    x, v, _, t, s, eta = random_step()
    half = kernel(x.bfloat16(), v.bfloat16(), t, s, eta)
    torch.testing.assert_close(half.mean, kernel(x.bfloat16().float(), v.bfloat16().float(), t, s, eta).mean)
    assert log_prob(half, x.bfloat16()).dtype == torch.float32


def test_dance_sde_with_the_diffusion_of_flow_sde_is_flow_sde():
    x, v, _, t, s, eta = random_step()
    g = eta * (t / (1 - torch.where(t == 1, s, t))).sqrt()
    torch.testing.assert_close(dance_sde(x, v, t, s, g), flow_sde(x, v, t, s, eta))


def test_wan_sde_is_dance_sde_with_diffusion_proportional_to_time():
    times = LinearShift(5.0).times(20)
    x, v, *_ = random_step()
    t, s, eta = times[[0, 1, 10, 18]], times[[1, 2, 11, 19]], times[1].expand(4)
    # The published code interpolates from σ_min = 0 to σ_max = σ_1.
    torch.testing.assert_close(wan_sde(x, v, t, s, eta), dance_sde(x, v, t, s, 0 + (times[1] - 0) * t))


@pytest.mark.parametrize("schedule", [SD3Grid(), LinearShift(1.0), LinearShift(7.0), DynamicShift()])
@pytest.mark.parametrize("steps", [4, 10, 40])
@pytest.mark.parametrize("eta", [0.3, 0.7, 1.5])
def test_the_first_step_of_flow_sde_has_std_eta_and_inflates_the_variance(schedule, steps, eta):
    times = schedule.times(steps)
    p = flow_sde(torch.ones(1, 1), torch.zeros(1, 1), times[[0]], times[[1]], torch.tensor([eta]))
    assert p.std.item() == pytest.approx(eta, rel=1e-5)
    assert p.mean.item() ** 2 + p.std.item() ** 2 == pytest.approx(1 + eta**4 / 4, rel=1e-5)


def density(p):
    return torch.distributions.Normal(p.mean, p.std.expand_as(p.mean))


@every_kernel
def test_log_prob_and_kl_are_those_of_torch(kernel):
    x, v, other, t, s, eta = random_step()
    p, q = kernel(x, v, t, s, eta), kernel(x, other, t, s, eta)
    torch.testing.assert_close(log_prob(p, x), density(p).log_prob(x).mean((1, 2, 3)))
    torch.testing.assert_close(kl(p, q), torch.distributions.kl_divergence(density(p), density(q)).mean((1, 2, 3)))


def sensitivity(kernel, t, s, eta):
    """c = d mean / d v, as derived on paper."""
    if kernel is cps:
        return -t * (1 - s) + (1 - t) * s * (eta * math.pi / 2).cos()  # √(s² - std²) = s cos
    star = torch.where(t == 1, s, t)
    g = {flow_sde: eta * (t / (1 - star)).sqrt(), dance_sde: eta, wan_sde: eta * t}[kernel]
    return -(t - s) * (1 + g**2 * (1 - t) / (2 * t))


@every_kernel
def test_kl_is_the_distance_of_velocities_in_stds(kernel):
    x, v, other, t, s, eta = random_step()
    p, q = kernel(x, v, t, s, eta), kernel(x, other, t, s, eta)
    squares = ((v - other) ** 2).mean((1, 2, 3))
    expected = sensitivity(kernel, t, s, eta) ** 2 * squares / (2 * p.std.flatten() ** 2)
    torch.testing.assert_close(kl(p, q), expected, rtol=1e-4, atol=0)


def final_moments(kernel, eta, steps, mean, std):
    """Mean and std of x_0 under the exact velocity of N(mean, std²): steps are affine, so nothing is sampled."""
    times = LinearShift(1.0).times(steps)
    t, s = times[:-1], times[1:]
    step = lambda x: kernel(x, exact(x, t, None, mean, std), t, s, torch.full((steps,), eta))
    at_0, at_1 = step(torch.zeros(steps, 1)), step(torch.ones(steps, 1))
    m, variance = 0.0, 1.0
    for a, b, noise in zip((at_1.mean - at_0.mean).tolist(), at_0.mean.tolist(), at_0.std.tolist()):
        m, variance = a[0] * m + b[0], a[0] ** 2 * variance + noise[0] ** 2
    return m, math.sqrt(variance)


@pytest.mark.parametrize(
    "kernel, eta",
    [(flow_sde, 0.0), (flow_sde, 0.7), (flow_sde, 1.2), (dance_sde, 0.3), (dance_sde, 1.0), (wan_sde, 1.0)],
)
def test_the_ode_and_the_sdes_end_at_the_data(kernel, eta):
    assert final_moments(kernel, eta, 1000, 2.0, 0.5) == pytest.approx((2.0, 0.5), abs=0.005)


@pytest.mark.parametrize("eta, std", [(0.7, 0.423), (1.2, 0.400)])
def test_cps_does_not_keep_the_marginals(eta, std):
    assert final_moments(cps, eta, 1000, 2.0, 0.5)[1] == pytest.approx(std, abs=0.004)


@pytest.mark.parametrize("eta", [0.2, 0.8])
def test_cps_keeps_the_noise_level_at_any_step_size_when_the_image_is_certain(eta):
    draws = torch.Generator().manual_seed(0)
    image, x = torch.randn(2, 1, 100_000, generator=draws).unbind()
    for t, s in [(1.0, 0.8), (0.8, 0.3), (0.3, 0.2)]:
        p = cps(x, (x - image) / t, torch.tensor([t]), torch.tensor([s]), torch.tensor([eta]))
        x = p.mean + p.std * torch.randn(x.shape, generator=draws)
        noise = x - (1 - s) * image
        assert noise.mean().item() == pytest.approx(0, abs=0.01)
        assert noise.std().item() == pytest.approx(s, rel=0.01)


def test_variance_free_log_ratios_are_true_ones_times_twice_the_variance():
    x, v, other, t, s, eta = random_step()
    p, q = cps(x, v, t, s, eta), cps(x, other, t, s, eta)
    true = log_prob(p, x) - log_prob(q, x)
    torch.testing.assert_close(variance_free(p, x) - variance_free(q, x), true * 2 * p.std.flatten() ** 2)


@every_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_velocity_of_a_step_is_read_off_its_mean(kernel, dtype):
    x, v, _, t, s, eta = random_step()
    x = x.to(dtype)
    torch.testing.assert_close(velocity_of(kernel, kernel(x, v, t, s, eta).mean, x, t, s, eta), v, rtol=1e-3, atol=1e-4)
    slope = sensitivity(kernel, t, s, eta)
    torch.testing.assert_close(velocity_slope(kernel, t, s, eta), slope, rtol=1e-4, atol=1e-5)
