"""Bounds of options: each refuses what is outside it, and NaN."""

from types import SimpleNamespace

import pytest

from afterflow.system.checks import check_at_least_one, check_not_negative, check_positive
from afterflow.system.errors import ConfigError


@pytest.mark.parametrize("check", [check_at_least_one, check_not_negative, check_positive])
def test_a_bound_refuses_what_is_outside_it_and_nan(check):
    for inside in (None, 1, 1.5):
        check(SimpleNamespace(width=inside), "width")
    for outside in (-1, float("nan")):
        with pytest.raises(ConfigError, match=f"^model.width = {outside}: "):
            check(SimpleNamespace(width=outside), "width", prefix="model.")


def test_zero_is_inside_one_bound_only():
    check_not_negative(SimpleNamespace(width=0), "width")
    for check in (check_at_least_one, check_positive):
        with pytest.raises(ConfigError, match=r"^width = 0: "):
            check(SimpleNamespace(width=0), "width")
