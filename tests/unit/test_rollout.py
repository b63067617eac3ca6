import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import SD3Transformer2DModel

from afterflow.algorithms.ratios import per_child, step
from afterflow.models.adapters import Full, LoRA, attach, before_training
from afterflow.models.wrappers import guided, in_chunks, in_context
from afterflow.sampling.conditioning import Embedding, condition, move_rows
from afterflow.sampling.kernels import KERNELS, Gaussian, dance_sde, flow_sde, log_prob
from afterflow.sampling.rollout import Plan, chain, prompt_noise, sample, transitions
from afterflow.sampling.row_random import RowRandom
from afterflow.sampling.schedules import LinearShift
from toy import MLP, exact, prompts


def sources(prompts, seed=0):
    return [torch.Generator().manual_seed(seed + p) for p in range(prompts)]


def noise(prompts, roots, shape=(2,), seed=100):
    return torch.randn(prompts, roots, *shape, generator=torch.Generator().manual_seed(seed))


def tree(eta=0.7):
    """Two roots; splits at steps 1 and 3; trains 0, 1 and 3; steps 2 and 4 are the ODE."""
    stochastic = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0])
    train = stochastic.bool()[:, None].expand(5, 12)
    return Plan(LinearShift(3.0).times(5), eta * stochastic, (2, 2, 4, 4, 12, 12), train)


def ones(rollout, rewards=1):
    return [torch.ones(*level.shape, rewards) for level in rollout.log_prob]


def test_widths_must_multiply():
    with pytest.raises(ValueError, match=r"step 1: 2 states cannot have 3 children; make it a multiple"):
        Plan(torch.linspace(1, 0, 3), torch.ones(2), (2, 2, 3), torch.zeros(2, 3, dtype=torch.bool))


@pytest.mark.parametrize("widths, trains", [((2, 4, 4), False), ((4, 4, 4), True)], ids=["branches", "trains"])
def test_an_ode_step_neither_branches_nor_trains(widths, trains):
    train = torch.zeros(2, 4, dtype=torch.bool)
    train[0, 3] = trains
    with pytest.raises(ValueError, match=r"step 0 branches or trains.*give it eta > 0"):
        Plan(torch.linspace(1, 0, 3), torch.tensor([0.0, 1.0]), widths, train)


def test_a_chain_is_stochastic_exactly_where_it_is_trained():
    plan = chain(torch.linspace(1, 0, 6), 3, 0.7, range(1, 3))
    torch.testing.assert_close(plan.eta, torch.tensor([0, 0.7, 0.7, 0, 0]))
    assert plan.train.tolist() == [[k in (1, 2)] * 3 for k in range(5)]


def test_a_tree_shares_its_prefixes():
    calls = []
    velocity = lambda x, t, cond: calls.append(len(x)) or x
    rollout = sample(velocity, flow_sde, tree(), prompts(3), noise(3, 2), sources(3))
    assert [len(level[0]) for level in rollout.x] == [2, 2, 4, 4, 12, 12]
    assert calls == [3 * w for w in (2, 2, 4, 4, 12)]


def test_children_stay_with_their_parents():
    """Steps too quiet to leave the neighbourhood of their root, and roots far apart."""
    roots = torch.tensor([[[-9.0, 0.0], [9.0, 0.0]], [[0.0, -9.0], [0.0, 9.0]]])
    rollout = sample(lambda x, t, cond: 0 * x, dance_sde, tree(0.01), prompts(2), roots, sources(2))
    for level in rollout.x:
        family = roots.repeat_interleave(level.shape[1] // 2, 1)
        assert (level - family).norm(dim=-1).max() < 1
    batch = transitions(rollout, ones(rollout))
    assert (batch.x_next - batch.mean[batch.parent]).abs().max() < 0.1
    assert len(rollout.leaves.flatten(0, 1).unique(dim=0)) == 24  # siblings differ


def test_each_prompt_is_denoised_under_its_own_text():
    seen = lambda x, t, cond: x - 5 * cond.embedding().sequence[:, 0] / t[:, None]
    plan = chain(torch.tensor([1.0, 0.5, 0.0]), 3, 0.0, ())
    leaves = sample(seen, flow_sde, plan, prompts(2), noise(2, 3), sources(2)).leaves
    x = noise(2, 3) * 0.5
    x = (x + 2.5 * torch.eye(2)[:, None]) * 0.5 + 5 * torch.eye(2)[:, None]
    torch.testing.assert_close(leaves, x)


def test_a_prompts_images_do_not_depend_on_the_other_prompts():
    every, last = noise(3, 2), slice(2, 3)
    together = sample(exact, flow_sde, tree(), prompts(3), every, sources(3))
    alone = sample(exact, flow_sde, tree(), prompts(3)[torch.tensor([2])], every[last], sources(3)[last])
    torch.testing.assert_close(together.leaves[last], alone.leaves)


def test_fresh_noise_is_standard_normal_and_differs_between_prompts_and_siblings():
    fresh = prompt_noise(sources(2), 3, torch.zeros(2, 1, 4000))
    torch.testing.assert_close(torch.corrcoef(fresh.flatten(0, 1)), torch.eye(6), atol=0.06, rtol=0)
    torch.testing.assert_close(fresh.std(-1), torch.ones(2, 3), atol=0.05, rtol=0)


def test_edges_hold_each_trained_step_once():
    """Levels that split and levels that do not share one table."""
    rollout = sample(exact, flow_sde, tree(), prompts(2), noise(2, 2), sources(2))
    batch = transitions(rollout, ones(rollout))
    times = tree().times
    assert batch.t.tolist() == [times[0]] * 4 + [times[1]] * 4 + [times[3]] * 8
    assert batch.s.tolist() == [times[1]] * 4 + [times[2]] * 4 + [times[4]] * 8
    assert batch.count.tolist() == [1] * 4 + [2] * 4 + [3] * 8
    assert batch.parent.tolist() == [*range(4), *(4 + i // 2 for i in range(8)), *(8 + i // 3 for i in range(24))]
    assert batch.mass(torch.arange(len(batch))) == 4 * 1 + 4 * 2 + 8 * 3
    assert [r["prompt"] for r in batch.cond.records()] == (["left"] * 2 + ["right"] * 2) * 2 + ["left"] * 4 + [
        "right"
    ] * 4
    torch.testing.assert_close(batch.x[8:], rollout.x[3].flatten(0, 1))
    torch.testing.assert_close(batch.x_next[12:], rollout.x[4].flatten(0, 1))


def test_chosen_rows_take_their_own_children_along():
    rollout = sample(exact, flow_sde, tree(), prompts(2), noise(2, 2), sources(2))
    batch = transitions(
        rollout, [torch.arange(level.numel()).view(*level.shape, 1) + 0.5 for level in rollout.log_prob]
    )
    rows = torch.tensor([9, 1, 5])
    part = batch[rows]
    assert part.count.tolist() == [3, 1, 2] and len(part) == 3
    assert torch.equal(part.x, batch.x[rows]) and torch.equal(part.cond.index, batch.cond.index[rows])
    children = torch.tensor([15, 16, 17, 1, 6, 7])
    for name in ("x_next", "log_prob", "advantage"):
        assert torch.equal(getattr(part, name), getattr(batch, name)[children])


def test_images_of_one_noise_are_one_until_their_first_stochastic_step():
    plan = chain(torch.linspace(1, 0, 6), 3, 0.7, range(2, 4), shared_noise=True)
    assert plan.widths == (1, 1, 1, 3, 3, 3) and plan.evaluations == (3 + 2 * 3) / 3
    rollout = sample(exact, flow_sde, plan, prompts(2), noise(2, 1), sources(2))
    batch = transitions(rollout, ones(rollout))
    assert batch.count.tolist() == [3] * 2 + [1] * 6  # the siblings' first step is one row
    assert chain(torch.linspace(1, 0, 6), 3, 0.7, range(2, 4)).widths == (3,) * 6


def test_what_is_nan_or_not_in_the_plan_leaves_and_empty_parents_are_dropped():
    plan = tree()
    train = plan.train.clone()
    train[1, 6:] = False  # step 1: no state below the second root
    plan = Plan(plan.times, plan.eta, plan.widths, train)
    rollout = sample(exact, flow_sde, plan, prompts(1), noise(1, 2), sources(1))
    advantages = [torch.arange(a.numel()).view(a.shape).float() for a in ones(rollout, rewards=2)]
    advantages[0][0, 1] = torch.nan  # step 0: one of two only children
    advantages[3][0, :3] = torch.nan  # step 3: all children of the first parent,
    advantages[3][0, 4, 1] = torch.nan  # and one reward of one child of the second
    batch = transitions(rollout, advantages)
    assert batch.count.tolist() == [1, 2, 2, 3, 3]
    torch.testing.assert_close(batch.x, torch.stack([*rollout.x[0][0, :1], *rollout.x[1][0, :1], *rollout.x[3][0, 1:]]))
    assert batch.advantage.isfinite().all()
    assert batch[torch.tensor([3])].advantage.tolist() == [[12, 13], [14, 15], [16, 17]]


def transformer():
    """Of the real architecture."""
    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=6,
        pos_embed_max_size=4,
        qk_norm="rms_norm",
    )


def velocity_of(net):
    def velocity(x, t, cond):
        text = cond.embedding()
        return net(x.float(), text.sequence, text.pooled, 1000 * t, return_dict=False)[0]

    return velocity


def sd3():
    net = transformer()
    texts = Embedding(torch.randn(3, 5, 12), torch.randn(3, 6))
    empty = Embedding(torch.randn(1, 5, 12), torch.randn(1, 6))
    return velocity_of(net), condition(texts, empty, [{"prompt": str(p)} for p in range(3)]), (4, 4, 4)


def sd3_in_mixed_precision():
    velocity, cond, shape = sd3()
    return in_context(velocity, lambda: torch.autocast("cpu", torch.bfloat16)), cond, shape


def mlp():
    return MLP(), prompts(3), (2,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("world", [mlp, sd3, sd3_in_mixed_precision])
def test_a_fresh_rollout_replays_at_ratio_exactly_one(world, kernel, dtype):
    """Shuffled rows meet other neighbours and other padding than in the rollout, with gradients on."""
    net, cond, shape = world()
    velocity = in_chunks(guided(net, 4.5), 7)
    rollout = sample(velocity, kernel, tree(), cond, noise(3, 2, shape).to(dtype), sources(3))
    assert all(level.dtype == dtype for level in rollout.x)
    batch = transitions(rollout, ones(rollout))
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
    for rows in order.split(11):
        part = batch[rows]
        replayed = log_prob(per_child(step(velocity, kernel, part), part), part.x_next)
        assert torch.equal(replayed, part.log_prob)


@pytest.mark.parametrize("std, bias", [(0.10, 1.4e-4), (0.05, 6.0e-4)])
def test_a_log_prob_taken_before_rounding_would_be_biased(std, bias):
    """By E[round²] / 2 std² (the numbers are measured on the authors' code), so the ratio would not be 1."""
    size, still = 262_144, lambda x, t, cond: torch.zeros_like(x)
    plan = chain(torch.tensor([0.5, 0.4, 0.0]), 1, std / math.sqrt(0.1), [0])
    start = noise(1, 1, (size,)).bfloat16()
    rollout = sample(still, dance_sde, plan, prompts(1), start, sources(1))
    p = Gaussian(rollout.mean[0][0], torch.full((1, 1), std))
    unrounded = p.mean + std * prompt_noise(sources(1), 1, start)[0]
    torch.testing.assert_close(rollout.x[1][0], unrounded.bfloat16(), atol=0.02, rtol=0)
    assert (log_prob(p, unrounded) - rollout.log_prob[0][0]).item() == pytest.approx(bias, rel=0.4)


def test_chunks_are_all_of_one_size_and_change_nothing():
    sizes = []
    velocity = lambda x, t, cond: sizes.append(len(x)) or exact(x, t) + cond.embedding().sequence[:, 0]
    x, t, cond = noise(1, 10)[0], torch.linspace(0.1, 1, 10), prompts(10)
    torch.testing.assert_close(in_chunks(velocity, 4)(x, t, cond), velocity(x, t, cond))
    assert sizes == [4, 4, 4, 10]


def test_guidance_steers_away_from_the_empty_prompt():
    velocity = lambda x, t, cond: cond.embedding().sequence[:, 0] + 1  # (1, 1) for the empty prompt
    v = guided(velocity, 3.0)(torch.zeros(2, 2), torch.ones(2), prompts(2))
    assert v.tolist() == [[4, 1], [1, 4]]


@pytest.mark.parametrize("tune", [LoRA(rank=2, alpha=4), Full()], ids=["LoRA", "Full"])
def test_the_reference_stays_the_policy_before_training(tune):
    _, cond, shape = sd3()
    net = transformer()
    model = SimpleNamespace(module=net, velocity=velocity_of, lora_targets=("to_q", "add_k_proj"))
    x, t = noise(1, 3, shape)[0], torch.tensor([1.0, 0.5, 0.1])
    before = velocity_of(net)(x, t, cond)
    parameters = attach(model, tune)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == set(parameters)
    assert all("lora" in name for name in parameters) == isinstance(tune, LoRA)
    fixed = in_context(*before_training(model, tune))
    torch.testing.assert_close(velocity_of(net)(x, t, cond), before)
    with torch.no_grad():
        for p in parameters.values():
            p.add_(0.1)
    torch.testing.assert_close(fixed(x, t, cond), before)
    assert (velocity_of(net)(x, t, cond) - before).abs().max() > 1e-3


def test_states_wait_on_another_device_and_leaves_stay():
    """The device meta holds no numbers, so whatever reads a state on the way would fail."""
    velocity = lambda x, t, cond: 0.5 * x
    far = sample(velocity, flow_sde, tree(), prompts(3), noise(3, 2), sources(3), states_device="meta")
    near = sample(velocity, flow_sde, tree(), prompts(3), noise(3, 2), sources(3))
    assert {state.device.type for state in [*far.x[:-1], *far.mean]} == {"meta"}
    assert torch.equal(far.leaves, near.leaves)
    rows = transitions(near, ones(near))
    waiting = transitions(far, ones(near))[torch.tensor([2, 0])]
    assert torch.equal(waiting.count, rows.count[[2, 0]]) and waiting.x.device.type == "meta"
    assert waiting.x_next.shape == rows[torch.tensor([2, 0])].x_next.shape
    there = move_rows(rows, "meta")
    assert {there.x.device.type, there.t.device.type, there.x_next.device.type} == {"meta"}
    assert there.cond is rows.cond and torch.equal(there.count, rows.count)  # read on the CPU
    assert torch.equal(move_rows(rows, "cpu").x, rows.x)


def test_random_numbers_of_a_row_come_from_its_own_generator():
    draws = lambda seeds: RowRandom.seeded(torch.tensor(seeds))
    assert torch.equal(draws([5, 6]).uniform(), draws([5, 6]).uniform())
    assert torch.equal(draws([5, 6, 7]).normal((3,))[1:2], draws([6]).normal((3,)))
    assert torch.equal(draws([5, 6, 7]).uniform()[1:2], draws([6]).uniform())
    assert len({*draws([5, 6]).uniform().tolist()}) == 2


def test_where_no_state_branches_the_noise_is_what_it_is_without_splits():
    times, ones = torch.linspace(1, 0, 4), torch.ones(3)
    plan = Plan(times, 0.5 * ones, (2, 2, 2, 2), torch.ones(3, 2, dtype=torch.bool))
    alone, split = (
        sample(exact, flow_sde, each, prompts(3), noise(3, 2), sources(3))
        for each in (plan, replace(plan, split_noise=4.0))
    )
    assert torch.equal(alone.leaves, split.leaves)


def test_a_plan_may_have_steps_of_second_order_where_it_is_the_ode():
    times, train = torch.linspace(1, 0, 4), torch.zeros(3, 2, dtype=torch.bool)
    Plan(times, torch.tensor([0.5, 0, 0]), (2, 2, 2, 2), train, second_order=(1, 2))
    with pytest.raises(ValueError, match="step 0 is stochastic, so it cannot be of second order"):
        Plan(times, torch.tensor([0.5, 0, 0]), (2, 2, 2, 2), train, second_order=(0, 1))
