import pytest
import torch

from afterflow.objectives.losses import clipped_surrogate, flow_matching, guard_log_ratio
from afterflow.sampling.kernels import Gaussian, log_prob


@pytest.mark.parametrize(
    "ratio, advantage, loss, slope",
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.0),
        (1.1, -2.0, 2.2, 2.0),
        (1.5, 1.0, -1.2, 0.0),  # already likelier by more than the clip: no further
        (1.5, -1.0, 1.5, 1.0),  # likelier though worse: back
        (0.5, 1.0, -0.5, -1.0),  # less likely though better: back
        (0.5, -1.0, 0.8, 0.0),
    ],
)
def test_the_surrogate_is_that_of_ppo(ratio, advantage, loss, slope):
    log_ratio = torch.tensor(ratio).log().requires_grad_()
    found = clipped_surrogate(log_ratio, torch.tensor(advantage), 0.2)
    found.backward()
    assert found.item() == pytest.approx(loss)
    assert log_ratio.grad.item() / ratio == pytest.approx(slope)


@pytest.mark.parametrize("std", [0.02, 0.7])
def test_guards_closed_form_is_its_long_form(std):
    """exp((log π - log π_old + ‖μ - μ_old‖²/2σ²) σ), which subtracts large numbers: hence float64."""
    draws = torch.Generator().manual_seed(0)
    mean, shift, noise = torch.randn(3, 4, 3, 8, 8, generator=draws, dtype=torch.float64).unbind()
    std = torch.full((4, 1, 1, 1), std, dtype=torch.float64)
    old, p = Gaussian(mean, std), Gaussian(mean + 0.1 * shift, std)
    x = (mean + std * noise).float()  # states are stored in fp32
    log = lambda q: torch.distributions.Normal(q.mean, q.std).log_prob(x.double()).mean((1, 2, 3))
    correction = ((p.mean - old.mean) ** 2).mean((1, 2, 3)) / (2 * std.flatten() ** 2)
    long = (log(p) - log(old) + correction) * std.flatten()
    torch.testing.assert_close(guard_log_ratio(p, old, x), long, rtol=1e-6, atol=1e-9)
    assert (log_prob(p, x) - log_prob(old, x) - long).abs().min() > 1e-4  # they are not the plain ratios


def test_flow_matching_averages_squares_row_by_row():
    v, target = torch.tensor([[[1.0], [3.0]], [[0.0], [0.0]]]), torch.zeros(2, 2, 1)
    assert flow_matching(v, target).tolist() == [5, 0]
    # In half precision the square of 300 would be infinite.
    assert flow_matching(torch.full((1, 2), 300.0).half(), torch.zeros(1, 2).half()).item() == 90_000
