import pytest
import torch

from afterflow.algorithms.windows import SlidingWindow
from afterflow.sampling.seeds import generator


def starts(window, steps, iterations):
    return [window.start(i, steps, generator(0, i)) for i in range(iterations)]


def stays(window, steps, iterations):
    found = starts(window, steps, iterations)
    return [found.count(start) for start in sorted(set(found))]


def test_the_progressive_window_moves_every_25_iterations_and_stops_at_the_last_full_one():
    """T = 25, w = 4: starts 0 .. 19; the released window then shrinks to nothing."""
    found = starts(SlidingWindow(), 25, 1000)
    assert found[:500] == [i // 25 for i in range(500)] and set(found[500:]) == {19}
    assert max(found) + 4 <= 25 - 2


def test_it_may_roll_back_and_stride():
    found = starts(SlidingWindow(every=2, stride=5, roll_back=True), 25, 24)
    assert found == [0, 0, 5, 5, 10, 10, 15, 15, 19, 19] * 2 + [0, 0, 5, 5]


def test_the_decays_stay_as_long_as_published():
    linear = [25, 24, 23, 22, 21, 20, 20, 19, 18, 17, 16, 15, 15, 14, 13, 12, 11, 10, 10]
    assert stays(SlidingWindow(order="linear_decay"), 25, 400)[:19] == linear
    exponential = [25] * 14 + [23, 21, 19, 17, 16]
    assert stays(SlidingWindow(order="exp_decay"), 25, 600)[:19] == exponential


def test_random_windows_are_seeded_and_everywhere_and_frozen_ones_stay():
    found = starts(SlidingWindow(order="random"), 12, 300)
    assert set(found) == set(range(7)) and found == starts(SlidingWindow(order="random"), 12, 300)
    assert set(starts(SlidingWindow(order="frozen"), 12, 50)) == {0}


@pytest.mark.parametrize("order", ["progressive", "random", "frozen", "linear_decay", "exp_decay"])
@pytest.mark.parametrize("roll_back", [True, False])
def test_no_window_is_ever_cut_short(order, roll_back):
    window = SlidingWindow(width=3, every=3, stride=2, order=order, roll_back=roll_back, idle=1)
    for steps in (4, 5, 10):
        window.check(steps)
        assert all(start >= 0 and start + 3 <= steps - 1 for start in starts(window, steps, 200))


@pytest.mark.parametrize(
    "options, advice",
    [
        (dict(width=0), "window.width = 0: at least 1"),
        (dict(stride=0), "window.stride = 0: at least 1"),
        (dict(every=0), "window.every = 0: at least 1"),
        (dict(idle=0), "the step onto the image is never trained"),
        (dict(width=9), "at most 8 of 10 steps"),
    ],
)
def test_a_window_that_cannot_be_is_refused(options, advice):
    with pytest.raises(ValueError, match=advice):
        SlidingWindow(**options).check(10)


def test_the_generator_is_only_used_where_places_are_random():
    draw = torch.Generator().manual_seed(0)
    SlidingWindow().start(3, 25, draw)
    assert torch.equal(draw.get_state(), torch.Generator().manual_seed(0).get_state())
