"""The rule that says when two methods have been compared often enough, on trainings that are made up."""

from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def sequential(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import sequential

    return sequential


def figures(offset, seeds, rng, sd=0.01):
    """Figures (seeds, 70) of a method whose score is `offset`, with a seed's own part and an image's."""
    return offset + rng.normal(0, sd, (seeds, 1)) + rng.normal(0, 0.05, (seeds, 70))


STRATA = np.split(np.arange(70), 7)


@pytest.mark.parametrize(("apart", "verdict"), [(0.2, "ahead"), (-0.2, "behind"), (0.0, "alike")])
def test_what_is_clear_is_decided_at_the_first_look(sequential, apart, verdict):
    rng = np.random.default_rng(0)
    found, seeds, interval = sequential.decide(figures(apart, 6, rng), figures(0.0, 6, rng), STRATA)
    assert (found, seeds) == (verdict, 3) and interval.low < apart < interval.high


def test_looks_for_which_seeds_are_missing_are_not_taken(sequential):
    rng = np.random.default_rng(1)
    first, second = (figures(0.0, 8, rng, sd=0.1) for _ in range(2))
    assert sequential.decide(first[:2], second, STRATA) == ("undecided", 0, None)
    assert sequential.decide(first[:5], second, STRATA)[1] == 3
    assert sequential.decide(first, second, STRATA)[1] == 6


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.01, 0.2, "ahead"), (-0.2, -0.01, "behind"), (-0.1, 0.2, "undecided")]
)
def test_the_side_of_an_interval_decides(sequential, low, high, verdict):
    assert sequential.verdict(sequential.Estimate(0.0, low, high)) == verdict
    small = sequential.verdict(sequential.Estimate(0.0, low / 10, high / 10))
    assert small == ("alike" if verdict == "undecided" else verdict)
    assert sequential.verdict(sequential.Estimate(0.0)) == "undecided"


def test_of_equal_methods_one_in_twenty_is_called_different(sequential):
    found = sequential.simulate(0.0, 0.02, sequential.PROMPT_SD, 200, np.random.default_rng(2))
    # Two standard deviations of a count of 200 with a chance of .05 are six.
    assert found["ahead"] + found["behind"] <= 16
    assert sequential.simulate(0.1, 0.02, sequential.PROMPT_SD, 100, np.random.default_rng(3))["ahead"] > 90
