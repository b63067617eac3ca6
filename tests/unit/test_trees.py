import pytest
import torch

from afterflow.objectives.tree_credit import best_children, extremes, fuse, path_log_prob, widths
from afterflow.sampling.rollout import siblings

NAN = float("nan")


def test_published_trees_have_their_published_edges():
    """spec §5.2: depth 20, two children."""
    edges = lambda splits: sum(widths(20, splits, 2)[1:])
    assert [edges(s) for s in [(0, 3, 6, 9), (0, 4, 8, 12), (0, 5, 10, 15), (0, 1, 2, 3)]] == [218, 184, 150, 286]
    assert sum(widths(20, (0, 3, 6, 9), 2)[:-1]) == 203
    assert widths(3, (1,), 3) == (1, 1, 3, 3)


def test_fusion_is_the_mean_of_the_leaves_below():
    rewards = torch.tensor([[1.0, 3, 2, 6]])
    flat = torch.zeros(1, 4)
    assert fuse(rewards, flat, 1, 0.0).tolist() == [[3.0]]
    assert fuse(rewards, flat, 2, 0.0).tolist() == [[2.0, 4.0]]
    assert fuse(rewards, flat, 4, 0.0).tolist() == [[1.0, 3.0, 2.0, 6.0]]


def test_a_likelier_path_counts_more_by_beta():
    rewards, path = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 2.0]])
    for beta in (0.0, 0.5, 3.0):
        expected = torch.tensor(2.0 * beta).sigmoid()
        torch.testing.assert_close(fuse(rewards, path, 1, beta), expected.view(1, 1))


def test_an_unknown_leaf_leaves_the_mean_and_an_unknown_family_stays_unknown():
    fused = fuse(torch.tensor([[1.0, NAN, NAN, NAN]]), torch.zeros(1, 4), 2, 1.0)
    assert fused[0, 0] == 1 and fused[0, 1].isnan()


def test_a_path_is_the_sum_of_its_own_steps():
    """One root, a split at step 0 and one at step 2."""
    steps = [torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, 20.0]]), torch.tensor([[100.0, 200.0, 300.0, 400.0]])]
    assert path_log_prob(steps, 0, 4).tolist() == [[111, 211, 322, 422]]
    assert path_log_prob(steps, 1, 4).tolist() == [[110, 210, 320, 420]]
    assert path_log_prob(steps, 3, 4).tolist() == [[0, 0, 0, 0]]


def test_pruning_keeps_the_best_of_each_brood_or_the_extremes_of_the_tree():
    rewards = torch.tensor([[1.0, 3, 2, 6, 5, 4], [1, 2, 3, 4, 5, 6]])
    assert best_children(rewards, 2).long().tolist() == [[0, 1, 0, 1, 1, 0], [0, 1, 0, 1, 0, 1]]
    assert best_children(rewards, 3).long().tolist() == [[0, 1, 0, 1, 0, 0], [0, 0, 1, 0, 0, 1]]
    assert extremes(rewards, 1).long().tolist() == [[1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 1]]
    assert extremes(rewards, 2).sum(1).tolist() == [4, 4]


@pytest.mark.parametrize(
    "b, kept",
    [(1, [2, 7]), (2, [2, 3, 6, 7]), (3, [2, 3, 4, 5, 6, 7]), (4, [2, 3, 4, 5, 6, 7])],
)
@pytest.mark.parametrize("order", [range(8), (7, 0, 3, 6, 1, 2, 5, 4)])
def test_a_failed_leaf_is_neither_best_nor_worst(b, kept, order):
    rewards = torch.tensor([NAN, NAN, 1, 2, 3, 4, 5, 6])[list(order)]
    found = extremes(torch.stack([rewards, torch.full((8,), NAN)]), b)
    assert sorted(list(order)[i] for i in found[0].nonzero().flatten()) == kept
    assert not found[1].any()


def test_a_failed_leaf_is_the_best_of_no_brood():
    assert best_children(torch.tensor([[NAN, -3.0, 2, NAN]]), 2).tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("lam", [0.5, 1.0, 4.0])
def test_siblings_are_standard_normal_and_correlated_as_published(lam):
    draw = torch.Generator().manual_seed(0)
    own, shared = (torch.randn(200_000, w, 1, generator=draw) for w in (4, 2))
    noise = siblings(own, shared, lam)[..., 0]
    together = noise.T.cov()
    near = 1 / (1 + lam**2)
    expected = torch.tensor([[1, near, 0, 0], [near, 1, 0, 0], [0, 0, 1, near], [0, 0, near, 1]])
    torch.testing.assert_close(together, expected, atol=0.01, rtol=0)
