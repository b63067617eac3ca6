"""The trainer's own choices: seeds, shuffling, sums in fp64, updates that are left out, and what is logged."""

import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from afterflow.algorithms.base import Models, Scores
from afterflow.algorithms.branch_grpo import BranchGRPO
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.flow_opd import FlowOPD
from afterflow.algorithms.sft import SFT
from afterflow.algorithms.soar import SOAR
from afterflow.objectives.preferences import consistency, win_rates
from afterflow.sampling.conditioning import Pairs
from afterflow.sampling.flow import weighting
from afterflow.sampling.rollout import sample
from afterflow.sampling.seeds import generator
from afterflow.system.errors import TrainingStopped
from afterflow.train.clock import Clock
from afterflow.train.distributed import Processes
from afterflow.train.ema import Ema
from afterflow.train.explore import ExploreOptions, Explorer, Iteration, supervised
from afterflow.train.gradients import gradients, microbatches
from afterflow.train.loop import MAX_SKIPPED, SkipPolicy, TrainOptions
from afterflow.train.reward_hacking import Z_THRESHOLD, paired_change, reward_hacking_signs
from afterflow.train.scores import (
    check_scores,
    concatenate_scores,
    gather_scores,
    score_metrics,
    scores_from_json,
    scores_to_json,
)
from toy import MLP, draws, images, learn, optimize, prompts, score

NEAR = {"near": 1.0}
GRPO = FlowGRPO(NEAR, steps=4, group=4, beta=0.0, clip=0.2)
NAN = torch.nan


def iteration_of(algorithm, step=0, seed=0, scores=score, n=4, updates=1, models=None, **options):
    processes = Processes(Accelerator(cpu=True))
    choice = ExploreOptions(seed=seed, latent_shape=(2,), chunk=64, updates=updates, **options)
    explorer = Explorer(algorithm, models or Models(MLP()), lambda step: prompts(n), scores, choice, processes, Clock())
    return explorer.iteration(step)


# Random numbers


def seen_by(judge_rows):
    """Scores that keep what the judge's generators would draw."""

    def scores(leaves, records, generators, clock):
        judge_rows.append([torch.rand((), generator=g).item() for g in generators])
        return score(leaves, records)

    return scores


def test_noise_differs_by_seed_iteration_and_prompt_and_by_nothing_else():
    starts, judges = {}, {}
    for seed, step in [(0, 0), (0, 1), (1, 0), (0, 0)]:
        drawn = []
        made = iteration_of(replace(GRPO, steps=2), step, seed, seen_by(drawn))
        starts.setdefault((seed, step), []).append(made.rows.x)
        judges.setdefault((seed, step), []).append(drawn[0])
    assert torch.equal(*starts[0, 0]) and judges[0, 0][0] == judges[0, 0][1]
    everything = torch.cat([rows[0] for rows in starts.values()])
    assert len(everything.unique(dim=0)) == len(everything) == 3 * 16
    numbers = [number for rows in judges.values() for number in rows[0]]
    assert len(set(numbers)) == 3 * 4


def test_plans_selection_and_order_have_random_numbers_of_their_own():
    """Each depends on seed and iteration."""
    asked = {"plan": [], "select": []}

    class Asked(FlowGRPO):
        def plan(self, step, generator):
            asked["plan"].append(torch.rand((), generator=generator).item())
            return super().plan(step, generator)

        def select(self, plan, prompts, generator):
            asked["select"].append(torch.rand((), generator=generator).item())
            return super().select(plan, prompts, generator)

    algorithm, orders = Asked(NEAR, steps=4, group=4, beta=0.0), []
    for seed, step in [(0, 0), (0, 1), (1, 0)]:
        orders.append(torch.cat(iteration_of(algorithm, step, seed).updates[0][0]).tolist())
    assert len({*asked["plan"], *asked["select"]}) == 6
    assert all(sorted(order) == list(range(48)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_updates_are_random_halves_of_the_rows():
    """Rows come step by step, so that without a shuffle an update would train on some noise levels alone."""
    halves = [torch.cat(list(update[0])) for update in iteration_of(GRPO, updates=2).updates]
    assert sorted(torch.cat(halves).tolist()) == list(range(48))
    for half in halves:
        assert torch.bincount(half // 16, minlength=3).min() > 3 and half.tolist() != sorted(half.tolist())


def test_a_row_of_images_has_a_seed_of_its_own():
    rows = {}
    for seed, step in [(0, 0), (0, 1), (1, 0)]:
        source = supervised(
            SFT(), lambda _: images(8, generator()), range(step, step + 1), seed=seed, chunk=3, processes=Processes()
        )
        (made,) = source
        rows[seed, step] = made.rows.seeds.tolist()
        assert [len(part) for part in made.updates[0][0]] == [3, 3, 2]
    assert len({n for each in rows.values() for n in each}) == 24


# The sampler


def test_siblings_share_the_stated_part_of_their_noise_at_splits_and_nowhere_else():
    """With a velocity of 0 the noise of a step can be read off its states."""
    lam, still = 1.5, lambda x, t, cond: 0 * x
    algorithm = BranchGRPO(NEAR, steps=4, splits=(0, 2), split_noise=lam)
    plan, cond = algorithm.plan(0, generator()), prompts(3000)
    noise = torch.zeros(3000, 1, 2)
    made = sample(still, algorithm.step_kernel, plan, cond, noise, [generator("split", p) for p in range(3000)])

    def fresh(k):
        """(2P, W): the standard normal numbers of step k."""
        mean = made.mean[k].repeat_interleave(plan.widths[k + 1] // plan.widths[k], 1)
        step = made.x[k + 1] - mean
        return (step / step.std()).movedim(2, 1).flatten(0, 1)

    for k, blocks in ((0, [(0, 1)]), (1, []), (2, [(0, 1), (2, 3)])):
        expected = torch.eye(plan.widths[k + 1])
        for i, j in blocks:
            expected[i, j] = expected[j, i] = 1 / (1 + lam**2)
        assert (fresh(k).T.corrcoef() - expected).abs().max() < 0.06
    alone = replace(algorithm, split_noise=None)
    made = sample(
        still, alone.step_kernel, alone.plan(0, generator()), cond, noise, [generator(p) for p in range(3000)]
    )
    assert (fresh(2).T.corrcoef() - torch.eye(4)).abs().max() < 0.06


# SOAR


class Watched:
    """A velocity field that keeps how often and on what it was asked."""

    def __init__(self):
        self.calls, self.model = [], MLP()

    def __call__(self, x, t, cond):
        self.calls.append((x.detach(), t, cond.index.tolist(), v := self.model(x, t, cond)))
        return v


def terms_of(algorithm, batch):
    field = Watched()
    terms = list(algorithm.regression_losses(Models(field), batch, draws(len(batch))))
    return field.calls, [loss for loss, _ in terms], [metrics for _, metrics in terms]


@pytest.mark.parametrize("name", ["none", "sigma_sqrt", "cosmap"])
def test_soar_weighs_base_and_corrections_each_at_its_own_time(name):
    algorithm = SOAR(points=2, correction=0.4, weighting=name)
    batch = images(16, generator())
    (base, _, *points), losses, metrics = terms_of(algorithm, batch)
    x, t, _, v = base
    noise = (x - (1 - t[:, None]) * batch.x0) / t[:, None]
    weight = {"none": t**0, "sigma_sqrt": 1 / t / t, "cosmap": 2 / torch.pi / ((1 - t) ** 2 + t**2)}[name]
    terms = [(weight * ((v - (noise - batch.x0)) ** 2).mean(1)).sum()]
    for back, later, _, v in points:
        weight = {
            "none": later**0,
            "sigma_sqrt": 1 / later / later,
            "cosmap": 2 / torch.pi / ((1 - later) ** 2 + later**2),
        }[name]
        terms.append(0.4 * (weight * ((v - (back - batch.x0) / later[:, None]) ** 2).mean(1)).sum())
    expected = torch.stack(terms) / (16 * (1 + 0.4 * 2))
    torch.testing.assert_close(torch.stack(losses), expected, rtol=1e-4, atol=1e-5)
    assert metrics[0]["base_loss"].item() == pytest.approx(terms[0].item() / 16, rel=1e-4)
    summed = sum(m["correction_loss"] for m in metrics[1:]).item()
    assert summed == pytest.approx(sum(terms[1:]).item() / 0.4 / 32, rel=1e-4)


def test_the_prompt_of_a_row_is_the_same_in_all_of_its_passes():
    """A dropped prompt stays dropped at every point; guidance alone asks for the empty one."""
    batch = images(400, generator())
    (base, guidance, *points), _, _ = terms_of(SOAR(points=3, dropout=0.25), batch)
    dropped = sum(i < 0 for i in base[2]) / 400
    assert 0.18 < dropped < 0.32 and all(i < 0 for i in guidance[2])
    assert len(points) == 3 and all(point[2] == base[2] for point in points)
    (base, *points), _, _ = terms_of(SOAR(points=3, rollout_guidance=1.0), batch)
    assert len(points) == 3 and base[2] == batch.cond.index.tolist() == points[0][2]


def test_a_stochastic_roll_out_has_the_kernels_mean_and_noise():
    algorithm = SOAR(steps=10, points=1, paths=2, rollout_guidance=1.0, eta=0.3, kernel="dance_sde", min_time=1e-6)
    batch = images(4000, generator())
    (base, _, stochastic), _, _ = terms_of(algorithm, batch)
    x, t, _, v = base
    s = 3 * (u := (t / (3 - 2 * t) - 0.1).clamp(min=0)) / (1 + 2 * u)
    back, later = stochastic[:2]
    noise = (x - (1 - t[:, None]) * batch.x0) / t[:, None]
    alpha = ((later - s) / (1 - s))[:, None]
    end = (back - alpha * noise) / (1 - alpha)
    mean = x - (t - s)[:, None] * (v + 0.09 / (2 * t[:, None]) * (x + (1 - t[:, None]) * v))
    inner = (alpha[:, 0] < 0.7) & (s > 0.05) & (t < 0.95)
    drawn = ((end - mean) / (0.3 * (t - s).sqrt()[:, None]))[inner]
    assert drawn.mean().abs() < 0.05 and drawn.std().item() == pytest.approx(1, abs=0.05)


def test_no_point_lies_nearer_to_the_image_than_it_may():
    batch = images(4000, generator())
    (_, _, point), _, _ = terms_of(SOAR(points=1, min_time=0.4), batch)
    assert point[1].min() >= 0.4 and point[1].max() < 1


def test_sft_is_regression_at_every_noise():
    batch = images(16, generator())
    for name in ("none", "sigma_sqrt", "cosmap"):
        calls, losses, metrics = terms_of(SFT(num_noises=3, weighting=name, shift=2.0), batch)
        assert len(calls) == 3 and len({call[1][0].item() for call in calls}) == 3
        for (x, t, _, v), loss, logged in zip(calls, losses, metrics):
            noise = (x - (1 - t[:, None]) * batch.x0) / t[:, None]
            expected = (weighting(name, t) * ((v - noise + batch.x0) ** 2).mean(1)).mean() / 3
            torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
            assert (
                logged["flow_matching"].item() == pytest.approx(loss.item())
                and not logged["flow_matching"].requires_grad
            )


# Sums


class Terms:
    """An algorithm whose loss of row i is value_i · w, so that its gradient in w is the mean of the values."""

    requirements = SimpleNamespace(evaluations=1.0)

    def __init__(self, w):
        self.w = w

    def losses(self, models, batch):
        yield (batch.x0 * self.w).mean(), {"value": batch.x0.mean(), "value_max": batch.x0.max()}


def summed(values, *partitions):
    """The gradient in w, and what is logged, of rows in microbatches in partitions."""
    w = torch.nn.Parameter(torch.tensor(0.0))
    rows = Pairs(torch.tensor(values), prompts(len(values)))
    iteration, processes = Iteration(0, rows, []), Processes(Accelerator(cpu=True))
    update = [[torch.tensor(part) for part in partition] for partition in partitions]
    measured, problem = gradients(Terms(w), Models(MLP()), iteration, update, [w], processes)
    return w.grad, measured, problem


def test_partitions_are_summed_in_double_precision():
    """In fp32 a small partition after a large one of the other sign would be lost."""
    values = [3e7, 1.0, -3e7, 1.0]
    gradient, _, _ = summed(values, [[0]], [[1]], [[2]], [[3]])
    assert gradient.item() == 0.5
    in_one, _, _ = summed(values, [[0], [1], [2], [3]])
    assert in_one.item() != 0.5


def test_each_microbatch_counts_by_its_rows_and_the_highest_stays_the_highest():
    gradient, measured, problem = summed([1.0, 2, 3, 10], [[0], [1, 2, 3]])
    assert gradient.item() == 4.0 and problem is None
    assert measured == {"value": 4.0, "value_max": 10.0}
    gradient, measured, _ = summed([-1.0, -2, -3, -10], [[0]], [[1, 2, 3]])
    assert gradient.item() == -4.0 and measured == {"value": -4.0, "value_max": -1.0}


def test_a_loss_that_is_not_finite_names_its_prompts():
    _, _, problem = summed([1.0, torch.inf, 3, 4], [[0], [1], [2, 3]])
    assert problem == "the loss is nan for 1 prompts, first 'right'"  # 0 · ∞


def test_the_longest_gradient_is_shortened_to_the_stated_norm():
    for partitions in (1, 2):
        processes = Processes(Accelerator(cpu=True), grad_partitions=partitions)
        p, q = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
        p.grad, q.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
        assert processes.clip([p, q], 1.0).item() == pytest.approx(5.0)
        assert torch.cat([p.grad, q.grad]).tolist() == pytest.approx([0.6, 0, 0.8], abs=1e-5)
        assert processes.clip([p, q], 2.0).item() == pytest.approx(1.0, abs=1e-5)
        assert torch.cat([p.grad, q.grad]).tolist() == pytest.approx([0.6, 0, 0.8], abs=1e-5)


# Updates that are left out


def test_the_average_stands_still_where_an_update_is_left_out():
    model, spoiled = MLP(), iter([False, False, True, False])
    ema = Ema(dict(model.named_parameters()), 0.9)
    velocity = lambda x, t, cond: model(x, t, cond) * (NAN if next(spoiled) else 1.0)
    one_pass = dict(velocity=velocity, ema=ema, skip=True, optimizer=optimize(model))
    counts, averages = [], []
    for _, metrics in learn(SFT(), model, 4, **one_pass):
        counts.append((ema.updates, metrics["skipped"]))
        averages.append(torch.cat([value.flatten() for value in ema.values.values()]))
    assert counts == [(1, 0), (2, 0), (2, 1), (3, 0)]
    assert torch.equal(averages[1], averages[2]) and not torch.equal(averages[2], averages[3])


def test_gradients_of_an_update_do_not_stay_for_the_next():
    model = MLP()
    for step, _ in learn(SFT(), model, 2, optimizer=optimize(model)):
        assert all(p.grad is None for p in model.parameters()), step


@pytest.mark.parametrize(
    "skip, overflow, most", [(True, False, MAX_SKIPPED), (False, True, MAX_SKIPPED), (False, False, 0)]
)
def test_so_many_updates_in_a_row_may_be_left_out(skip, overflow, most):
    policy = SkipPolicy(skip)
    assert policy.accept(0, None, False)
    for _ in range(2):
        for _ in range(most):
            assert not policy.accept(0, "it broke", overflow)
        assert policy.accept(0, None, overflow)  # a good one in between starts the count anew
    with pytest.raises(TrainingStopped, match="step 7: it broke"):
        for _ in range(most + 1):
            policy.accept(7, "it broke", overflow)
    assert MAX_SKIPPED == 20


def test_the_rate_is_that_of_the_iteration_and_metrics_are_means_over_its_updates():
    model = MLP()
    found = dict(learn(GRPO, model, 2, lr=3e-4, optimizer=optimize(model, lr=1.0), updates=3))
    assert [metrics["learning_rate"] for metrics in found.values()] == [3e-4, 3e-4]
    still = MLP()
    ((_, metrics),) = learn(GRPO, still, 1, lr=0.0, updates=3, optimizer=optimize(still))
    assert metrics["ratio_mean"] == 1 and "skipped" not in metrics


# Scores


def test_scores_survive_json_and_are_joined_in_order():
    scores = Scores({"near": torch.tensor([[0.1, NAN]])}, {"win_rate": torch.tensor([[[NAN, 1.0], [0.5, NAN]]])})
    scores = replace(scores, parts={"a": torch.tensor([[1.0, 2.0]])}, failures={"near": ["broken"]})
    again = scores_from_json(scores_to_json(scores))
    for kind in ("rewards", "judged", "parts"):
        for name, value in getattr(scores, kind).items():
            torch.testing.assert_close(getattr(again, kind)[name], value, equal_nan=True, rtol=0, atol=0)
    assert again.failures == {"near": ["broken"]}
    without = Scores({"near": torch.tensor([[7.0, 8.0]])}, {"win_rate": torch.zeros(1, 2, 2)}, failures={"near": ["x"]})
    both = concatenate_scores([without, scores])
    assert both.rewards["near"][0].tolist() == [7, 8] and both.judged["win_rate"].shape == (2, 2, 2)
    assert both.parts["a"][0].isnan().all() and both.parts["a"][1].tolist() == [1, 2]
    assert both.failures == {"near": ["x", "broken"]}


RECORDS = [{"prompt": "a"}, {"prompt": "b"}]


@pytest.mark.parametrize("missing, most, stops", [(1, 0.25, False), (2, 0.25, True), (1, 0.0, True), (0, 0.0, False)])
def test_a_share_of_the_images_may_lack_a_reward(missing, most, stops, caplog):
    value = torch.ones(2, 2)
    value.view(-1)[:missing] = torch.inf if missing == 1 else NAN
    check = lambda: check_scores(Scores({"near": value}), RECORDS, 3, most)
    if stops:
        with pytest.raises(
            TrainingStopped, match=f"step 3: {missing} of 4 images have no near; 'a': it is not a finite"
        ):
            check()
    else:
        check()
        assert (f"{missing} of 4 images have no near" in caplog.text) == (missing > 0)


def test_a_share_of_the_comparisons_may_lack_a_verdict(caplog):
    judged = torch.full((1, 3, 3), NAN)
    judged[0, 0, 1:] = judged[0, 1, 2] = 1.0
    scores = Scores({}, {"win_rate": judged}, failures={"win_rate": ["no answer"]})
    check_scores(scores, RECORDS, 0, 0.25)
    assert "1 of 4 comparisons have no verdict; no answer" in caplog.text
    with pytest.raises(TrainingStopped, match="1 of 4 comparisons"):
        check_scores(scores, RECORDS, 0, 0.2)


def test_what_is_logged_of_scores():
    near = torch.tensor([[1.0, 3, NAN], [2, 2, 2], [0, 4, 8]])
    judged = torch.rand(3, 3, 3, generator=generator()).masked_fill(torch.eye(3, dtype=torch.bool), NAN)
    parts = {"part": torch.tensor([[1.0, NAN, 3]])}
    scores = Scores({"near": near, "far": torch.ones(3, 3)}, {"win_rate": judged}, parts=parts)
    found = score_metrics(scores, {"near": 2.0, "far": 0.5})
    rows = [np.array([1.0, 3]), np.array([2.0, 2, 2]), np.array([0.0, 4, 8])]
    assert found["reward/near"] == pytest.approx(np.concatenate(rows).mean())
    assert found["reward_std/near"] == pytest.approx(np.mean([row.std() for row in rows]))
    assert found["invalid/near"] == pytest.approx(1 / 9) and "invalid/far" not in found
    assert found["reward"] == pytest.approx(2 * found["reward/near"] + 0.5)
    assert found["zero_std_groups"] == pytest.approx(1 / 3) and found["part/part"] == 2.0
    assert found["reward/win_rate"] == pytest.approx(win_rates(judged).mean().item())
    assert found["consistency/win_rate"] == pytest.approx(consistency(judged).mean().item())
    assert "reward" not in score_metrics(scores, {}) and "zero_std_groups" not in score_metrics(scores, {})
    assert "zero_std_groups" not in score_metrics(Scores({"near": torch.ones(3, 1)}), NEAR)


@pytest.mark.parametrize("value", [1 / 3, 2 / 3, 0.6, 0.8, 0.1])
def test_equal_rewards_are_equal_whatever_their_sum_is_rounded_to(value):
    equal = Scores({"a": torch.full((5, 16), value), "b": torch.zeros(5, 16)})
    assert score_metrics(equal, {"a": 0.5, "b": 0.5})["zero_std_groups"] == 1.0


def test_evaluations_are_counted_for_each_image():
    made = iteration_of(GRPO)
    assert made.metrics["nfe/rollout"] == 4 and made.metrics["nfe/update"] == 3  # of 4 steps the last is not trained
    assert "nfe/reference" not in made.metrics and "nfe/teacher" not in made.metrics
    made = iteration_of(replace(GRPO, beta=0.1), models=Models(MLP(), MLP()))
    assert made.metrics["nfe/reference"] == 3
    teachers = {name: MLP() for name in ("left", "right")}
    opd = FlowOPD(steps=4, group=2, route="prompt")
    silent = lambda leaves, *asked: Scores({})
    assert iteration_of(opd, scores=silent, models=Models(MLP(), teachers=teachers)).metrics["nfe/teacher"] == 3


# Reward hacking


def test_a_change_is_paired_and_in_standard_errors():
    mean, errors = paired_change([0.0, 1, 2, NAN], [1.0, 2, 6, 5])
    assert mean == pytest.approx(2.0) and errors == pytest.approx(2 / (3**0.5 / 3**0.5))
    assert paired_change([0.0], [1.0]) == (0.0, 0.0)
    assert paired_change([0.0, 0], [1.0, 1]) == (1.0, float("inf"))
    assert paired_change([1.0, 1], [0.0, 0]) == (-1.0, -float("inf"))
    assert paired_change([1.0, 1], [1.0, 1]) == (0.0, 0.0)


def test_hacking_is_a_trained_reward_that_rises_while_a_hidden_one_falls():
    noise = torch.randn(50, generator=generator()).tolist()
    before = {name: noise for name in ("trained", "other", "hidden", "steady")}
    moved = lambda by: [value + by + 0.01 * n for value, n in zip(noise, range(50))]
    now = {"trained": moved(1.0), "other": moved(-1.0), "hidden": moved(-2.0), "steady": noise}
    (sentence,) = reward_hacking_signs(before, now, ["trained", "other"], ["hidden", "steady"])
    assert sentence.startswith("hidden fell by 1.7") and sentence.endswith("while trained rose by 1.25")
    assert reward_hacking_signs(before, now, ["other", "steady"], ["hidden"]) == []
    assert reward_hacking_signs(before, now, ["trained", "unknown"], ["steady", "trained"]) == []
    assert Z_THRESHOLD == 3.0


# Other processes, of which this one hears through a stand-in


def test_shards_get_the_same_rows_and_one_idle_row_each():
    for scores in (score, lambda leaves, *asked: Scores({"near": torch.ones(leaves.shape[:2])})):
        plain = iteration_of(GRPO, scores=scores)
        processes = Processes(Accelerator(cpu=True))
        processes.sharded = True
        options = ExploreOptions(seed=0, latent_shape=(2,), chunk=64)
        explorer = Explorer(GRPO, Models(MLP()), lambda step: prompts(4), scores, options, processes, Clock())
        made = explorer.iteration(0)
        assert torch.equal(made.rows.x, plain.rows.x) and plain.idle is None
        assert len(made.idle) == 1 and len(made.rows) == (48 if scores is score else 0)
        assert made.idle.x.shape == (1, 2) and made.idle.advantage.isfinite().all()


def test_a_process_with_fewer_rows_makes_idle_passes_without_weight():
    rows, idle = Pairs(torch.arange(4.0), prompts(4)), Pairs(torch.zeros(1), prompts(1))
    several = SimpleNamespace(sharded=True, all_gather_objects=lambda mine: [mine, [12.0, 5]])
    made = list(
        microbatches(
            Iteration(0, rows, [], idle=idle, share=0.5), [[torch.tensor([0, 1, 2]), torch.tensor([3])]], several
        )
    )
    assert [len(part.rows) for part in made] == [3, 1, 1, 1, 1]
    assert [part.share for part in made] == [3 / 16, 1 / 16, 0, 0, 0]
    assert [part.loss_share for part in made] == [3 / 32, 1 / 32, 0, 0, 0]


def test_scores_of_all_processes_are_joined_and_the_rollout_stays():
    mine, theirs = (Scores({"near": torch.full((1, 2), value)}) for value in (1.0, 2.0))
    several = SimpleNamespace(count=2, run_on_all=lambda work: [work(), scores_to_json(theirs)])
    rollout, scores = gather_scores(lambda: ("rollout", mine), several)
    assert rollout == "rollout" and scores.rewards["near"].tolist() == [[1, 1], [2, 2]]


def test_images_are_scored_one_part_at_a_time_while_the_next_are_drawn():
    """Rewards need not be safe for threads."""
    inside, most = [], []

    def slow(leaves, records, generators, clock):
        inside.append(len(leaves))
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()
        return score(leaves, records)

    made = iteration_of(GRPO, scores=slow, n=8, overlap=True, updates=1)
    assert len(most) == 1  # chunks of 64 hold all
    options = ExploreOptions(seed=0, latent_shape=(2,), chunk=8, overlap=True)
    explorer = Explorer(
        GRPO, Models(MLP()), lambda step: prompts(8), slow, options, Processes(Accelerator(cpu=True)), Clock()
    )
    parts = explorer.iteration(0)
    assert most == [1] * 5
    torch.testing.assert_close(parts.rows.advantage, made.rows.advantage, rtol=1e-4, atol=1e-5)


def test_rows_of_several_paths_count_by_their_points():
    algorithm = SOAR(steps=4, points=2, paths=3, density="uniform")
    (made,) = supervised(
        algorithm, lambda _: images(64, generator()), range(1), seed=0, chunk=64, processes=Processes()
    )
    assert set(made.rows.masses.tolist()) == {3.0, 7.0}
    assert made.rows.mass(torch.tensor([0, 5])) == made.rows.masses[[0, 5]].sum()
    (made,) = supervised(
        replace(algorithm, paths=1), lambda _: images(9, generator()), range(1), seed=0, chunk=64, processes=Processes()
    )
    assert made.rows.masses is None and made.rows.mass(torch.arange(5)) == 5


def test_a_loss_that_is_not_finite_stops_a_run_unless_it_says_otherwise():
    assert not TrainOptions(lambda step: 1.0, 1.0).skip_nonfinite
    assert ExploreOptions(0, (1,), 1) == ExploreOptions(0, (1,), 1, updates=1, max_missing=0.0, overlap=False)


def test_parts_that_are_scored_are_as_small_as_one_prompt():
    parts = []
    counted = lambda leaves, *asked: parts.append(len(leaves)) or score(leaves, asked[0])
    options = ExploreOptions(seed=0, latent_shape=(2,), chunk=1, overlap=True)
    Explorer(
        GRPO, Models(MLP()), lambda step: prompts(3), counted, options, Processes(Accelerator(cpu=True)), Clock()
    ).iteration(0)
    assert parts == [1, 1, 1]


def of_shards(values, parts):
    """Gradient and problem where weights are sharded over two processes, and how many losses were asked for."""
    w, asked = torch.nn.Parameter(torch.tensor(0.0)), []
    rows = Pairs(torch.tensor(values), prompts(len(values)))
    terms = Terms(w)
    counted = SimpleNamespace(losses=lambda models, batch: asked.append(len(batch)) or terms.losses(models, batch))
    accelerator = Accelerator(cpu=True)
    processes = SimpleNamespace(
        sharded=True,
        count=2,
        accelerator=accelerator,
        all_gather_objects=lambda mine: [mine, mine],
        add_gradients=lambda *_: None,
    )
    iteration = Iteration(0, rows, [], idle=rows[torch.tensor([0])])
    _, problem = gradients(counted, Models(MLP()), iteration, [[torch.tensor(part) for part in parts]], [w], processes)
    return w.grad, problem, asked


def test_the_mean_that_shards_take_of_gradients_is_undone():
    gradient, problem, _ = of_shards([1.0, 2, 3, 10], [[0], [1, 2, 3]])
    assert problem is None and gradient.item() == 2 * 4.0 / 2  # twice, of half of the rows of both


def test_where_others_wait_in_a_pass_a_broken_loss_does_not_end_it():
    _, problem, asked = of_shards([torch.inf, 2, 3, 10], [[0], [1], [2, 3]])
    assert problem.startswith("the loss is nan") and asked == [1, 1, 2]


def test_a_broken_loss_ends_an_update_where_nobody_waits():
    asked = []

    def losses(models, batch):
        for value in batch.x0:
            asked.append(value.item())
            yield value * model.net[0].weight.sum(), {}

    model, processes = MLP(), Processes(Accelerator(cpu=True))
    rows = Pairs(torch.tensor([1.0, torch.nan, 3, 4]), prompts(4))
    update = [[torch.tensor([0, 1, 2]), torch.tensor([3])]]
    arguments = (Models(model), Iteration(0, rows, []), update, list(model.parameters()), processes)
    _, problem = gradients(SimpleNamespace(losses=losses), *arguments)
    assert problem.startswith("the loss is nan") and len(asked) == 2


def test_a_partition_has_its_own_rows_in_their_order():
    processes = Processes(Accelerator(cpu=True), grad_partitions=3)
    (made,) = supervised(SFT(), lambda _: images(8, generator()), range(1), seed=0, chunk=2, processes=processes)
    assert [torch.cat(list(part)).tolist() for part in made.updates[0]] == [[0, 1, 2], [3, 4, 5], [6, 7]]
