"""Signs that training goes wrong: each is told once, with what to do, and a sound run has none."""

import math

import pytest

from afterflow.experiment.health import HEALTH_REMEDIES, WINDOW, HealthWatch


def told(name, values):
    """The iterations at which a metric with these values is warned of."""
    watch = HealthWatch()
    return [(step, line) for step, value in enumerate(values) for line in watch.warnings({name: value, "reward": 1.0})]


@pytest.mark.parametrize("name", ["zero_std_groups", "clip_fraction", "masked_fraction"])
def test_iterations_that_teach_nearly_nothing_are_told_once_after_some_of_them(name):
    ((step, line),) = told(name, [0.95] * 40)
    assert step == WINDOW - 1 and line.startswith("95% ") and HEALTH_REMEDIES[name] in line
    assert told(name, [0.8] * 40) == told(name, [1.0] * (WINDOW - 1)) == []


@pytest.mark.parametrize("name", ["kl", "grad_norm"])
def test_what_runs_away_is_told_once_and_growth_from_nothing_is_not(name):
    quadratic = [1e-6 * step**2 for step in range(200)]
    assert told(name, quadratic) == told(name, [0.0] * 100) == []
    ((step, line),) = told(name, [0.1] * 40 + [0.1 * 2**i for i in range(20)])
    assert 40 < step < 55 and line.startswith(f"{name} runs away, from 0.1") and HEALTH_REMEDIES[name] in line


def test_a_single_outlier_and_what_is_no_number_are_not_signs():
    assert told("grad_norm", [0.1] * 40 + [1e6] + [0.1] * 40) == []
    assert told("kl", [math.nan] * 100) == []
    assert told("grad_norm", [0.1] * 40 + [math.inf] * 40) == []
