"""The measure of exposure bias, on pictures that are Gaussian, where the exact velocity is known."""

from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[2] / "bench"
GRID = torch.linspace(1, 0, 401).tolist()


@pytest.fixture
def first_stage(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import first_stage

    return first_stage


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, 500, generator=generator), torch.randn(64, 500, generator=generator)


def exact(x, t):
    """Of pictures with mean 0 and variance 1: the mean of noise - picture at a state x."""
    t = t[:, None]
    return (2 * t - 1) / ((1 - t) ** 2 + t**2) * x


def test_an_exact_velocity_predicts_as_much_noise_on_its_own_path_as_on_the_line(first_stage, drawn):
    found = first_stage.exposure_bias(exact, *drawn, GRID)
    assert found[0]["time"] == pytest.approx(0.9975) and found[-1]["time"] == pytest.approx(first_stage.LAST)
    for point in found:
        assert point["own_noise"] / point["line_noise"] == pytest.approx(1, abs=0.02)


def test_errors_are_those_of_the_closed_form(first_stage, drawn):
    """From START the path of an exact velocity keeps x / σ(t), so it knows of the picture what that state said."""
    found = [point for point in first_stage.exposure_bias(exact, *drawn, GRID) if "own" in point]
    assert found[0]["time"] == pytest.approx(0.6975)
    variance = lambda t: (1 - t) ** 2 + t**2
    start = first_stage.START
    for point in found:
        t = point["time"]
        assert point["line"] == pytest.approx(t**2 / variance(t), rel=0.03)
        gain = (1 - t) / variance(t) * (variance(t) / variance(start)) ** 0.5
        error = 1 - 2 * gain * (1 - start) + gain**2 * variance(start)
        assert point["own"] == pytest.approx(error, rel=0.03)


def test_a_velocity_that_drifts_is_seen(first_stage, drawn):
    last = first_stage.exposure_bias(lambda x, t: 0.8 * exact(x, t), *drawn, GRID)[-1]
    assert last["own_noise"] / last["line_noise"] > 1.05
