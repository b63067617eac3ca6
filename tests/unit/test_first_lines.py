"""The first guess of how long a run takes."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from afterflow.experiment import first_lines


@pytest.mark.parametrize(
    ("lengths", "seconds"), [([9.0, 2.0, 0.1, 0.1], 0.1), ([9.0, 0.1, 0.1, 2.0], 0.1), ([9.0, 60.0], 60.0)]
)
def test_a_pass_that_something_else_held_up_does_not_decide(lengths, seconds, monkeypatch):
    """The first warms up; a long one is not repeated, because three would be waited for."""
    clock, left = [0.0], iter(lengths)

    def trial_pass(setup, prompts):
        def make():
            clock[0] += next(left)
            return torch.zeros(1)

        return make

    monkeypatch.setattr(first_lines, "trial_pass", trial_pass)
    monkeypatch.setattr(first_lines, "running_seconds", lambda: clock[0])
    setup = SimpleNamespace(processes=SimpleNamespace(all_gather_objects=lambda value: [value]))
    guess = first_lines.pass_seconds(cast(Any, setup), cast(Any, None))
    assert guess == pytest.approx(seconds) and next(left, None) is None
