"""Credit and losses of every method, by another way to the number: loops over images, numpy and torch.distributions."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from afterflow.algorithms.base import Comparisons, Models, Scores
from afterflow.algorithms.branch_grpo import BranchGRPO
from afterflow.algorithms.dance_grpo import DanceGRPO
from afterflow.algorithms.ddpo import DDPO
from afterflow.algorithms.dpo import DPO
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.flow_opd import FlowOPD
from afterflow.algorithms.mix_grpo import MixGRPO
from afterflow.algorithms.policy_gradient import random_steps
from afterflow.algorithms.pref_grpo import PrefGRPO
from afterflow.algorithms.pruning import Pruning
from afterflow.algorithms.ratios import step
from afterflow.algorithms.sft import SFT
from afterflow.algorithms.soar import SOAR
from afterflow.algorithms.windows import SlidingWindow
from afterflow.objectives.advantages import Blend, Normalize
from afterflow.sampling.rollout import sample
from afterflow.sampling.schedules import DynamicShift, LinearShift, SD3Grid
from afterflow.sampling.seeds import generator
from afterflow.system.errors import ConfigError
from afterflow.train.local_rows import credited as selected_credit
from toy import MLP, credited, prompts

NAN = torch.nan
TWO = {"near": 0.5, "far": 1.5}
WIN = {"win_rate": 0.4, "near": 0.6}


def rollout(algorithm, policy, n=4):
    plan = algorithm.plan(0, generator("plan"))
    noise = torch.randn(n, plan.widths[0], 2, generator=generator("noise"))
    return sample(policy, algorithm.step_kernel, plan, prompts(n), noise, [generator(p) for p in range(n)])


def scores_of(n, group, seed=0):
    """Two rewards, and verdicts of a judge that contradicts itself now and then."""
    draw = generator("scores", seed)
    rewards = {"near": torch.randn(n, group, generator=draw), "far": 3 * torch.randn(n, group, generator=draw) - 5}
    judged = torch.randint(0, 3, (n, group, group), generator=draw) / 2.0
    return Scores(rewards, {"win_rate": judged.masked_fill(torch.eye(group, dtype=torch.bool), NAN)})


def z(values, ddof=1, eps=1e-8):
    """Every row of (P, G) in its own standard deviations."""
    values = np.asarray(values, np.float64)
    return (values - values.mean(1, keepdims=True)) / (values.std(1, ddof=ddof, keepdims=True) + eps)


def advantages_of(algorithm, scores, n=4):
    """Of each step, (P, G, R); the shares of steps are all of them."""
    made = rollout(algorithm, MLP(), n)
    selected = algorithm.select(made.plan, n, generator("credit"))
    return made, selected_credit(algorithm, made.plan, made.log_prob, scores, selected)


def wins(judged):
    """Share of its comparisons that each image wins, by counting."""
    judged = judged.numpy()
    n, group = judged.shape[:2]
    rates = np.zeros((n, group))
    for p in range(n):
        for i in range(group):
            met = [(judged[p, i, j] + 1 - judged[p, j, i]) / 2 for j in range(group) if j != i]
            rates[p, i] = sum(met) / len(met)
    return rates


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("weights", [WIN, {"win_rate": 1.0}, {"win_rate": 2.0, "far": 1.0}])
def test_pref_grpos_credit_is_the_mean_of_z_scores_standardised_once_more(weights, again):
    algorithm = PrefGRPO(weights, steps=4, group=6, fraction=1.0, blend=Blend("z_sum", again=again))
    scores = scores_of(4, 6)
    values = {
        **{name: value.numpy() for name, value in scores.rewards.items()},
        "win_rate": wins(scores.judged["win_rate"]),
    }
    expected = sum(weight * z(values[name]) for name, weight in weights.items()) / sum(weights.values())
    if again:
        expected = (expected - expected.mean()) / (expected.std(ddof=1) + 1e-8)
    _, levels = advantages_of(algorithm, scores)
    for level in levels[:3]:
        np.testing.assert_allclose(level[..., 0], expected, atol=1e-5)


def test_pref_grpo_trains_the_published_share_of_each_images_steps():
    made, levels = advantages_of(PrefGRPO(steps=11, group=6), scores_of(4, 6))
    chosen = torch.stack([level.isfinite().all(-1) for level in levels[:10]])
    assert chosen.sum(0).eq(6).all() and len({tuple(image) for image in chosen.flatten(1).T.tolist()}) > 12
    assert made.plan.train[:10].all() and not made.plan.train[10].any()
    assert made.plan.widths == (1, *(6,) * 11)  # one noise for all images
    assert made.plan.eta.tolist() == pytest.approx([0.7] * 10 + [0])


def agreeing(share):
    """Verdicts (1, 5, 5) of which this share of the ten pairs is the same in both orders."""
    judged = torch.full((5, 5), NAN)
    for n, (i, j) in enumerate(combinations(range(5), 2)):
        judged[i, j] = 1.0
        judged[j, i] = 0.0 if n < 10 * share else 1.0
    return judged


@pytest.mark.parametrize("least, trained", [(0.0, 4), (0.6, 3), (0.61, 2), (1.0, 1)])
def test_a_group_is_trained_from_the_stated_consistency_on(least, trained):
    judged = torch.stack([agreeing(share) for share in (0.2, 0.6, 0.9, 1.0)])
    _, levels = advantages_of(
        PrefGRPO(steps=3, group=5, fraction=1.0, min_consistency=least), Scores({}, {"win_rate": judged})
    )
    assert levels[0].isfinite().all((1, 2)).tolist() == [False] * (4 - trained) + [True] * trained


@pytest.mark.parametrize("limit", [0.8, 5.0])
def test_credit_is_clamped_on_both_sides(limit):
    rewards = torch.tensor([[0.0, 0, 0, 0, 9], [0, 0, 0, 0, -9]])
    one = Scores({"near": rewards})
    raw = Normalize(ddof=1, eps=1e-8)
    for algorithm, expected in [
        (FlowGRPO({"near": 1.0}, steps=3, group=5, max_advantage=limit, normalize=raw), z(rewards)),
        (MixGRPO({"near": 2.0}, steps=4, group=5, max_advantage=limit, window=SlidingWindow(width=1)), z(rewards)),
        (DDPO({"near": 1.0}, steps=3, group=5, max_advantage=limit), z(rewards.view(1, -1), 0).reshape(2, 5)),
    ]:
        _, levels = advantages_of(algorithm, one, 2)
        np.testing.assert_allclose(levels[0][..., 0], expected.clip(-limit, limit), atol=1e-5)
        assert limit == 5.0 or {-limit, limit} <= set(np.round(levels[0].flatten().tolist(), 5))
    _, levels = advantages_of(DanceGRPO({"near": 3.0}, steps=3, group=5, max_advantage=limit, fraction=1.0), one, 2)
    np.testing.assert_allclose(levels[0][..., 0], 3 * z(rewards).clip(-limit, limit), atol=1e-5)


@pytest.mark.parametrize("how", ["raw_sum", "z_sum", "separate"])
def test_several_rewards_become_advantages_as_the_papers_say(how):
    scores, limit = scores_of(4, 6), 5.0
    near, far = (scores.rewards[name].numpy() for name in TWO)
    expected = {
        "raw_sum": z(0.5 * near + 1.5 * far)[..., None],
        "z_sum": ((0.5 * z(near) + 1.5 * z(far)) / 2.0)[..., None],
        "separate": np.stack([0.5 * z(near), 1.5 * z(far)], -1),
    }[how]
    for method, options in [(DanceGRPO, dict(fraction=1.0)), (MixGRPO, dict(window=SlidingWindow(width=2)))]:
        _, levels = advantages_of(
            method(TWO, steps=5, group=6, blend=Blend(how), max_advantage=limit, **options), scores
        )
        np.testing.assert_allclose(levels[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    "algorithm",
    [
        DDPO({"near": 1.0}, steps=3, group=4, blend=Blend(gate={"far": 1.0, "near": 0.0})),
        FlowGRPO({"near": 1.0}, steps=3, group=4, blend=Blend(gate={"far": 1.0, "near": 0.0})),
        BranchGRPO({"near": 1.0}, steps=3, splits=(0, 1), blend=Blend(gate={"far": 1.0, "near": 0.0})),
    ],
    ids=["ddpo", "flow_grpo", "branch_grpo"],
)
def test_an_image_must_reach_every_gate_and_reaching_is_enough(algorithm):
    """The second fails one gate, the third the other; the fourth is at both bounds."""
    assert set(algorithm.requirements.rewards) == {"near", "far"}
    rewards = {"near": torch.tensor([[3.0, 2, -1, 0]]), "far": torch.tensor([[2.0, 0.9, 5, 1]])}
    _, levels = advantages_of(algorithm, Scores(rewards), 1)
    found = levels[1][0, :, 0]
    assert found.argsort().tolist()[-1] == 0 and found[1] == found[2] == found.min() and found[3] > found[1]


# BranchGRPO


@pytest.mark.parametrize("beta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("splits", [(0, 2), (1, 2), (0, 1)])
def test_a_nodes_reward_is_that_of_its_leaves_weighted_by_their_paths(beta, splits):
    algorithm = BranchGRPO({"near": 1.0}, steps=5, splits=splits, children=3, path_weight=beta)
    scores = Scores({"near": scores_of(2, 9).rewards["near"]})
    made, levels = advantages_of(algorithm, scores, 2)
    for k, width in enumerate(made.plan.widths[1:]):
        values = np.zeros((2, width))
        for p in range(2):
            for node in range(width):
                leaves = [leaf for leaf in range(9) if leaf // (9 // width) == node]
                path = [
                    sum(made.log_prob[j][p, leaf // (9 // made.plan.widths[j + 1])].item() for j in range(k + 1, 5))
                    for leaf in leaves
                ]
                weight = np.exp(beta * np.array(path))
                values[p, node] = (weight * scores.rewards["near"][p, leaves].numpy()).sum() / weight.sum()
        expected = z(values) if width > 1 else np.zeros((2, 1))
        np.testing.assert_allclose(levels[k][..., 0], expected, atol=2e-4)


@pytest.mark.parametrize("width, kept", [("none", range(4)), ("parent_top1", [1, 3]), ("extreme", [0, 1])])
def test_width_pruning_begins_after_the_last_split(width, kept):
    algorithm = BranchGRPO({"near": 1.0}, steps=4, splits=(0, 1), prune=Pruning(width, extreme=1))
    _, levels = advantages_of(algorithm, Scores({"near": torch.tensor([[1.0, 9, 2, 3]])}), 1)
    assert levels[1][0, :, 0].isfinite().all()  # the split's own edges
    for level in levels[2:]:
        assert level[0, :, 0].isfinite().nonzero().flatten().tolist() == list(kept)


def test_depth_pruning_walks_round_and_back():
    prune = Pruning(depth=2, every=3)
    steps = lambda p, iteration: list(p.steps(iteration, 10, (1, 4)))
    assert [steps(prune, i)[0] for i in range(0, 15, 3)] == [4, 5, 6, 7, 4]
    assert steps(prune, 2) == [4, 5]
    earlier = replace(prune, towards="earlier")
    assert [steps(earlier, i)[0] for i in range(0, 15, 3)] == [4, 3, 2, 1, 1]


# Losses

LOSSES = {
    "ddpo": (DDPO(TWO, steps=4, group=4, clip=0.05), "true"),
    "flow_grpo": (FlowGRPO(TWO, steps=4, group=4, clip=0.05, beta=0.0), "true"),
    "guard": (FlowGRPO(TWO, steps=4, group=4, clip=0.05, beta=0.0, guard=True), "guard"),
    "dance_grpo": (DanceGRPO(TWO, steps=4, group=4, clip=0.05, fraction=1.0), "true"),
    "mix_grpo": (MixGRPO(TWO, steps=5, group=4, clip=0.05, window=SlidingWindow(width=2)), "true"),
    "branch_grpo": (BranchGRPO(TWO, steps=4, splits=(0, 1), clip=0.05), "true"),
    "pref_grpo": (PrefGRPO(WIN, steps=4, group=4, clip=0.05), "guard"),
    "pref_grpo_plain": (PrefGRPO(WIN, steps=4, group=4, clip=0.05, guard=False), "true"),
}


@pytest.mark.parametrize("name", [name for name, (_, kind) in LOSSES.items() if kind != "guard"])
def test_with_a_divergence_the_loss_is_the_masked_one_in_every_method(name):
    """Summed over rewards and averaged over children, with the divergence of each child's parent."""
    algorithm = replace(LOSSES[name][0], divergence=1e-4)
    old, policy = MLP(), MLP(seed=1)
    batch = credited(algorithm, rollout(algorithm, old), scores_of(4, 4))
    loss, metrics = algorithm.loss(Models(policy), batch)
    p, q = (step(model, algorithm.step_kernel, batch) for model in (policy, old))
    divergence = ((p.mean - q.mean) ** 2 / (2 * p.std**2)).mean(1)[batch.parent]
    new, before = (
        torch.distributions.Normal(g.mean[batch.parent], g.std[batch.parent]).log_prob(batch.x_next).mean(1)
        for g in (p, q)
    )
    log_ratio = new - before
    stopped = (divergence[:, None] > 1e-4) & (log_ratio[:, None] * batch.advantage > 0)
    assert 0 < stopped.float().mean() < 1
    assert metrics["masked_fraction"].item() == pytest.approx(stopped.float().mean().item())
    surrogate = -log_ratio[:, None].exp() * batch.advantage
    assert loss.item() == pytest.approx(surrogate.sum(-1).mean().item(), rel=1e-4)
    left = (surrogate * ~stopped).sum(-1).mean()
    found, expected = (torch.autograd.grad(part, list(policy.parameters()), retain_graph=True) for part in (loss, left))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_the_clipped_one_of_every_child_and_reward(name):
    """Away from the old policy, where clips act on both sides, summed over rewards and averaged over children."""
    algorithm, kind = LOSSES[name]
    old, policy = MLP(), MLP(seed=1)
    with torch.no_grad():  # a little away, so that some ratios are inside of the clip
        for p, q in zip(policy.parameters(), old.parameters()):
            p.copy_(torch.lerp(q, p, 0.3))
    batch = credited(algorithm, rollout(algorithm, old), scores_of(4, 4))
    loss, metrics = algorithm.loss(Models(policy), batch)
    total, ratios, child = 0.0, [], 0
    for row in range(len(batch)):
        one = batch[torch.tensor([row])]
        p, q = step(policy, algorithm.step_kernel, one), step(old, algorithm.step_kernel, one)
        for x, advantage in zip(one.x_next, one.advantage):
            if kind == "guard":
                noise = (x - q.mean) / q.std
                ratio, weight = (noise * (p.mean - q.mean)).mean().exp().item(), 1 / (one.t - one.s).item()
            else:
                new, before = (torch.distributions.Normal(*g).log_prob(x).mean() for g in (p, q))
                ratio, weight = (new - before).exp().item(), 1.0
            for a in advantage.tolist():
                total += -weight * min(ratio * a, min(max(ratio, 0.95), 1.05) * a)
            ratios.append(ratio)
            child += 1
    assert loss.item() == pytest.approx(total / child, rel=2e-3, abs=1e-5)
    assert metrics["policy_loss"].item() == pytest.approx(loss.item())
    assert metrics["ratio_mean"].item() == pytest.approx(np.mean(ratios), rel=1e-4)
    assert metrics["ratio_max"].item() == pytest.approx(max(ratios), rel=1e-4)
    assert metrics["clip_fraction"].item() == pytest.approx(np.mean(np.abs(np.array(ratios) - 1) > 0.05), abs=1e-6)
    assert not metrics["policy_loss"].requires_grad and not metrics["ratio_mean"].requires_grad


# Settings

NORMAL = Normalize("prompt", "prompt", 1, 1e-8)
SEPARATE, SUM, Z = Blend("separate"), Blend("raw_sum"), Blend("z_sum")
LINEAR, GRID = LinearShift(3.0), SD3Grid(3.0)
CLIPS = dict(clip=1e-4, max_advantage=5.0)
PUBLISHED = [
    (FlowGRPO(), dict(CLIPS, steps=10, schedule=GRID, kernel="flow_sde", eta=0.7, group=24, beta=0.04, blend=SUM)),
    (FlowGRPO(), dict(shared_noise=False, window=None, guard=False, normalize=Normalize("prompt", "prompt", 0, 1e-4))),
    (DanceGRPO(), dict(CLIPS, steps=16, schedule=LINEAR, kernel="dance_sde", eta=0.3, group=12, blend=SEPARATE)),
    (DanceGRPO(), dict(fraction=0.6, best_of=None, shared_noise=True, normalize=NORMAL)),
    (MixGRPO(), dict(CLIPS, steps=25, schedule=LINEAR, kernel="flow_sde", eta=0.7, group=12, blend=Z, flash=None)),
    (
        MixGRPO(),
        dict(shared_noise=True, normalize=NORMAL, window=SlidingWindow(4, 25, 1, "progressive", False, 2, 0.1, 13)),
    ),
    (
        BranchGRPO(),
        dict(CLIPS, steps=20, schedule=LINEAR, kernel="dance_sde", eta=0.3, children=2, splits=(0, 3, 6, 9)),
    ),
    (BranchGRPO(), dict(split_noise=4.0, path_weight=1.0, normalize=NORMAL, prune=Pruning("none", 4, 0, 30, "later"))),
    (PrefGRPO(), dict(CLIPS, steps=25, schedule=LINEAR, kernel="flow_sde", eta=0.7, group=8, fraction=0.6, guard=True)),
    (PrefGRPO(), dict(weights={"win_rate": 1.0}, compare=Comparisons(True, None), blend=Blend("z_sum", True))),
    (PrefGRPO(), dict(min_consistency=0.0, shared_noise=True, normalize=NORMAL)),
    (DDPO(), dict(CLIPS, steps=10, schedule=GRID, kernel="flow_sde", eta=0.7, group=1, history=0, min_count=16)),
    (FlowOPD(), dict(steps=10, schedule=GRID, eta=0.7, group=16, beta=0.04, clip=1e-4, self_normalise=False)),
    (SOAR(), dict(steps=40, points=6, correction=1.0, rollout_guidance=4.5, min_time=0.02, paths=1, eta=0.5)),
    (DPO(), dict(beta=2000.0, sft=0.0, shift=3.0, density="logit_normal", weighting="none", dropout=0.0)),
    (SOAR(), dict(shift=3.0, density="logit_normal", weighting="none", dropout=0.0, kernel="flow_sde")),
    (SFT(), dict(shift=3.0, density="logit_normal", weighting="none", dropout=0.0, num_noises=1)),
]


@pytest.mark.parametrize("algorithm, settings", PUBLISHED)
def test_defaults_are_the_published_settings(algorithm, settings):
    """spec §2 to §7 and SOAR §1.3; min_time and eta of what is unpublished are ours, as the pages say."""
    assert {name: getattr(algorithm, name) for name in settings} == settings


WINDOW = dict(steps=8, group=4)
EDGES = [
    (FlowGRPO, "group", [2], [1]),
    (FlowGRPO, "steps", [2], [1]),
    (FlowGRPO, "eta", [1e-3], [0.0]),
    (FlowGRPO, "beta", [0.0], [-1e-9]),
    (FlowGRPO, "clip", [1e-9], [0.0]),
    (FlowGRPO, "max_advantage", [1e-9], [0.0]),
    (FlowGRPO, "window", [1, 9], [0, 10]),
    (
        lambda window_range: FlowGRPO(window=2, window_range=window_range),
        "window_range",
        [(0, 9), (7, 9), (0, 2)],
        [(0, 10), (-1, 4), (3, 3), (8, 9)],
    ),
    (lambda eta: DDPO(kernel="cps", eta=eta), "eta", [0.999], [1.0]),
    (lambda eta: SOAR(kernel="cps", eta=eta, paths=2), "eta", [0.999, 1e-3], [1.0, 0.0]),
    (DDPO, "group", [1], [0]),
    (lambda history: DDPO(history=history, min_count=4), "history", [0, 4], [3]),
    (lambda min_count: DDPO(history=8, min_count=min_count), "min_count", [2, 8], [1, 9]),
    (lambda group: DDPO(group=group, blend=Blend(gate={"a": 1.0})), "group", [2], [1]),
    (lambda history: DDPO(group=2, history=history, min_count=2, blend=Blend(gate={"a": 1.0})), "history", [0], [2]),
    (lambda blend: DDPO(blend=blend), "blend", [SUM], [Z, Blend("raw_sum", True), SEPARATE]),
    (lambda fraction: DanceGRPO(steps=11, fraction=fraction), "fraction", [1.0, 0.1], [1.01, 0.09, 0.0]),
    (lambda best_of: DanceGRPO(group=6, best_of=best_of), "best_of", [2, 6, None], [0, 3, 8]),
    (MixGRPO, "flash", [None, 1e-3, 0.999], [0.0, 1.0]),
    (lambda width: MixGRPO(steps=8, window=SlidingWindow(width=width)), "width", [1, 6], [0, 7]),
    (lambda idle: MixGRPO(steps=8, window=SlidingWindow(width=1, idle=idle)), "idle", [1, 7], [0, 8]),
    (SlidingWindow, "every", [1], [0]),
    (DynamicShift, "terminal", [0.0, 0.999], [1.0, -1e-9]),
    (DynamicShift, "tokens", [1], [0]),
    (LinearShift, "shift", [1e-6], [0.0]),
    (SlidingWindow, "stride", [1], [0]),
    (SlidingWindow, "decay_rate", [0.0], [-1e-9]),
    (SlidingWindow, "decay_from", [0], [-1]),
    (lambda splits: BranchGRPO(steps=6, splits=splits), "splits", [(0,), (4,), (0, 4)], [(5,), (-1, 2), (2, 2), ()]),
    (BranchGRPO, "children", [2], [1]),
    (BranchGRPO, "split_noise", [None, 1e-3], [0.0]),
    (BranchGRPO, "path_weight", [0.0], [-1e-9]),
    (lambda extreme: BranchGRPO(prune=Pruning("extreme", extreme=extreme)), "extreme", [1, 8], [0, 9]),
    (lambda every: BranchGRPO(prune=Pruning(every=every)), "every", [1], [0]),
    (lambda depth: BranchGRPO(steps=8, splits=(0, 3), prune=Pruning(depth=depth)), "depth", [0, 4], [-1, 5]),
    (lambda depth: BranchGRPO(steps=8, splits=(3,), prune=Pruning(depth=depth)), "depth", [3], [4]),
    (lambda depth: BranchGRPO(prune=Pruning(depth=depth), mix=SlidingWindow()), "depth", [0], [1]),
    (DDPO, "divergence", [1e-12, None], [0.0, -1.0]),
    (lambda on: PrefGRPO(guard=on, divergence=1e-6), "on", [False], [True]),
    (PrefGRPO, "min_consistency", [0.0, 1.0], [-1e-9, 1.01]),
    (
        lambda opponents: PrefGRPO(group=9, compare=Comparisons(opponents=opponents)),
        "opponents",
        [None, 2, 8],
        [0, 3, 10],
    ),
    (lambda both: PrefGRPO(min_consistency=0.5, compare=Comparisons(both)), "both", [True], [False]),
    (FlowOPD, "steps", [2], [1]),
    (FlowOPD, "group", [1], [0]),
    (FlowOPD, "eta", [1e-3], [0.0]),
    (lambda eta: FlowOPD(kernel="cps", eta=eta), "eta", [0.999], [1.0]),
    (FlowOPD, "beta", [0.0], [-1e-9]),
    (FlowOPD, "clip", [1e-9], [0.0]),
    (lambda kernel: FlowOPD(weight="flow_grpo", kernel=kernel, eta=0.5), "kernel", ["flow_sde"], ["cps"]),
    (lambda weight: FlowOPD(gradient="sampled_logratio", sampler="sde", weight=weight), "weight", ["kl"], ["ode"]),
    (lambda sampler: FlowOPD(gradient="state_kl", sampler=sampler), "sampler", ["sde"], ["ode"]),
    (lambda on: FlowOPD(gradient="full", sampler="sde", self_normalise=on), "on", [False], [True]),
    (lambda on: FlowOPD(self_normalise=on), "on", [False, True], []),
    (SOAR, "steps", [1], [0]),
    (SOAR, "points", [1], [0]),
    (SOAR, "correction", [0.0], [-1e-9]),
    (SOAR, "min_time", [1e-6, 0.999], [0.0, 1.0]),
    (SOAR, "paths", [1], [0]),
    (SOAR, "rollout_guidance", [0.0], [-1e-9]),
    (SOAR, "eta", [0.0], [-1e-9]),
    (DPO, "beta", [1e-9], [0.0, -1.0]),
    (DPO, "sft", [0.0], [-1e-9]),
    (SFT, "shift", [1e-6, None], [0.0]),
    (SFT, "dropout", [0.0, 0.999], [1.0, -1e-9]),
    (SFT, "num_noises", [1], [0]),
    (lambda ddof: Normalize(ddof=ddof), "ddof", [0, 1], [2, -1]),
    (lambda eps: Normalize(eps=eps), "eps", [1e-12], [0.0]),
    (lambda how: Blend(how, again=True), "how", ["raw_sum", "z_sum"], ["separate"]),
]


@pytest.mark.parametrize("make, name, allowed, refused", EDGES)
def test_an_option_may_be_at_its_edge_and_not_beyond(make, name, allowed, refused):
    for value in allowed:
        make(**{name: value})
    for value in refused:
        with pytest.raises(ValueError):
            make(**{name: value})


# What each method needs


@pytest.mark.parametrize(
    "algorithm, reference, all_rows",
    [
        (FlowGRPO(beta=0.1), True, True),
        (FlowGRPO(beta=0.0), False, False),
        (DanceGRPO(), False, False),
        (MixGRPO(), False, False),
        (BranchGRPO(), False, False),
        (PrefGRPO(), False, False),
        (DDPO(), False, False),
        (FlowOPD(), False, True),
        (DPO(), True, False),
    ],
)
def test_a_reference_is_asked_for_where_there_is_a_kl(algorithm, reference, all_rows):
    requirements = algorithm.requirements
    assert (requirements.reference is not None, requirements.all_rows) == (reference, all_rows)


def test_requirements_name_what_a_run_must_give():
    gate = Blend("z_sum", gate={"other": 1.0, "near": 0.0})
    assert MixGRPO(TWO, blend=gate).requirements.rewards == ("near", "far", "other")
    assert PrefGRPO(WIN).requirements.rewards == ("near",)
    compare = Comparisons(opponents=2)
    assert PrefGRPO(compare=compare).requirements.comparisons == compare
    assert MixGRPO(TWO).requirements.comparisons is None and MixGRPO(TWO).requirements.rewards == ("near", "far")
    assert DDPO(history=20).requirements.history == 20 and DDPO().requirements.history == 0
    assert FlowOPD(beta=0.1, route="task").requirements.route == "task"
    assert FlowOPD(beta=0.1).requirements.anchor == "base" and FlowOPD(beta=0.0).requirements.anchor is None
    assert DPO().requirements.evaluations == 2 and DPO().requirements.pairs
    assert SFT(num_noises=3).requirements.evaluations == 3
    assert SOAR(points=2).requirements.evaluations == 4 and SOAR(correction=0.0).requirements.evaluations == 1
    assert SOAR(points=2, paths=3, rollout_guidance=1.0).requirements.evaluations == 7


def test_the_image_of_every_method_comes_by_a_step_without_noise():
    for algorithm, _ in LOSSES.values():
        plan = algorithm.plan(0, generator())
        assert plan.eta[-1] == 0 and plan.times[-1] == 0 and not plan.train[-1].any()
        assert torch.equal(plan.eta > 0, plan.train.any(1)) and plan.widths[-1] == algorithm.group


@pytest.mark.parametrize("group", [1, 2])
def test_every_step_has_the_same_chance_to_be_trained(group):
    levels = random_steps(3000, group, 11, 0.6, generator("steps"))
    assert not levels[10].any()
    chosen = torch.stack(levels[:10]).float()
    assert chosen.sum(0).eq(6).all() and (chosen.mean((1, 2)) - 0.6).abs().max() < 0.04
    pairs = (chosen[:, None] * chosen).mean((2, 3))  # of two steps, both: 6/10 · 5/9
    assert (pairs - 1 / 3)[~torch.eye(10, dtype=torch.bool)].abs().max() < 0.05


def test_flow_opd_samples_by_the_ode_or_the_sde():
    assert FlowOPD().plan(0, generator()).eta.eq(0).all()
    assert FlowOPD(sampler="sde", eta=0.4).plan(0, generator()).eta.tolist() == pytest.approx([0.4] * 9 + [0])


def test_the_rewards_of_flow_opds_steps_are_what_they_are_called():
    """Of state_kl minus the cost there, of full that of the states after it, of sampled_logratio log π_T - log π."""
    policy, teacher, anchor = MLP(), MLP(seed=1), MLP(seed=2)
    models = Models(policy, teachers={"left": teacher, "right": teacher}, anchor=anchor)
    options = dict(steps=4, group=2, sampler="sde", weight="kl", route="prompt", beta=0.3)
    rows = {}
    for gradient in ("state_kl", "full", "sampled_logratio"):
        algorithm = FlowOPD(gradient=gradient, **options)
        rows[gradient] = credited(algorithm, rollout(algorithm, policy), Scores({}), models)
    batch = rows["state_kl"].steps
    normal = {
        name: torch.distributions.Normal(*step(v, algorithm.step_kernel, batch))
        for name, v in (("p", policy), ("t", teacher), ("a", anchor))
    }
    kl = lambda name: torch.distributions.kl_divergence(normal["p"], normal[name]).mean(1)
    cost = (kl("t") + 0.3 * kl("a")).detach()
    torch.testing.assert_close(rows["state_kl"].score, -cost, rtol=2e-3, atol=1e-5)
    by_step = cost.view(3, -1)
    later = torch.stack([by_step[1] + by_step[2], by_step[2], torch.zeros_like(by_step[0])])
    torch.testing.assert_close(rows["full"].score, -later.flatten(), rtol=2e-3, atol=1e-5)
    log = {name: q.log_prob(batch.x_next).mean(1) for name, q in normal.items()}
    gain = (log["t"] - log["p"] + 0.3 * (log["a"] - log["p"])).detach()
    torch.testing.assert_close(rows["sampled_logratio"].score, gain, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(
    "algorithm, eps",
    [
        (DDPO({"near": 1.0}, steps=3, group=4), 1e-8),
        (DDPO({"near": 1.0}, steps=3, group=4, history=4, min_count=4), 1e-6),
        (FlowGRPO({"near": 1.0}, steps=3, group=4), 1e-4),
        (MixGRPO({"near": 1.0}, steps=4, group=4, window=SlidingWindow(width=1)), 1e-8),
        (DanceGRPO({"near": 1.0}, steps=3, group=4, fraction=1.0), 1e-8),
        (PrefGRPO({"win_rate": 0.0, "near": 1.0}, steps=3, group=4, fraction=1.0, blend=Z), 1e-8),
        (BranchGRPO({"near": 1.0}, steps=3, splits=(0, 1), path_weight=0.0), 1e-8),
    ],
)
def test_a_spread_as_small_as_the_published_eps_halves_the_advantage(algorithm, eps):
    ddof = 0 if isinstance(algorithm, DDPO | FlowGRPO) else 1
    away = eps * (1.0 if ddof == 0 else 0.75**0.5)  # so that the std is eps
    rewards = torch.tensor([[-away, away, -away, away]])
    judged = torch.full((1, 4, 4), 0.5).masked_fill(torch.eye(4, dtype=torch.bool), NAN)
    scores = Scores({"near": rewards}, {"win_rate": judged}, {"near": torch.full((1, 4), NAN)})
    _, levels = advantages_of(algorithm, scores, 1)
    np.testing.assert_allclose(levels[1][0, :, 0], rewards[0] / (2 * eps), rtol=1e-5)


@pytest.mark.parametrize("method", [DDPO, FlowGRPO, DanceGRPO, PrefGRPO, BranchGRPO, FlowOPD])
def test_every_step_but_the_last_is_trained(method):
    plan = method().plan(0, generator())
    assert plan.train.any(1).tolist() == [True] * (plan.steps - 1) + [False]


def test_what_flow_opd_logs_holds_no_graph():
    algorithm = FlowOPD(steps=4, group=2, route="prompt", beta=0.3)
    models = Models(MLP(), teachers={"left": MLP(1), "right": MLP(1)}, anchor=MLP(2))
    batch = credited(algorithm, rollout(algorithm, models.policy), Scores({}), models)
    loss, metrics = algorithm.loss(models, batch)
    assert loss.requires_grad and not any(value.requires_grad for value in metrics.values())
    square = lambda target: (
        ((models.policy(batch.steps.x, batch.steps.t, batch.steps.cond) - target) ** 2).mean().item()
    )
    assert metrics["teacher_distance"].item() == pytest.approx(square(batch.teacher), rel=1e-4)
    assert metrics["anchor_distance"].item() == pytest.approx(square(batch.anchor), rel=1e-4)
    assert metrics["cost"].item() == pytest.approx(loss.item())


@pytest.mark.parametrize("method", [FlowGRPO, DanceGRPO, MixGRPO, BranchGRPO])
def test_rewards_and_their_blend_are_what_a_method_requires(method):
    algorithm = method({"near": 1.0}, blend=Blend(gate={"strict": 0.5}))
    assert algorithm.requirements.weights == {"near": 1.0} and algorithm.requirements.blend == algorithm.blend
    assert set(algorithm.requirements.rewards) == {"near", "strict"}


def test_a_window_beside_the_splits_must_fit_the_steps():
    with pytest.raises(ConfigError, match=r"window\.width = 9"):
        BranchGRPO({"near": 1.0}, steps=5, splits=(0, 1), mix=SlidingWindow(width=9))
