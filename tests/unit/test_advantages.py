import numpy as np
import pytest
import torch

from afterflow.objectives.advantages import Blend, Normalize, advantages, combine, gated, normalize

NAN = torch.nan
# Prompts a b a c b a with rewards 1 to 6: groups of unequal size are padded with NaN.
REWARDS = torch.tensor([[1, 3, 6], [2, 5, NAN], [4, NAN, NAN]], dtype=torch.float64)


@pytest.mark.parametrize(
    "scale, golden",
    [
        ("prompt", [[-1.13549469, -0.16221353, 1.29770821], [-0.99993334, 0.99993334, NAN], [0, NAN, NAN]]),
        ("batch", [[-1.36618011, -0.19516859, 1.56134869], [-0.87825864, 0.87825864, NAN], [0, NAN, NAN]]),
    ],
)
def test_advantages_are_those_of_the_authors_code(scale, golden):
    golden = torch.tensor(golden, dtype=torch.float64)
    torch.testing.assert_close(normalize(REWARDS, Normalize(scale=scale)), golden, atol=1e-8, rtol=0, equal_nan=True)


def by_numpy(reward, how):
    groups = [row[~np.isnan(row)] for row in reward]
    everything = np.concatenate(groups)
    out = np.full_like(reward, np.nan)
    for row, group in enumerate(groups):
        centre = group.mean() if how.centre == "prompt" else everything.mean()
        pool = group if how.scale == "prompt" else everything
        std = pool.std(ddof=how.ddof) if len(pool) > how.ddof else 0.0
        out[row, ~np.isnan(reward[row])] = (group - centre) / (1.0 if how.scale == "none" else std + how.eps)
    return out


@pytest.mark.parametrize("centre", ["prompt", "batch"])
@pytest.mark.parametrize("scale", ["prompt", "batch", "none"])
@pytest.mark.parametrize("ddof, eps", [(0, 1e-4), (1, 1e-8), (1, 0.5)])
def test_advantages_are_those_of_numpy(centre, scale, ddof, eps):
    how = Normalize(centre, scale, ddof, eps)
    reward = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 7
    reward[0, 1:3] = NAN
    reward[1, 1:] = NAN  # a single member
    expected = torch.from_numpy(by_numpy(reward.numpy(), how))
    torch.testing.assert_close(normalize(reward, how), expected, equal_nan=True)


@pytest.mark.parametrize("ddof", [0, 1])
def test_a_group_without_spread_has_no_advantage(ddof):
    reward = torch.tensor([[0.1, 0.1, 0.1], [5.0, NAN, NAN], [NAN, NAN, NAN]])
    advantage = normalize(reward, Normalize(ddof=ddof, eps=1e-8))
    expected = torch.tensor([[0, 0, 0], [0, NAN, NAN], [NAN, NAN, NAN]])
    torch.testing.assert_close(advantage, expected, equal_nan=True)


def test_rewards_that_differ_in_the_last_digits_of_fp32_still_rank():
    reward = torch.tensor([[1000.0, 1000.0001, 1000.0002, 1000.0005]])
    expected = torch.from_numpy(by_numpy(reward.double().numpy(), Normalize(eps=1e-8))).float()
    torch.testing.assert_close(normalize(reward, Normalize(eps=1e-8)), expected)


def test_rewards_are_summed_by_weight_and_a_missing_one_spoils_the_sum():
    rewards = {"a": torch.tensor([[1.0, NAN]]), "b": torch.tensor([[10.0, 20.0]]), "unused": torch.tensor([[NAN, NAN]])}
    total = combine(rewards, {"a": 2.0, "b": 0.5})
    torch.testing.assert_close(total, torch.tensor([[7.0, NAN]]), equal_nan=True)


TWO = {"a": torch.tensor([[0.0, 1, 2, 5]]), "b": torch.tensor([[30.0, 10, 0, 20]])}
HOW = Normalize(ddof=1, eps=1e-8)


def test_rewards_are_summed_raw_or_as_z_scores_or_kept_apart():
    weights = {"a": 3.0, "b": 1.0}
    of = lambda blend, limit=5.0: advantages(TWO, weights, HOW, Blend(blend), limit)
    torch.testing.assert_close(of("raw_sum")[..., 0], normalize(3 * TWO["a"] + TWO["b"], HOW))
    z = {name: normalize(value, HOW) for name, value in TWO.items()}
    torch.testing.assert_close(of("z_sum")[..., 0], (3 * z["a"] + z["b"]) / 4)
    torch.testing.assert_close(of("separate"), torch.stack([3 * z["a"], z["b"]], -1))
    assert of("separate", 0.5)[..., 0].abs().max() == 1.5  # clamped, then weighted


def test_gdpo_standardises_once_more_over_the_batch():
    rewards = {name: torch.randn(5, 4, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("ab")}
    again = advantages(rewards, {"a": 0.7, "b": 1.4}, HOW, Blend("z_sum", again=True), 50.0)
    assert again.mean().abs() < 1e-6 and again.std().item() == pytest.approx(1, abs=1e-6)
    tied = {name: torch.cat([value, torch.ones(1, 4)]) for name, value in rewards.items()}
    assert advantages(tied, {"a": 0.7, "b": 1.4}, HOW, Blend("z_sum", again=True), 50.0)[-1].eq(0).all()


def test_an_image_below_a_gate_gets_the_least_of_its_group_in_every_reward():
    found = gated(TWO, {"b": 15.0})
    assert found["a"].tolist() == [[0, 0, 0, 5]] and found["b"].tolist() == [[30, 0, 0, 20]]
    assert gated(TWO, {})["a"] is TWO["a"]
    assert gated(TWO, {"b": 10.0})["b"].tolist() == [[30, 10, 0, 20]]  # to reach the bound is enough
    unknown = gated({"a": torch.tensor([[NAN, 1.0, 2.0]])}, {"a": 1.5})["a"]
    assert unknown[0, 0].isnan() and unknown[0, 1:].tolist() == [1, 2]


def test_an_image_whose_gate_is_unknown_is_unknown():
    rewards = {"a": torch.tensor([[1.0, 2.0, 3.0]]), "gate": torch.tensor([[1.0, NAN, 0.0]])}
    kept = gated(rewards, {"gate": 0.5})
    torch.testing.assert_close(kept["a"], torch.tensor([[1.0, NAN, 1.0]]), equal_nan=True)
    # Nor is it the least of its group.
    rewards = {"a": torch.tensor([[-9.0, 2.0, 3.0]]), "gate": torch.tensor([[NAN, 1.0, 0.0]])}
    kept = gated(rewards, {"gate": 0.5})
    torch.testing.assert_close(kept["a"], torch.tensor([[NAN, 2.0, 2.0]]), equal_nan=True)


def test_of_several_gates_each_must_be_known():
    rewards = {"a": torch.tensor([[4.0, 2, 3]]), "x": torch.tensor([[NAN, 1, 1]]), "y": torch.tensor([[1.0, 1, 0]])}
    kept = gated(rewards, {"x": 0.5, "y": 0.5})
    torch.testing.assert_close(kept["a"], torch.tensor([[NAN, 2, 2]]), equal_nan=True)
