"""DPO: the loss of pairs in closed form, what moves which way, and a toy that comes to prefer the winner."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from afterflow.algorithms.base import Models
from afterflow.algorithms.dpo import DPO
from afterflow.algorithms.sft import SFT
from afterflow.sampling.flow import weighting
from toy import MLP, draw, draws, learn, preferences, reward

STRONG = DPO(beta=20.0, dropout=0.0)


def loss_of(algorithm, policy, reference, batch):
    ((loss, metrics),) = algorithm.regression_losses(Models(policy, reference), batch, draws(len(batch)))
    return loss, metrics


def gradients(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def asked(algorithm, batch):
    """What the policy was asked of winners and of losers: states and times."""
    calls = []

    def field(x, t, cond):
        calls.append((x, t, cond.index.tolist()))
        return torch.zeros_like(x)

    loss_of(algorithm, field, lambda x, t, cond: torch.zeros_like(x), batch)
    return calls


def test_at_the_reference_the_loss_is_log_two():
    model = MLP()
    for beta in (1.0, 5000.0):
        loss, metrics = loss_of(DPO(beta=beta), model, copy.deepcopy(model), preferences(16))
        assert loss.item() == pytest.approx(math.log(2), abs=1e-7)
        assert metrics["preference_accuracy"] == 0.5 and metrics["preference_logit"] == 0


def test_winner_and_loser_have_one_noise_and_one_time():
    batch = preferences(64)
    winner, loser = asked(DPO(dropout=0.3), batch)
    assert torch.equal(winner[1], loser[1]) and winner[2] == loser[2] and -1 in winner[2]
    noises = [
        (x - (1 - t[:, None]) * x0) / t[:, None] for (x, t, _), x0 in zip((winner, loser), (batch.x0, batch.rejected))
    ]
    torch.testing.assert_close(*noises, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["none", "sigma_sqrt", "cosmap"])
def test_the_loss_is_that_of_the_paper_with_means_over_coordinates(name):
    algorithm = DPO(beta=3.0, weighting=name, sft=0.7, shift=2.0)
    batch, policy, reference = preferences(32), MLP(), MLP(seed=1)
    loss, metrics = loss_of(algorithm, policy, reference, batch)
    (x_w, t, _), (x_l, _, _) = asked(algorithm, batch)
    noise = (x_w - (1 - t[:, None]) * batch.x0) / t[:, None]

    def error(model, x, x0):
        return weighting(name, t) * ((model(x, t, batch.cond) - noise + x0) ** 2).sum(1) / 2

    winner, loser = error(policy, x_w, batch.x0), error(policy, x_l, batch.rejected)
    logit = -1.5 * ((winner - error(reference, x_w, batch.x0)) - (loser - error(reference, x_l, batch.rejected)))
    expected = torch.log1p((-logit).exp()).mean() + 0.7 * winner.mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert metrics["preference_accuracy"].item() == pytest.approx((logit > 0).float().mean().item())
    assert metrics["preference_logit"].item() == pytest.approx(logit.mean().item(), rel=1e-3)
    assert metrics["winner_error"].item() == pytest.approx(winner.mean().item(), rel=1e-4)
    assert metrics["loser_error"].item() == pytest.approx(loser.mean().item(), rel=1e-4)


def test_the_gradient_moves_the_winners_error_down_and_the_losers_up():
    """Of the velocities themselves, since a network shares weights between the two."""
    batch, reference = preferences(64), MLP(seed=1)
    velocities = [torch.zeros(64, 2, requires_grad=True) for _ in range(2)]

    def measured():
        left = iter(velocities)
        return loss_of(STRONG, lambda x, t, cond: next(left), reference, batch)

    before = measured()
    before[0].backward()
    with torch.no_grad():
        for v in velocities:
            assert v.grad.abs().amax(1).min() > 0
            v -= 1e-2 * v.grad
    after = measured()
    assert after[0] < before[0]
    assert after[1]["winner_error"] < before[1]["winner_error"]
    assert after[1]["loser_error"] > before[1]["loser_error"]


def test_swapping_winner_and_loser_turns_the_gradient_around_at_the_reference():
    policy = MLP()
    one, other = (
        gradients(loss_of(STRONG, policy, copy.deepcopy(policy), preferences(32, swapped=swapped))[0], policy)
        for swapped in (False, True)
    )
    assert one.abs().max() > 1e-2
    torch.testing.assert_close(one, -other, rtol=1e-4, atol=1e-6)


def test_equal_images_give_no_gradient():
    policy, batch = MLP(), preferences(32)
    batch = replace(batch, rejected=batch.x0)
    assert gradients(loss_of(STRONG, policy, MLP(seed=1), batch)[0], policy).abs().max() < 1e-6


def test_the_reference_has_no_gradient():
    policy, reference = MLP(), MLP(seed=1)
    loss_of(STRONG, policy, reference, preferences(8))[0].backward()
    assert all(p.grad is None for p in reference.parameters()) and all(p.grad is not None for p in policy.parameters())


def test_rows_carry_their_losers():
    batch = replace(preferences(8), seeds=torch.arange(8))
    rows = batch[torch.tensor([5, 2])]
    assert torch.equal(rows.rejected, batch.rejected[[5, 2]]) and torch.equal(rows.x0, batch.x0[[5, 2]])
    assert rows.seeds.tolist() == [5, 2] and SFT().requirements.pairs is False


def test_a_short_training_prefers_the_winner_and_its_reward_rises():
    """Through the real loop: drawn images move to the side of their prompt."""
    model = MLP()
    for _ in learn(SFT(), model, 150, lr=3e-3):
        pass
    reference = copy.deepcopy(model).requires_grad_(False)
    before = reward(model)
    *_, (_, metrics) = learn(STRONG, model, 60, lr=1e-3, reference=reference)
    assert metrics["preference_accuracy"] > 0.7 and metrics["preference_loss"] < 0.6
    print(f"{before:.2f} -> {reward(model):.2f}")
    assert reward(model) > before + 0.1
    left, right = draw(model)[..., 0].mean(1)
    assert right > left + 0.2
