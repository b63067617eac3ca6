"""The other members of the family: what each plans, credits and learns."""

import copy
from dataclasses import replace

import pytest
import torch

from afterflow.algorithms.base import Comparisons, Models, Scores
from afterflow.algorithms.branch_grpo import BranchGRPO
from afterflow.algorithms.dance_grpo import DanceGRPO
from afterflow.algorithms.ddpo import DDPO
from afterflow.algorithms.mix_grpo import MixGRPO
from afterflow.algorithms.pref_grpo import PrefGRPO
from afterflow.algorithms.pruning import Pruning
from afterflow.algorithms.windows import SlidingWindow
from afterflow.objectives.advantages import Blend, per_prompt_history
from afterflow.sampling.rollout import sample
from afterflow.sampling.schedules import LinearShift
from afterflow.sampling.seeds import generator
from toy import MLP, credited, learn, prompts, reward, score

NEAR = {"near": 1.0}
TREE = BranchGRPO(NEAR, steps=6, splits=(0, 2))
FAMILY = {
    "ddpo": DDPO(NEAR, steps=5, group=4),
    "ddpo_history": DDPO(NEAR, steps=5, group=4, history=32, min_count=8),
    "dance_grpo": DanceGRPO(NEAR, steps=6, group=4),
    "dance_best_of": DanceGRPO(NEAR, steps=6, group=6, best_of=4),
    "mix_grpo": MixGRPO(NEAR, steps=8, group=4, window=SlidingWindow(width=3)),
    "mix_grpo_flash": MixGRPO(NEAR, steps=16, group=8, window=SlidingWindow(width=3), flash=0.5),
    "branch_grpo": TREE,
    "branch_grpo_mix": replace(TREE, splits=(0, 1), mix=SlidingWindow(width=2, every=1)),
    "branch_grpo_top1": replace(TREE, prune=Pruning("parent_top1")),
    "branch_grpo_extreme": replace(TREE, prune=Pruning("extreme", extreme=1)),
    "branch_grpo_depth": replace(TREE, prune=Pruning(depth=1, every=2)),
    "pref_grpo": PrefGRPO(steps=6, group=4),
    "pref_grpo_no_guard": PrefGRPO(steps=6, group=4, guard=False),
}


def rollout(algorithm, policy, iteration=0, n=4):
    cond, draws = prompts(n), [generator(0, p) for p in range(n)]
    plan = algorithm.plan(iteration, generator(0, iteration))
    noise = torch.randn(n, plan.widths[0], 2, generator=generator(0))
    return sample(policy, algorithm.step_kernel, plan, cond, noise, draws)


def scored(made):
    return replace(score(made.leaves, made.cond.records()), past={"near": torch.full((4, 32), torch.nan)})


def rollout_and_rows(algorithm, policy, iteration=0):
    made = rollout(algorithm, policy, iteration)
    return made, credited(algorithm, made, scored(made))


@pytest.mark.parametrize("algorithm", FAMILY.values(), ids=FAMILY)
def test_a_replay_has_ratio_one_and_the_loss_a_gradient(algorithm):
    policy = MLP()
    made, batch = rollout_and_rows(algorithm, policy)
    loss, metrics = algorithm.loss(Models(policy), batch)
    assert metrics["ratio_mean"] == 1 and metrics["ratio_max"] == 1 and metrics["clip_fraction"] == 0
    loss.backward()
    assert any(p.grad.abs().sum() > 0 for p in policy.parameters())
    assert batch.t.min() > made.plan.times[-2]  # the step onto the image is never trained
    assert made.plan.eta[-1] == 0  # so that the image is the x̂_0 it predicts


@pytest.mark.parametrize("name", FAMILY)
def test_the_reward_rises(base, name):
    looser = dict(eta=0.7) if "dance" in name or "branch" in name else {}
    algorithm = replace(FAMILY[name], clip=0.2, **looser)
    model = copy.deepcopy(base).requires_grad_(True)
    for _ in learn(algorithm, model, 30, lr=1e-3 if "flash" in name else 2e-3, chunk=256):
        pass
    print(f"{name}: {reward(base):.2f} -> {reward(model):.2f}")
    assert reward(model) > reward(base) + 0.3


# DDPO


def test_ddpo_compares_with_the_whole_batch():
    made = rollout(FAMILY["ddpo"], MLP())
    rewards = torch.arange(16.0).view(4, 4)
    batch = credited(FAMILY["ddpo"], made, Scores({"near": rewards}))
    expected = (rewards - rewards.mean()) / rewards.std(correction=0)
    torch.testing.assert_close(batch.advantage.flatten()[:16], expected.flatten())


def test_the_history_of_a_prompt_takes_the_batchs_place_once_it_is_long_enough():
    """spec §7: prompts a, b, c with rewards (1, 3, 6), (2, 5), (4,); buffer 4, two are enough."""
    nan = torch.nan
    reward = torch.tensor([[1.0, 3, 6], [2, 5, nan], [4, nan, nan]])
    found = per_prompt_history(reward, torch.full((3, 4), nan), 4, 2, eps=1e-6)
    expected = [-1.1355494, -0.16222134, 1.29777074, -0.99999933, 0.99999933, 0.29276985]
    torch.testing.assert_close(found[~found.isnan()], torch.tensor(expected))


def test_the_history_keeps_the_newest():
    past, reward = torch.tensor([[torch.nan, 9.0, 1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
    found = per_prompt_history(reward, past, 4, 2, eps=0.0)  # 1, 2, 3, 4
    torch.testing.assert_close(found, (reward - 2.5) / torch.tensor([1.0, 2, 3, 4]).std(correction=0))


# DanceGRPO


def test_each_image_trains_its_own_share_of_the_steps():
    algorithm = replace(FAMILY["dance_grpo"], steps=11, fraction=0.6, shared_noise=False)
    made, batch = rollout_and_rows(algorithm, MLP())
    assert len(batch) == 4 * 4 * 6
    taken = {}
    for row in range(len(batch)):
        k = int((made.plan.times == batch.t[row]).nonzero())
        place = (made.x[k] == batch.x[row]).all(-1).nonzero()[0]
        taken.setdefault(tuple(place.tolist()), set()).add(k)
    assert len(taken) == 16 and all(len(steps) == 6 and max(steps) < 10 for steps in taken.values())
    assert len({frozenset(steps) for steps in taken.values()}) > 5


def test_best_of_n_trains_the_extremes_by_the_statistics_of_all():
    algorithm = replace(FAMILY["dance_best_of"], fraction=1.0, best_of=2)
    made = rollout(algorithm, MLP())
    rewards = torch.tensor([[0.0, 1, 2, 3, 4, 11]] * 4)
    batch = credited(algorithm, made, Scores({"near": rewards}))
    assert batch.mass(torch.arange(len(batch))) == 4 * 2 * 5
    expected = (rewards[0] - rewards[0].mean()) / rewards[0].std()
    torch.testing.assert_close(batch.advantage.unique(), expected[[0, 5]])


def test_a_failed_image_takes_no_place_among_the_extremes():
    algorithm = replace(FAMILY["dance_best_of"], fraction=1.0)  # the two best and the two worst
    made = rollout(algorithm, MLP())
    rewards = torch.tensor([[torch.nan, 9.0, 0.0, torch.nan, 0.0, 0.0]] * 4)
    batch = credited(algorithm, made, Scores({"near": rewards}))
    assert batch.mass(torch.arange(len(batch))) == 4 * 4 * 5


def test_each_reward_has_a_clipped_loss_of_its_own():
    weights = {"near": 1.0, "far": 0.5}
    algorithm = DanceGRPO(weights, steps=5, group=4, fraction=1.0)
    made = rollout(algorithm, MLP())
    near = score(made.leaves, made.cond.records()).rewards["near"]
    batch = credited(algorithm, made, Scores({"near": near, "far": -near}))
    assert batch.advantage.shape[-1] == 2
    torch.testing.assert_close(batch.advantage[..., 1], -0.5 * batch.advantage[..., 0])
    together = replace(algorithm, blend=Blend("z_sum"))
    batch = credited(together, made, Scores({"near": near, "far": near}))
    assert batch.advantage.shape[-1] == 1


# MixGRPO


def test_only_the_window_is_stochastic_and_trained():
    algorithm = MixGRPO(NEAR, group=3)
    for iteration, start in [(0, 0), (30, 1), (520, 19)]:
        plan = algorithm.plan(iteration, generator())
        assert plan.eta.nonzero().flatten().tolist() == list(range(start, start + 4))
        assert torch.equal(plan.train.any(1), plan.eta > 0)
        # All start from one noise, so the steps until the window's first are taken once for all.
        assert plan.evaluations == 25 - (start + 1) * 2 / 3
        assert replace(algorithm, shared_noise=False).plan(iteration, generator()).evaluations == 25


def test_flash_takes_the_published_number_of_evaluations_and_ends_on_the_image():
    """spec §4.3 with a schedule that ends at 0: a mean of 16.6 over starts 0 .. 14, and 8."""
    flash = MixGRPO(NEAR, group=3, flash=0.4, window=SlidingWindow(every=20), shared_noise=False)
    plans = [flash.plan(iteration, generator()) for iteration in range(300)]
    assert sum(plan.evaluations for plan in plans) / 300 == pytest.approx(16.6)
    star = replace(flash, flash=0.2, window=SlidingWindow(order="frozen"))
    plans.append(star.plan(7, generator()))
    assert plans[-1].evaluations == 8
    for plan in plans:
        assert plan.times[-1] == 0 and (plan.times.diff() < 0).all()
        trained = plan.train.any(1).nonzero().flatten().tolist()
        assert list(plan.second_order) == list(range(trained[-1] + 1, plan.steps))
        full = LinearShift().times(25)
        torch.testing.assert_close(plan.times[: trained[-1] + 2], full[: trained[-1] + 2])


# BranchGRPO


def test_the_tree_has_the_published_shape():
    algorithm = BranchGRPO(NEAR)
    plan = algorithm.plan(0, generator())
    assert (plan.widths[0], plan.widths[-1], algorithm.group) == (1, 16, 16)
    assert plan.evaluations == 203 / 16 and plan.split_noise == 4.0
    assert plan.eta.nonzero().flatten().tolist() == list(range(19))


def test_advantages_by_depth_are_the_published_ones():
    """spec §5.2: depth 4, splits {0, 2}, leaf rewards 1, 3, 2, 6."""
    algorithm = BranchGRPO(NEAR, steps=4, splits=(0, 2), path_weight=0.0)
    made = rollout(algorithm, MLP(), n=1)
    scores = Scores({"near": torch.tensor([[1.0, 3, 2, 6]])})
    levels = algorithm.credit(made.plan, made.log_prob, scores)
    for level in levels[:2]:
        torch.testing.assert_close(level.flatten(), torch.tensor([-0.707107, 0.707107]), atol=1e-5, rtol=0)
    for level in levels[2:]:
        expected = torch.tensor([-0.92582, 0.0, -0.46291, 1.38873])
        torch.testing.assert_close(level.flatten(), expected, atol=1e-4, rtol=0)


def test_a_tree_whose_leaves_are_all_as_good_teaches_nothing():
    """Weights of paths do not add up to 1 in the last bit, and a z-score would make much of that."""
    made = rollout(BranchGRPO(NEAR, steps=6, splits=(0, 1, 2)), MLP())
    for value in (1.0, 0.1, 0.0):
        same = Scores({"near": torch.full((4, 8), value)})
        assert len(credited(BranchGRPO(NEAR, steps=6, splits=(0, 1, 2)), made, same)) == 0


def test_siblings_share_a_row_and_its_forward_pass():
    policy = MLP()
    made, batch = rollout_and_rows(TREE, policy)
    parents = sum(made.plan.widths[k] for k in range(5))  # all steps but the last
    assert len(batch) == 4 * parents and batch.count.max() == 2
    calls = []
    velocity = lambda x, t, cond: (calls.append(len(x)), policy(x, t, cond))[1]
    TREE.loss(Models(velocity), batch)
    assert calls == [len(batch)]
    assert batch.mass(torch.arange(len(batch))) == 4 * sum(made.plan.widths[1:6])


def test_steps_before_the_first_split_have_nobody_to_compare_with():
    algorithm = BranchGRPO(NEAR, steps=6, splits=(2,))
    made, batch = rollout_and_rows(algorithm, MLP())
    assert batch.t.max() == made.plan.times[2]


@pytest.mark.parametrize(
    "options, share",
    [
        (dict(prune=Pruning("parent_top1")), 138 / 16),
        (dict(prune=Pruning("extreme", extreme=4)), 138 / 16),
        (dict(prune=Pruning(depth=4)), (218 - 4 * 16) / 16),
        (dict(prune=Pruning(depth=5)), (218 - 5 * 16) / 16),
        (dict(), 218 / 16),
    ],
)
def test_pruning_leaves_the_published_number_of_edges(options, share):
    """Counted with the last step, as the paper does; it is not trained, so its 16 edges (8 where pruned) go off."""
    algorithm = BranchGRPO(NEAR, path_weight=0.0, **options)
    made = rollout(algorithm, MLP(), n=1)
    batch = credited(algorithm, made, Scores({"near": torch.arange(16.0)[None]}))
    last = 0.5 if algorithm.prune.width != "none" else 1.0
    assert batch.mass(torch.arange(len(batch))) / 16 + last == pytest.approx(share)


def test_the_pruned_depths_move_on():
    later = BranchGRPO(NEAR, prune=Pruning(depth=4))
    pruned = lambda algorithm, i: (~algorithm.plan(i, generator()).train.any(1)).nonzero().flatten().tolist()[:-1]
    assert pruned(later, 0) == [9, 10, 11, 12] and pruned(later, 65) == [11, 12, 13, 14]
    assert pruned(later, 30 * 6) == [15, 16, 17, 18] and pruned(later, 30 * 7) == [9, 10, 11, 12]
    earlier = replace(later, prune=Pruning(depth=4, towards="earlier"))
    assert pruned(earlier, 65) == [7, 8, 9, 10] and pruned(earlier, 3000) == [0, 1, 2, 3]


def test_the_mix_variant_is_stochastic_at_splits_and_in_its_window():
    """4-step windows over all their places: a mean of 4.27 trained edges a leaf (published 4.25)."""
    algorithm = BranchGRPO(NEAR, mix=SlidingWindow(every=1, idle=1))
    plans = [algorithm.plan(i, generator()) for i in range(16)]
    assert plans[5].eta.nonzero().flatten().tolist() == [0, 3, 5, 6, 7, 8, 9]
    edges = [sum(w for w, on in zip(p.widths[1:], p.train.any(1)) if on) / 16 for p in plans]
    assert sum(edges) / len(edges) == pytest.approx(4.27, abs=0.15)


# Pref-GRPO


def test_a_group_whose_judge_contradicts_itself_is_not_trained_on():
    algorithm = PrefGRPO(steps=4, group=3, fraction=1.0, min_consistency=0.6)
    made = rollout(algorithm, MLP())
    judged = score(made.leaves, made.cond.records()).judged["win_rate"].clone()
    judged[1] = torch.ones(3, 3).masked_fill(torch.eye(3).bool(), torch.nan)  # always the first
    batch = credited(algorithm, made, Scores({}, {"win_rate": judged}))
    # Groups, images that are not in the middle, steps.
    assert batch.mass(torch.arange(len(batch))) == 3 * 2 * 3
    assert not (batch.x_next[:, None] == made.leaves[1]).all(-1).any()


def test_a_win_rate_may_stand_beside_a_pointwise_reward():
    algorithm = PrefGRPO({"win_rate": 0.5, "near": 0.5}, steps=4, group=4, blend=Blend("z_sum"))
    assert algorithm.requirements.rewards == ("near",)
    _, batch = rollout_and_rows(algorithm, MLP())
    assert batch.mass(torch.arange(len(batch))) == 4 * 4 * 1


def test_small_margins_are_amplified_by_scores_and_not_by_win_rates():
    """A judge that calls small differences ties gives nothing to train; a z-score makes full advantages of them."""
    algorithm = PrefGRPO(steps=4, group=3, fraction=1.0)
    made = rollout(algorithm, MLP())
    ties = torch.full((4, 3, 3), 0.5).masked_fill(torch.eye(3).bool(), torch.nan)
    assert len(credited(algorithm, made, Scores({}, {"win_rate": ties}))) == 0
    dance = DanceGRPO(NEAR, steps=4, group=3, fraction=1.0)
    tiny = Scores({"near": torch.tensor([[0.0, 1e-4, 2e-4]] * 4)})
    assert credited(dance, made, tiny).advantage.abs().max() > 0.99


@pytest.mark.parametrize(
    "make, advice",
    [
        (lambda: DDPO(NEAR, history=8, min_count=16), "2 <= min_count <= history"),
        (lambda: DDPO(NEAR, group=0), "group = 0"),
        (lambda: DDPO(NEAR, blend=Blend("separate")), "take raw_sum"),
        (lambda: DanceGRPO(NEAR, group=1), "at least 2"),
        (lambda: DanceGRPO(NEAR, fraction=0.0), "a share of the 15 steps before the last"),
        (lambda: DanceGRPO(NEAR, steps=2, fraction=0.6), "at least one of them"),
        (lambda: DanceGRPO(NEAR, best_of=3), "an even number"),
        (lambda: DanceGRPO(NEAR, best_of=14), "the group's 12"),
        (lambda: MixGRPO(NEAR, window=SlidingWindow(width=24)), "at most 23 of 25 steps"),
        (lambda: MixGRPO(NEAR, flash=1.0), "0 < flash < 1"),
        (lambda: MixGRPO(NEAR, kernel="cps", eta=1.0), "take eta < 1"),
        (lambda: BranchGRPO(NEAR, splits=()), "rising steps from 0 to 18"),
        (lambda: BranchGRPO(NEAR, splits=(3, 0)), "rising steps"),
        (lambda: BranchGRPO(NEAR, splits=(0, 19)), "before the last"),
        (lambda: BranchGRPO(NEAR, children=1), "at least 2"),
        (lambda: BranchGRPO(NEAR, split_noise=0.0), "positive, or None"),
        (lambda: BranchGRPO(NEAR, prune=Pruning(depth=12)), "at most the 10 steps"),
        (lambda: BranchGRPO(NEAR, splits=(0,), prune=Pruning(depth=19)), "and not all"),
        (lambda: BranchGRPO(NEAR, splits=(5,), prune=Pruning(depth=14)), "and not all"),
        (lambda: BranchGRPO(NEAR, kernel="cps", eta=1.2), "take eta < 1"),
        (lambda: DDPO(NEAR, blend=Blend(gate={"near": 0.5})), "take group >= 2 and history = 0"),
        (lambda: BranchGRPO(NEAR, prune=Pruning("extreme", extreme=9)), "1 to 8 best"),
        (lambda: BranchGRPO(NEAR, prune=Pruning(depth=2), mix=SlidingWindow()), "take one of them"),
        (lambda: BranchGRPO(NEAR, prune=Pruning(every=0)), "at least 1 iteration"),
        (lambda: PrefGRPO({"near": 1.0}), "needs the weight of win_rate"),
        (lambda: PrefGRPO(compare=Comparisons(opponents=3)), "an even number"),
        (lambda: PrefGRPO(compare=Comparisons(opponents=8)), "the 7 others"),
        (lambda: PrefGRPO(min_consistency=1.5), r"in \[0, 1\]"),
        (lambda: PrefGRPO(min_consistency=0.5, compare=Comparisons(both_orders=False)), "shown in both orders"),
        (lambda: Blend("separate", again=True), "raw_sum or z_sum"),
    ],
)
def test_a_bad_option_is_refused_with_advice(make, advice):
    with pytest.raises(ValueError, match=advice):
        make()
