import pytest
import torch

from afterflow.objectives.advantages import Normalize, normalize
from afterflow.objectives.preferences import beats, consistency, pairs, win_rates

NAN = float("nan")


def judged_by(score, shown, bias=0.0):
    """Verdicts on the pairs shown, of one group with scores (G,)."""
    said = (score[:, None] - score + bias > 0).float()
    return said.where(shown, NAN)[None]


@pytest.mark.parametrize("opponents", [None, 2, 4, 6])
@pytest.mark.parametrize("both", [True, False])
def test_every_image_meets_as_many_others_as_asked_for(opponents, both):
    for seed in range(5):
        shown = pairs(8, opponents, both, torch.Generator().manual_seed(seed))
        assert not shown.diagonal().any()
        met = shown | shown.T
        assert (met.sum(1) == (7 if opponents is None else opponents)).all()
        assert torch.equal(shown & shown.T, met if both else torch.zeros_like(met))


def test_a_pair_shown_once_is_shown_in_either_order():
    draws = torch.stack([pairs(6, None, False, torch.Generator().manual_seed(seed)) for seed in range(400)])
    off_diagonal = draws.float().mean(0)[~torch.eye(6, dtype=torch.bool)]
    assert (off_diagonal - 0.5).abs().max() < 0.1


def test_a_transitive_judge_ranks_and_its_win_rates_are_published():
    """spec §6, G = 8: std .3499, largest advantage 1.43, whatever the margins."""
    for margins in (1.0, 1e-3):
        score = torch.tensor([3.0, 1, 4, 7, 5, 9, 2, 6]) * margins
        rates = win_rates(judged_by(score, pairs(8, None, True, torch.Generator())))
        assert rates.argsort().tolist()[0] == score.argsort().tolist()
        assert rates.std().item() == pytest.approx(0.3499, abs=1e-3)
        assert rates.mean().item() == pytest.approx(0.5)
        assert normalize(rates, Normalize(ddof=1, eps=1e-8)).max().item() == pytest.approx(1.43, abs=0.005)


def test_a_coin_for_a_judge_still_gives_advantages_of_full_size():
    """spec §6: mean std .197."""
    draw = torch.Generator().manual_seed(0)
    upper = (torch.rand(2000, 8, 8, generator=draw) < 0.5).float()
    once = upper.where(torch.ones(8, 8).triu(1).bool(), NAN)
    rates = win_rates(once)
    assert rates.std(1).mean().item() == pytest.approx(0.197, abs=0.01)
    assert consistency(once).eq(1).all()  # nothing to contradict


def test_a_judge_who_always_says_first_ranks_by_place_in_one_order_and_ties_in_both():
    first = torch.ones(1, 6, 6)
    by_index = first.where(torch.ones(6, 6).triu(1).bool(), NAN)
    assert win_rates(by_index)[0].tolist() == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0])
    both = first.masked_fill(torch.eye(6).bool(), NAN)
    assert win_rates(both).eq(0.5).all() and consistency(both).item() == 0


def test_orders_are_averaged_ties_are_halves_and_what_was_not_shown_is_left_out():
    judged = torch.tensor([[[NAN, 1.0, NAN], [1.0, NAN, 0.8], [NAN, NAN, NAN]]])
    assert beats(judged)[0, 0, 1] == 0.5 and beats(judged)[0, 1, 2].item() == pytest.approx(0.8)
    assert beats(judged)[0, 0, 2].isnan()
    torch.testing.assert_close(win_rates(judged), torch.tensor([[0.5, 0.65, 0.2]]))
    assert consistency(judged).item() == 0
    tie = torch.tensor([[[NAN, 0.5], [1.0, NAN]]])
    assert consistency(tie).item() == 1


def test_which_of_a_pair_is_shown_first_is_drawn_for_each_pair():
    """Of three independent coins a quarter of the throws makes a circle; an order of the images makes none."""
    draws = [pairs(3, None, False, torch.Generator().manual_seed(seed)) for seed in range(800)]
    circles = sum(bool(shown.sum(0).eq(1).all()) for shown in draws) / 800
    assert circles == pytest.approx(0.25, abs=0.05)


def test_who_meets_whom_is_drawn_from_the_generator_alone():
    drawn = []
    for other in (1, 2):
        torch.manual_seed(other)
        drawn.append(pairs(8, 2, False, torch.Generator().manual_seed(5)))
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], pairs(8, 2, False, torch.Generator().manual_seed(6)))
