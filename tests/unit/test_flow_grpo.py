import copy
import math
from dataclasses import replace

import pytest
import torch

from afterflow.algorithms.base import Models, Scores
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.ratios import step
from afterflow.objectives.losses import divergence_mask, masked_surrogate
from afterflow.sampling.rollout import sample
from afterflow.sampling.schedules import LinearShift
from afterflow.sampling.seeds import generator
from toy import MEAN, MLP, STD, credited, draw, learn, prompts, reward, score

NEAR = {"near": 1.0}
SMALL = FlowGRPO(NEAR, steps=5, group=4, beta=0.0)


def rollout(algorithm, policy, seed=0):
    cond = prompts(4)
    draws = [generator(seed, p) for p in range(4)]
    plan = algorithm.plan(0, generator(seed))
    noise = torch.randn(4, plan.widths[0], 2, generator=generator(seed))
    return sample(policy, algorithm.step_kernel, plan, cond, noise, draws)


def models_and_rows(algorithm, policy, reference=None):
    models, made = Models(policy, reference), rollout(algorithm, policy)
    return models, credited(algorithm, made, score(made.leaves, made.cond.records()), models)


@pytest.mark.parametrize(
    "options, window, starts",
    [
        (dict(), 9, {0}),  # all but the last of ten
        (dict(steps=4), 3, {0}),
        (dict(window=3), 3, {0, 1, 2}),  # the published Fast: inside the first half
        (dict(window=2, window_range=(3, 9)), 2, {3, 4, 5, 6, 7}),
        (dict(window=3, window_range=(0, 3), steps=6), 3, {0}),
        (dict(window=4, steps=5), 4, {0}),
    ],
)
def test_windows_are_full_seeded_and_everywhere_in_their_range(options, window, starts):
    algorithm = FlowGRPO(NEAR, group=3, **options)
    plan = lambda iteration: algorithm.plan(iteration, generator(0, iteration, "plan"))
    found = set()
    for iteration in range(100):
        first = plan(iteration)
        trained = first.train.any(1).nonzero().flatten().tolist()
        assert trained == list(range(trained[0], trained[0] + window))
        assert torch.equal(first.train, plan(iteration).train)
        assert not first.train[-1].any()
        torch.testing.assert_close(first.eta, 0.7 * first.train.any(1))
        found.add(trained[0])
    assert found == starts


def test_the_plan_follows_the_options():
    algorithm = FlowGRPO(NEAR, steps=6, schedule=LinearShift(2.0), group=5, eta=0.3, shared_noise=True)
    plan = algorithm.plan(0, generator(0))
    torch.testing.assert_close(plan.times, LinearShift(2.0).times(6))
    assert (plan.widths, plan.eta[0].item()) == ((1, *(5,) * 6), pytest.approx(0.3))


@pytest.mark.parametrize(
    "options, advice",
    [
        (dict(group=1), "at least 2"),
        (dict(steps=1), "at least 2"),
        (dict(eta=0.0), "take eta > 0"),
        (dict(kernel="cps", eta=1.2), "take eta < 1"),
        (dict(density="variance_free"), "take the true density"),
        (dict(density="variance_free", kernel="cps", guard=True), "take the true density"),
        (dict(window=3, window_range=(8, 10)), r"windows lie in \[0, 9\)"),
        (dict(window=1, window_range=(-1, 3)), r"windows lie in \[0, 9\)"),
        (dict(window=10), r"windows lie in \[0, 9\)"),
        (dict(window_range=(2, 5)), "give the window its number of steps"),
        (dict(beta=-0.1), r"beta = -0.1.* 0 or more"),
        (dict(clip=0.0), "both must be positive"),
        (dict(max_advantage=0.0), "both must be positive"),
        (dict(divergence=0.0), "divergence = 0.0.* so positive"),
        (dict(divergence=1e-5, guard=True), "set guard = False"),
        (dict(divergence=1e-5, kernel="cps", density="variance_free"), "take the true density"),
        (dict(window=0), "between 1 and the 5 steps"),
        (dict(window=4, window_range=(2, 5)), "between 1 and the 3 steps"),
    ],
)
def test_a_bad_option_is_refused_with_advice(options, advice):
    with pytest.raises(ValueError, match=advice):
        FlowGRPO(NEAR, **options)


def test_every_step_of_an_image_gets_the_images_advantage():
    made = rollout(SMALL, MLP())
    batch = credited(SMALL, made, Scores({"near": torch.tensor([[1.0, 2, 4, 5]] * 4)}))
    expected = torch.tensor([-2.0, -1, 1, 2]) / (2.5**0.5 + 1e-4)
    torch.testing.assert_close(batch.advantage.flatten(), expected.repeat(4 * 4))  # steps, prompts
    torch.testing.assert_close(batch.x_next[-16:], made.x[4].flatten(0, 1))


def test_advantages_are_clamped():
    algorithm = FlowGRPO(NEAR, steps=5, group=4, max_advantage=1.2)
    batch = credited(algorithm, rollout(algorithm, MLP()), Scores({"near": torch.tensor([[0.0, 0, 0, 9]] * 4)}))
    assert batch.advantage.max() == pytest.approx(1.2)
    assert batch.advantage.min() == pytest.approx(-0.577, abs=1e-3)


@pytest.mark.parametrize("beta, rows", [(0.0, 0), (0.1, 64)])
def test_equal_rewards_teach_nothing_but_the_reference_still_pulls(beta, rows):
    algorithm = FlowGRPO(NEAR, steps=5, group=4, beta=beta)
    batch = credited(algorithm, rollout(algorithm, MLP()), Scores({"near": torch.ones(4, 4)}))
    assert len(batch) == rows


def test_an_image_without_a_reward_is_not_trained_on():
    reward = torch.arange(16.0).view(4, 4)
    reward[2, 1] = torch.nan
    made = rollout(SMALL, MLP())
    batch = credited(SMALL, made, Scores({"near": reward}))
    assert len(batch) == 4 * 15
    assert not (batch.x_next == made.leaves[2, 1]).all(-1).any()
    unknown = made.x[1][2, 1]
    assert not (batch.x_next == unknown).all(-1).any()


def gradients(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def log_probs(algorithm, policy, batch):
    """(M,) by torch.distributions."""
    p = step(policy, algorithm.step_kernel, batch)
    return torch.distributions.Normal(p.mean, p.std).log_prob(batch.x_next).mean(1)


VARIANTS = {
    "flow_sde": (dict(), lambda std, dt: 1),
    "cps": (dict(kernel="cps"), lambda std, dt: 1),
    "dance_sde": (dict(kernel="dance_sde"), lambda std, dt: 1),
    "guard": (dict(guard=True), lambda std, dt: std / dt),
    "variance_free": (dict(kernel="cps", density="variance_free"), lambda std, dt: 2 * std**2),
}


@pytest.mark.parametrize("options, factor", VARIANTS.values(), ids=VARIANTS)
def test_at_ratio_one_the_gradient_is_the_policy_gradient(options, factor):
    """-mean A ∇log π, each step times what the variant multiplies its log-ratio by."""
    algorithm, policy = FlowGRPO(NEAR, steps=5, group=4, beta=0.0, **options), MLP()
    models, batch = models_and_rows(algorithm, policy)
    loss, metrics = algorithm.loss(models, batch)
    assert metrics["ratio_mean"] == 1 and metrics["ratio_max"] == 1 and metrics["clip_fraction"] == 0
    std = step(policy, algorithm.step_kernel, batch).std.flatten().detach()
    each = factor(std, batch.t - batch.s) * batch.advantage.flatten() * log_probs(algorithm, policy, batch)
    torch.testing.assert_close(gradients(loss, policy), gradients(-each.mean(), policy), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options, factor", VARIANTS.values(), ids=VARIANTS)
def test_away_from_the_old_policy_the_ratio_is_that_of_the_variant(options, factor):
    algorithm, policy = FlowGRPO(NEAR, steps=5, group=4, beta=0.0, **options), MLP()
    _, batch = models_and_rows(algorithm, policy)
    other = MLP(seed=1)
    for row in (0, 7, 20):
        one = batch[torch.tensor([row])]
        p, old = step(other, algorithm.step_kernel, one), step(policy, algorithm.step_kernel, one)
        true = log_probs(algorithm, other, one) - log_probs(algorithm, policy, one)
        if algorithm.guard:
            true = true + ((p.mean - old.mean) ** 2).mean(1) / (2 * p.std[:, 0] ** 2)
            expected = (true * p.std[:, 0]).exp()
        else:
            expected = (true * factor(p.std[:, 0], 1)).exp()
        _, metrics = algorithm.loss(Models(other), one)
        torch.testing.assert_close(metrics["ratio_mean"], expected[0].detach(), rtol=1e-4, atol=1e-6)
        assert metrics["clip_fraction"] == 1


def test_steps_that_left_the_clip_on_their_good_side_have_no_gradient():
    old, policy = MLP(), MLP(seed=1)
    _, batch = models_and_rows(SMALL, old)
    ratio = (log_probs(SMALL, policy, batch) - log_probs(SMALL, old, batch)).exp()
    done = (ratio - 1) * batch.advantage.flatten() > 0  # all ratios are far outside of 1 ± 1e-4
    assert 10 < done.sum() < len(batch) - 10
    assert gradients(SMALL.loss(Models(policy), batch[done.nonzero()[:, 0]])[0], policy).abs().max() == 0
    rest = batch[(~done).nonzero()[:, 0]]
    expected = -(ratio * batch.advantage.flatten())[~done].mean()
    found = SMALL.loss(Models(policy), rest)[0]
    torch.testing.assert_close(gradients(found, policy), gradients(expected, policy), rtol=1e-4, atol=1e-6)


# Flow-DPPO

MASKED = FlowGRPO(NEAR, steps=5, group=4, beta=0.0, divergence=1e-3)


@pytest.mark.parametrize("above", [True, False])
@pytest.mark.parametrize(
    "advantage, log_ratio, leaves", [(1.0, 0.2, True), (1.0, -0.2, False), (-1.0, 0.2, False), (-1.0, -0.2, True)]
)
def test_a_step_is_masked_where_it_is_far_and_would_go_further(advantage, log_ratio, leaves, above):
    log_ratio, divergence = torch.tensor(log_ratio, requires_grad=True), torch.tensor(2e-3 if above else 5e-4)
    masked = divergence_mask(log_ratio, torch.tensor(advantage), divergence, 1e-3)
    assert bool(masked) == (leaves and above)
    loss = masked_surrogate(log_ratio, torch.tensor(advantage), masked)
    loss.backward()
    assert loss.item() == pytest.approx(-advantage * log_ratio.exp().item())
    expected = 0.0 if leaves and above else loss.item()  # of -Aρ in log ρ
    assert log_ratio.grad is not None and log_ratio.grad.item() == pytest.approx(expected, abs=0)


def test_a_masked_step_has_no_gradient_where_its_ratio_overflows():
    log_ratio = torch.tensor([200.0, 0.1], requires_grad=True)
    masked_surrogate(log_ratio, torch.ones(2), torch.tensor([True, False])).sum().backward()
    torch.testing.assert_close(log_ratio.grad, torch.tensor([0.0, -math.exp(0.1)]))


def test_masked_rows_have_no_gradient_and_the_others_have_that_of_minus_a_rho():
    """The divergence is torch's KL to the policy that sampled, a mean over coordinates."""
    old, policy = MLP(), MLP(seed=1)
    _, batch = models_and_rows(MASKED, old)
    normal = lambda model: (lambda g: torch.distributions.Normal(g.mean, g.std.expand_as(g.mean)))(
        step(model, MASKED.step_kernel, batch)
    )
    divergence = torch.distributions.kl_divergence(normal(policy), normal(old)).mean(1).detach()
    limit = divergence.median().item()
    algorithm = replace(MASKED, divergence=limit)
    ratio = (log_probs(algorithm, policy, batch) - log_probs(algorithm, old, batch)).exp()
    masked = (divergence > limit) & ((ratio - 1) * batch.advantage.flatten() > 0)
    assert 5 < masked.sum() < len(batch) / 2
    loss, metrics = algorithm.loss(Models(policy), batch)
    assert metrics["masked_fraction"].item() == pytest.approx(masked.float().mean().item())
    assert metrics["divergence"].item() == pytest.approx(divergence.mean().item(), rel=1e-4)
    assert "clip_fraction" not in metrics
    loss_of = lambda rows: algorithm.loss(Models(policy), batch[rows.nonzero()[:, 0]])[0]
    assert gradients(loss_of(masked), policy).abs().max() == 0
    plain = -(ratio * batch.advantage.flatten())
    torch.testing.assert_close(loss, plain.mean(), rtol=1e-4, atol=1e-6)
    expected = gradients(plain[~masked].sum() / len(batch), policy)
    torch.testing.assert_close(gradients(loss, policy), expected, rtol=1e-4, atol=1e-6)


def test_with_room_for_every_step_nothing_is_masked():
    old, policy = MLP(), MLP(seed=1)
    _, batch = models_and_rows(MASKED, old)
    loss, metrics = replace(MASKED, divergence=1e6).loss(Models(policy), batch)
    ratio = (log_probs(MASKED, policy, batch) - log_probs(MASKED, old, batch)).exp()
    assert metrics["masked_fraction"] == 0
    torch.testing.assert_close(
        gradients(loss, policy), gradients(-(ratio * batch.advantage.flatten()).mean(), policy), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("kl_scale", ["exact", "legacy"])
def test_the_kl_is_that_of_torch_and_the_legacy_one_is_short_of_a_step(kl_scale):
    algorithm = FlowGRPO(NEAR, steps=5, group=4, beta=0.3, kl_scale=kl_scale)
    policy, reference = MLP(), MLP(seed=1)
    models, batch = models_and_rows(algorithm, policy, reference)
    p, q = step(policy, algorithm.step_kernel, batch), step(reference, algorithm.step_kernel, batch)
    normal = lambda g: torch.distributions.Normal(g.mean, g.std.expand_as(g.mean))
    kl = torch.distributions.kl_divergence(normal(p), normal(q)).mean(1)
    if kl_scale == "legacy":
        kl = kl * (batch.t - batch.s)
    loss, metrics = algorithm.loss(models, batch)
    torch.testing.assert_close(metrics["kl"], kl.mean().detach())
    torch.testing.assert_close(loss, metrics["policy_loss"] + 0.3 * kl.mean())


def test_with_equal_rewards_beta_leads_back_to_the_reference():
    reference = MLP(seed=0).requires_grad_(False)
    policy = copy.deepcopy(reference).requires_grad_(True)
    with torch.no_grad():
        policy.net[4].bias += torch.tensor([0.5, -0.5])
    algorithm = FlowGRPO(NEAR, steps=5, group=4, beta=1.0)
    flat = lambda leaves, *asked: Scores({"near": torch.ones(leaves.shape[:2])})
    kls = [m["kl"] for _, m in learn(algorithm, policy, 30, lr=1e-2, reference=reference, score=flat)]
    assert kls[-1] < kls[0] / 20


def test_sft_learns_the_data(base):
    leaves = draw(base)
    torch.testing.assert_close(leaves.mean((0, 1)), torch.full((2,), MEAN), atol=0.15, rtol=0)
    torch.testing.assert_close(leaves.std((0, 1)), torch.full((2,), STD), atol=0.15, rtol=0)


TOYS = {
    "plain": dict(clip=0.2, beta=0.0),
    "fast": dict(clip=0.2, beta=0.0, window=3),
    "cps": dict(kernel="cps", schedule=LinearShift(), clip=0.2, beta=0.0),
    "variance_free": dict(kernel="cps", density="variance_free", clip=0.05, beta=0.0),
    "guard": dict(guard=True, clip=0.1, beta=0.0),
    "divergence": dict(divergence=1e-2, beta=0.0),
    "kl": dict(clip=0.2, beta=0.01),
}


@pytest.mark.parametrize("options", TOYS.values(), ids=TOYS)
def test_the_reward_rises(base, options):
    model = copy.deepcopy(base).requires_grad_(True)
    algorithm = FlowGRPO(NEAR, steps=6, group=16, **options)
    for _ in learn(algorithm, model, 40, lr=2e-3, reference=base, chunk=256):
        pass
    print(f"{reward(base):.2f} -> {reward(model):.2f}")
    assert reward(model) > reward(base) + 0.5


def test_beta_keeps_the_policy_near_the_reference(base):
    final = {}
    for beta in (1e-6, 1.0):
        model = copy.deepcopy(base).requires_grad_(True)
        algorithm = FlowGRPO(NEAR, steps=6, group=16, clip=0.2, beta=beta)
        *_, (_, final[beta]) = learn(algorithm, model, 15, lr=2e-3, reference=base, chunk=256)
    assert final[1.0]["kl"] < final[1e-6]["kl"] / 3
