"""Methods that noise their finished images again: rows, times, losses, averages of the policy, and what is learnt."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from afterflow.algorithms.awm import AWM
from afterflow.algorithms.base import WIN_RATE, Comparisons, Models, Reference, Scores
from afterflow.algorithms.crd import CRD
from afterflow.algorithms.dgpo import DGPO
from afterflow.algorithms.diffusion_nft import DiffusionNFT
from afterflow.algorithms.flow_awr import FlowAWR
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.forward_process import OLD, learns_from_finished, ratio_loss
from afterflow.algorithms.lag import Lag
from afterflow.algorithms.online_dpo import OnlineDPO
from afterflow.algorithms.v_grpo import VGRPO
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment import velocities
from afterflow.experiment.config import Run
from afterflow.experiment.cost_estimate import memory_needs, random_scores, trial_iteration
from afterflow.experiment.network_counts import network_counts
from afterflow.experiment.passes import NO_ROLLOUT
from afterflow.models.adapters import LoRA
from afterflow.models.sd3 import SD3
from afterflow.objectives.advantages import Blend, Normalize
from afterflow.objectives.regression import (
    centred,
    displaced_target,
    group_weight,
    image_error,
    negative_aware,
    optimality,
    softmax_advantages,
    weighted_log_likelihood,
)
from afterflow.sampling.noised import NoisedImages, mean_of_units, noised_images, row_seeds, trainable_images
from afterflow.sampling.rollout import prompt_noise, sample
from afterflow.sampling.schedules import LinearShift
from afterflow.sampling.seeds import generator
from afterflow.sampling.training_times import TrainingTimes
from afterflow.system.errors import ConfigError
from afterflow.train.clock import Clock
from afterflow.train.explore import ExploreOptions
from afterflow.train.lagged import LaggedPolicy
from afterflow.train.local_rows import LocalRows, local_noised_rows, local_prompts
from toy import MLP, averages, learn, prompts, reward

NEAR = {"near": 1.0}
SHORT = {"steps": 10, "group": 8, "schedule": LinearShift(1.0), "kl": 0.0}
METHODS = {
    "nft": DiffusionNFT(NEAR, **SHORT),
    "awm": AWM(NEAR, **SHORT),
    "v_grpo": VGRPO(NEAR, **SHORT),
    "flow_awr": FlowAWR(NEAR, **SHORT),
    "dgpo": DGPO(NEAR, **SHORT),
    "crd": CRD(NEAR, **SHORT, drawing_lag=Lag(flat=5)),
    "online_dpo": OnlineDPO(NEAR, **SHORT),
}
NAN = torch.nan


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_rows(advantage, t=0.5, count=6):
    """Rows of as many images, each of a unit of its own."""
    advantage = torch.as_tensor(advantage).expand(count).clone()
    t = torch.full((count,), t)
    each = torch.arange(count)
    return NoisedImages(noise(count, 2, seed=1), each, each, t, advantage, each, prompts(count))


def gradient(algorithm, rows, model=None, **models):
    model = model or MLP()
    loss, metrics = algorithm.loss(Models(model, **models), rows)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]), loss.detach(), metrics


# Times


@pytest.mark.parametrize("shared", ["image", "group", "batch"])
@pytest.mark.parametrize("choice, count", [("grid", 4), ("strata", 4), ("segments", 5), ("grid", None)])
def test_times_come_from_the_steps_of_the_rollout_and_are_shared_as_asked(choice, count, shared):
    times, grid = TrainingTimes(count, choice, (0.1, 0.8), shared), LinearShift(3.0).times(10)
    sources = [torch.Generator().manual_seed(p) for p in range(3)]
    t = times.draw(grid, 3.0, 5, sources, 0)
    assert t.shape == (3, times.number(10), 5) and times.number(10) == (count or 6)
    if choice == "segments":
        edges = LinearShift(3.0).times(100)[[10 + 14 * j for j in range(6)]]
        assert ((t <= edges[:-1, None]) & (t > edges[1:, None])).all()
    else:
        assert torch.isin(t, grid[1:8]).all()
        assert all(len(t[p, :, i].unique()) == t.shape[1] for p in range(3) for i in range(5))
    if choice == "strata":
        low, high = (grid[1:8][[j * 7 // 4 for j in range(4)]], grid[1:8][[(j + 1) * 7 // 4 - 1 for j in range(4)]])
        assert ((t <= low[:, None]) & (t >= high[:, None])).all()
    assert (t == t[:, :, :1]).all() == (shared != "image")
    assert (t == t[:1]).all() == (shared == "batch")
    again = times.draw(grid, 3.0, 5, [torch.Generator().manual_seed(p) for p in range(3)], 0)
    assert torch.equal(t, again)


def test_nfts_times_are_all_but_one_of_the_steps_and_every_step_has_its_turn():
    grid = LinearShift(3.0).times(10)
    t = TrainingTimes().draw(grid, 3.0, 200, [torch.Generator()], 0)
    assert t.shape == (1, 9, 200) and len(t.unique()) == 10 and grid[0] in t and grid[-1] not in t


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(count=0), "count = 0: at least 1"),
        (dict(span=(0.5, 0.5)), "0 <= first < end <= 1"),
        (dict(span=(0.0, 1.5)), "0 <= first < end <= 1"),
    ],
)
def test_times_that_cannot_be_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        TrainingTimes(**options)


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(times=TrainingTimes(11)), "only 10 of 10 steps are in times.span; lower it, or take segments"),
        (dict(times=TrainingTimes(span=(0.01, 0.09))), "none of 10 steps begins there"),
        (dict(group=1), "take at least 2"),
        (dict(eta=0.5), "take solver = euler"),
        (dict(shared_noise=True), "would be one"),
        (dict(eta=-1.0), "eta = -1.0"),
        (dict(kl=-1.0), "kl = -1.0"),
        (dict(max_advantage=0.0), "must be positive"),
        (dict(steps=0), "steps = 0"),
        (dict(blend=Blend("separate")), "blend.how = separate: an image has one advantage here; take z_sum"),
    ],
)
def test_options_that_no_such_method_has_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        replace(METHODS["nft"], **options)


@pytest.mark.parametrize(
    "method, defaults",
    [
        (DiffusionNFT, dict(beta=1.0, max_advantage=5.0, kl=1e-4, lag=Lag(0.0, 0.001, 0, 0.5), group=24)),
        (AWM, dict(power=0.25, clip=1e-4, trust=1.0, kl=1e-3, lag=Lag(0.0, 0.001, 0, 0.3))),
        (VGRPO, dict(clip=1e-2, squash=3.0, trust=0.0, kl=0.0)),
        (FlowAWR, dict(kl=1e-4, lag=Lag(0.0, 0.001, 0, 0.5), standardize=False)),
        (DGPO, dict(beta=100.0, clip=1e-4, kl=1e-3, lag=Lag(0.0, 0.001, 0, 0.3))),
        (
            CRD,
            dict(
                beta=1.0,
                kl=0.1,
                reference=Reference("base", 4.5),
                lag=Lag(0.25, 0.005, 0, 0.999),
                drawing_lag=Lag(0.0, 0.0075, 75, 0.999),
            ),
        ),
    ],
)
def test_defaults_are_those_that_were_published(method, defaults):
    """As the specifications have them: 2509.16117, 2509.25050, 2604.23380, 2606.30376, 2510.08425, 2603.14128."""
    made = method(NEAR)
    assert {name: getattr(made, name) for name in defaults} == defaults


def test_options_of_one_method_are_refused():
    for name, options, said in (
        ("nft", dict(beta=0.0), "beta = 0.0"),
        ("awm", dict(power=2.0), "power = 2.0"),
        ("awm", dict(clip=0.0), "clip = 0.0"),
        ("v_grpo", dict(squash=0.0), "squash = 0.0"),
        ("dgpo", dict(beta=0.0), "beta = 0.0"),
        ("dgpo", dict(times=TrainingTimes(4)), "compared at one time; take group or batch"),
        ("crd", dict(times=TrainingTimes(4)), "compared at one time"),
        ("flow_awr", dict(normalize=Normalize()), "FlowAWR has no use for it"),
        ("flow_awr", dict(blend=Blend("z_sum")), "take raw_sum"),
        ("online_dpo", dict(normalize=Normalize()), "OnlineDPO has no use for it"),
        ("online_dpo", dict(max_advantage=1.0), "max_advantage = 1.0: OnlineDPO has no use"),
        ("online_dpo", dict(blend=Blend("z_sum")), "blend: a pair is of the best and the worst .*; take raw_sum"),
        ("online_dpo", dict(beta=0.0), "beta = 0.0: it must be positive"),
        (
            "online_dpo",
            dict(weights={WIN_RATE: 1.0}, group=4, compare=Comparisons(opponents=6)),
            "compare.opponents = 6: an even number",
        ),
        ("online_dpo", dict(compare=Comparisons(both_orders=False)), "compare = .*: OnlineDPO has no use"),
        ("online_dpo", dict(lag=Lag(slope=0.01)), "lag = .*: OnlineDPO has no use"),
        ("v_grpo", dict(lag=Lag(slope=0.01)), "lag = .*: VGRPO has no use for it as it is set"),
        ("awm", dict(trust=0.0, lag=Lag(slope=0.01)), "lag = .*: AWM has no use"),
        ("flow_grpo", dict(lag=Lag(slope=0.01)), "lag = .*: FlowGRPO has no use"),
        ("flow_grpo", dict(kernel="cps", kl_scale="legacy"), "has no Δt to leave out"),
    ):
        with pytest.raises(ConfigError, match=said):
            replace({**METHODS, "flow_grpo": FlowGRPO(NEAR)}[name], **options)
    average = Reference("average")
    for method, options in ((FlowGRPO, {}), (VGRPO, {"kl": 0.1}), (OnlineDPO, {})):
        made = method(NEAR, reference=average, lag=Lag(slope=0.01), **options)  # which is held near to that average
        assert made.remarks == ()


@pytest.mark.parametrize(
    "made, said",
    [
        (VGRPO(NEAR, reference=Reference("base")), ["reference"]),
        (DiffusionNFT(NEAR, kl=0.0, reference=Reference("average")), ["reference"]),
        (
            FlowGRPO(NEAR, beta=0.0, reference=Reference("average"), lag=Lag(slope=0.01), kl_scale="legacy"),
            ["reference", "lag", "kl_scale"],
        ),
        (FlowGRPO(NEAR, beta=0.0), []),
    ],
)
def test_what_a_switched_off_kl_has_no_use_for_is_said(made, said):
    """It is not refused: a recipe may have set it, and its user only switches off the KL."""
    assert [sentence.split(" = ")[0] for sentence in made.remarks] == [f"algorithm.{name}" for name in said]
    assert all("has no use without a KL" in sentence for sentence in made.remarks)


# Rows


def test_groups_without_spread_and_images_without_a_reward_have_no_rows():
    advantage = torch.tensor([[1.0, -1.0, NAN], [0.0, 0.0, 0.0], [NAN, 2.0, NAN], [0.0, 1.0, -1.0]])
    used = trainable_images(advantage)
    assert used.tolist() == [[True, True, False], [False] * 3, [False] * 3, [True] * 3]
    leaves, t = noise(4, 3, 2), torch.rand(4, 2, 3)
    seeds = torch.arange(24).view(4, 2, 3)
    for together, sizes, owners in (
        ("row", [1] * 10, [0] * 4 + [3] * 6),
        ("group", [2, 2, 3, 3], [0, 0, 3, 3]),
        ("image", [2] * 5, [0, 0, 3, 3, 3]),
    ):
        rows, group, count = noised_images(leaves, prompts(4), t, seeds, advantage, together)
        assert len(rows) == 10 and count.tolist() == sizes and group.tolist() == owners
        p, i = rows.image // 3, rows.image % 3
        assert torch.equal(rows.x0(), leaves[p, i]) and torch.equal(rows.advantage, advantage[p, i])
        j = (rows.seed - p * 6 - i) // 3
        assert torch.equal(rows.seed, seeds[p, j, i]) and torch.equal(rows.t, t[p, j, i])
        assert rows.cond.index.tolist() == prompts(4)[p].index.tolist()
        assert torch.equal(rows.unit.unique_consecutive(return_counts=True)[1], count)
        key = {"row": torch.arange(10), "group": p * 2 + j, "image": p * 3 + i}[together]
        assert ((rows.unit[:, None] == rows.unit) == (key[:, None] == key)).all()
        some = rows[torch.tensor([7, 2, 2])]
        assert torch.equal(some.x0(), rows.x0()[[7, 2, 2]]) and torch.equal(some.noise(), rows.noise()[[7, 2, 2]])


def test_noise_is_of_a_seed_and_seeds_are_shared_as_asked():
    sources = lambda: [torch.Generator().manual_seed(p) for p in range(2)]
    fresh, group, prompt = (
        row_seeds((3, 4), *shared, sources()) for shared in ((False, False), (False, True), (True, True))
    )
    assert len(fresh.unique()) == 24 and len(group.unique()) == 6 and len(prompt.unique()) == 2
    assert (group == group[..., :1]).all() and (prompt == prompt[:, :1, :1]).all()
    rows = some_rows(1.0)
    same = replace(rows, seed=torch.tensor([5, 5, 5, 6, 6, 5])).noise()
    assert torch.equal(same[0], same[5]) and torch.equal(same[3], same[4]) and not torch.equal(same[0], same[3])
    assert torch.equal(same[3], torch.randn(2, generator=torch.Generator().manual_seed(6)))


def test_images_of_half_precision_become_rows_in_fp32():
    rows = replace(some_rows(1.0), images=noise(6, 2, seed=1).half())
    assert rows.x0().dtype == rows.noise().dtype == torch.float32


@pytest.mark.parametrize("sharing, count", [("fresh", 4 * 2 * 8), ("group", 4 * 2), ("prompt", 4)])
def test_a_method_draws_as_many_noises_as_its_option_says(sharing, count):
    algorithm = replace(METHODS["nft"], noise=sharing, times=TrainingTimes(2))
    sources = [torch.Generator().manual_seed(p) for p in range(4)]
    plan = algorithm.plan(0, generator(0))
    policy = MLP()
    made = sample(
        policy, algorithm.step_kernel, plan, prompts(4), prompt_noise(sources, 8, torch.empty(4, 1, 2)), sources
    )
    rows, _, _ = algorithm.noised(made, noise(4, 8), sources, 0)
    assert len(rows) == 64 and len(rows.seed.unique()) == count


def test_rollouts_are_of_the_ode_or_of_the_sde_in_all_steps_but_the_last():
    assert replace(METHODS["nft"], steps=1).plan(0, generator(0)).second_order == ()
    ode = METHODS["nft"].plan(0, generator(0))
    sde = replace(METHODS["nft"], eta=0.7, solver="euler").plan(0, generator(0))
    assert [eta for eta in ode.eta if eta] == [] and [eta > 0 for eta in sde.eta] == [True] * 9 + [False]
    assert ode.second_order == tuple(range(1, 10)) and sde.second_order == ()


def test_a_method_that_compares_with_other_prompts_waits_for_the_batch_and_one_of_pairs_does_not():
    assert (
        DiffusionNFT(NEAR).requirements.whole_batch
        and DiffusionNFT(NEAR, blend=Blend(again=True)).requirements.whole_batch
    )
    assert not DGPO(NEAR).requirements.whole_batch and not OnlineDPO(NEAR).requirements.whole_batch
    assert DGPO(NEAR, normalize=Normalize(centre="batch")).requirements.whole_batch


@pytest.mark.parametrize("trust", [0.0, 0.3])
def test_v_grpo_asks_for_the_old_policy_where_images_stay_near_to_its_own(trust):
    algorithm = VGRPO(NEAR, trust=trust)
    assert algorithm.uses_old == bool(trust) and list(algorithm.requirements.lagged) == [OLD] * bool(trust)


def test_ratios_are_logged_by_their_mean_and_their_largest():
    before = torch.tensor([0.0, 0.0, 0.0])
    rows = replace(some_rows(1.0, count=3), before=before)
    _, metrics = ratio_loss(torch.tensor([0.0, 0.1, -0.1]).double(), rows, torch.ones(3), 0.5)
    ratios = torch.tensor([0.0, 0.1, -0.1]).exp()
    assert metrics["ratio_max"].item() == pytest.approx(ratios.max().item())
    assert metrics["ratio_mean"].item() == pytest.approx(ratios.mean().item())


@pytest.mark.parametrize("name", METHODS)
def test_rows_and_microbatches_are_those_of_one_process_however_prompts_are_spread(name):
    algorithm = METHODS[name]
    plan = algorithm.plan(0, generator(0))
    advantage = noise(4, 8)
    advantage[1], advantage[2, :3] = 0.0, NAN
    if name == "online_dpo":
        advantage[:, 2:] = NAN  # a prompt has one pair
    policy = MLP()

    def rows_of(index):
        mine = local_prompts(prompts(4), index, 0, 0)
        start = prompt_noise(mine.noise, 8, torch.empty(len(index), 1, 2))
        made = sample(policy, algorithm.step_kernel, plan, mine.cond, start, mine.noise)
        assert len(made.x) == 1 and made.mean == []  # nothing but the images is kept
        return local_noised_rows(algorithm, made, advantage, mine, 0, 0)

    whole, parts = rows_of(torch.arange(4)), [rows_of(torch.arange(3)), rows_of(torch.arange(3, 4))]
    assert all(part.global_count == whole.global_count == len(whole.global_index) for part in parts)
    assert torch.equal(whole.global_index, torch.arange(whole.global_count))
    assert torch.equal(torch.cat([part.global_index for part in parts]), whole.global_index)
    for column in ("t", "seed", "advantage"):
        spread = torch.cat([getattr(part.examples, column) for part in parts])
        assert torch.equal(spread, getattr(whole.examples, column))
    # Eight are tied, and three have no reward.
    assert whole.share == {"online_dpo": 4 / 6}.get(name, 21 / 29)
    order = torch.randperm(whole.global_count, generator=torch.Generator().manual_seed(0))
    (batches,) = whole.microbatches(order, [torch.arange(4)], 7)
    everything = torch.cat(list(batches))
    assert everything.sort().values.tolist() == list(range(len(whole.examples)))
    largest = whole.unit_rows
    for rows in batches:
        assert len(rows) <= max(7, largest)
        if whole.sizes is not None:  # no unit is cut
            units, counts = whole.examples.unit[rows].unique_consecutive(return_counts=True)
            assert len(units.unique()) == len(units) and torch.equal(counts, whole.sizes[units])


def test_units_of_one_row_are_split_as_rows_are():
    units = LocalRows(torch.arange(5), torch.arange(5), 5, 1.0, torch.tensor([0, 0, 1, 1, 1]))
    (first, second) = units.microbatches(torch.tensor([4, 0, 2, 1, 3]), [torch.tensor([0]), torch.tensor([1])], 2)
    assert [rows.tolist() for rows in first] == [[0, 1]] and [rows.tolist() for rows in second] == [[4, 2], [3]]


# Losses


def test_the_image_error_is_normalised_by_itself_and_in_fp64():
    v, x, x0, t = noise(3, 4), noise(3, 4, seed=1), noise(3, 4, seed=2), torch.tensor([0.2, 0.5, 1.0])
    error = image_error(v.requires_grad_(), x, t, x0)
    off = (x - t[:, None] * v - x0).double()
    torch.testing.assert_close(error, (off**2).mean(1) / off.abs().mean(1), rtol=1e-6, atol=1e-9)
    assert error.dtype == torch.float64
    (slope,) = torch.autograd.grad(error.sum(), v)
    expected = -2 * t[:, None] * off / 4 / off.abs().mean(1, keepdim=True)  # its divisor has no gradient
    torch.testing.assert_close(slope, expected.detach().float(), rtol=1e-5, atol=1e-7)
    exact = image_error((x - x0) / t[:, None], x, t, x0)
    assert exact.max() < 1e-6  # and no division by 0


def test_the_good_and_the_bad_policy_mirror_each_other_about_the_old_one():
    v, old = noise(2, 3), noise(2, 3, seed=1)
    good, bad = negative_aware(v, old, 0.3)
    torch.testing.assert_close(good + bad, 2 * old)
    torch.testing.assert_close(good - old, 0.3 * (v - old))
    assert optimality(torch.tensor([-9.0, -5.0, 0.0, 2.5, 5.0, 9.0]), 5.0).tolist() == [0, 0, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.0])
def test_nft_has_no_gradient_where_no_image_is_better_and_mirrored_ones_elsewhere(beta):
    algorithm = replace(METHODS["nft"], beta=beta, lag=Lag(0, 0, 0, 0))
    indifferent, _, metrics = gradient(algorithm, some_rows(0.0))
    assert indifferent.abs().max() < 1e-7 and metrics["optimality"] == 0.5
    good, bad = (gradient(algorithm, some_rows(a))[0] for a in (2.0, -2.0))
    assert good.norm() > 1e-3
    torch.testing.assert_close(good, -bad, rtol=1e-4, atol=1e-7)
    # At the old policy it is the gradient of S, weighted by 2r - 1, whatever beta is.
    model, rows = MLP(), some_rows(2.0)
    x = (1 - rows.t)[:, None] * rows.x0() + rows.t[:, None] * rows.noise()
    (5 * (2 * 0.7 - 1) * image_error(model(x, rows.t, rows.cond), x, rows.t, rows.x0())).mean().backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(good, expected, rtol=1e-4, atol=1e-7)


def test_nft_pulls_back_to_an_old_policy_it_has_left():
    old = MLP(seed=3)
    away, _, metrics = gradient(METHODS["nft"], some_rows(0.0), lagged={"old": old})
    assert away.norm() > 1e-3 and metrics["old_distance"] > 0


def test_awm_has_the_gradient_of_its_weighted_log_likelihood():
    algorithm, rows = replace(METHODS["awm"], trust=0.0), some_rows(2.0, t=0.3)
    ours, loss, metrics = gradient(algorithm, rows)
    model = MLP()
    x = 0.7 * rows.x0() + 0.3 * rows.noise()
    error = (model(x, rows.t, rows.cond) - (rows.noise() - rows.x0())).double().square().mean(1)
    L = -(0.3 / 0.25) * ((error + 1e-10) ** 0.25 - 1e-10**0.25)
    (-(2.0 / 5) * L).mean().backward()
    torch.testing.assert_close(ours, torch.cat([p.grad.flatten() for p in model.parameters()]), rtol=1e-4, atol=1e-8)
    assert loss.item() == pytest.approx(-2 / 5) and "ratio_mean" not in metrics  # ρ is 1
    torch.testing.assert_close(weighted_log_likelihood(error, rows.t, 1.0), -rows.t * error, rtol=1e-6, atol=1e-8)
    pulled = gradient(METHODS["awm"], rows, lagged={"old": MLP(seed=3)})[0]
    assert not torch.allclose(pulled, ours)


@pytest.mark.parametrize("updates", [1, 3])
@pytest.mark.parametrize("name", METHODS)
def test_the_policy_before_several_updates_takes_one_more_pass_of_its_own_rows_alone(name, updates):
    algorithm, passes = METHODS[name], []

    def policy(x, t, cond):
        passes.append(len(x))
        return MLP()(x, t, cond)

    other = lambda x, t, cond: 1 / 0  # of the other networks none is asked
    models = Models(policy, other, lagged=dict.fromkeys(algorithm.requirements.lagged, other), explorer=MLP())
    options = ExploreOptions(seed=0, latent_shape=(2,), chunk=8, updates=updates)
    iteration = trial_iteration(algorithm, models, prompts(4), options, Clock())
    needed = updates > 1 and algorithm.has_ratio
    assert ("nfe/before" in iteration.metrics) == needed == (iteration.rows.before is not None) == bool(passes)
    if needed:
        microbatches = [len(part) for update in iteration.updates for partition in update for part in partition]
        assert passes == microbatches and max(passes) <= max(8, algorithm.unit_rows)
        alone = algorithm.log_likelihoods(Models(MLP()), iteration.rows)
        torch.testing.assert_close(iteration.rows.before, alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_a_whole_unit_has_the_rows_that_the_method_says(name):
    algorithm = METHODS[name]
    plan, sources = algorithm.plan(0, generator(0)), [generator(0)] * 2
    rollout = sample(MLP(), algorithm.step_kernel, plan, prompts(2), noise(2, algorithm.group, 2), sources)
    scores = random_scores(algorithm, rollout.leaves, [{}, {}], sources, Clock())
    sizes = algorithm.noised(rollout, algorithm.credit(plan, [], scores)[0][..., 0], sources, 0)[2]
    assert sizes.unique().tolist() == [algorithm.unit_rows]


@pytest.mark.parametrize("name, rows", [("dgpo", 24), ("v_grpo", 4), ("nft", 4), ("online_dpo", 4)])
def test_memory_is_counted_for_all_rows_of_one_backward_pass(name, rows):
    algorithm = replace(METHODS[name], group=24, weights={"jpeg_compressibility": 1.0})
    run = Run(algorithm, ShapesPrompts(count=4), SD3("tiny"), LoRA(rank=2, alpha=2), name="it").with_options(chunk=4)
    counts = network_counts(run)
    needs = memory_needs(run.with_options(retained_rows=0), counts, NO_ROLLOUT)
    assert needs["graphs until their backward pass"] == counts.saved * rows // 4


@pytest.mark.parametrize("sharding", ["zero2", "full"])
def test_copies_beside_the_policy_hold_no_gathered_weights(monkeypatch, sharding):
    """A copy has no backward pass that would let them go, and an average changes in its shards alone."""
    seen = []
    monkeypatch.setattr(velocities, "shard_network", lambda *arguments: seen.append(arguments[2]))
    monkeypatch.setattr(velocities, "blocks", lambda network: ())
    run = SimpleNamespace(distribution=SimpleNamespace(shard=sharding))
    processes = SimpleNamespace(sharded=True, count=2, accelerator=SimpleNamespace(device="cpu"))
    velocities.VelocityFactory(run, None, processes).shards(MLP())
    assert seen == ["full"]


@pytest.mark.parametrize("name", ["awm", "v_grpo"])
def test_with_several_updates_the_ratio_is_to_the_policy_before_the_first(name):
    algorithm, rows = replace(METHODS[name], clip=1e-3, **({"trust": 0.0} if name == "awm" else {})), some_rows(2.0)
    ratio_one = gradient(algorithm, replace(rows, before=algorithm.log_likelihoods(Models(MLP()), rows)))
    assert ratio_one[2]["ratio_mean"] == pytest.approx(1) and ratio_one[0].norm() > 0
    elsewhere = replace(rows, before=algorithm.log_likelihoods(Models(MLP(seed=5)), rows))
    model = MLP()
    _, _, metrics = gradient(algorithm, elsewhere, model)
    assert metrics["ratio_max"] != 1
    clipped = replace(elsewhere, before=elsewhere.before - 10)  # a ratio far above 1 + ε, of images that are better
    assert gradient(algorithm, clipped)[0].norm() == 0


def test_v_grpos_likelihood_is_of_an_image_and_varies_less_where_a_group_shares_times_and_noise():
    algorithm, model = METHODS["v_grpo"], MLP()
    leaves = 1 + 0.01 * noise(6, 8, 2)  # groups of images that hardly differ
    advantage = noise(6, 8)

    def spread(shared, noise_of):
        times = TrainingTimes(4, "segments", shared=shared)
        each = replace(algorithm, times=times, noise=noise_of)
        sources = [torch.Generator().manual_seed(p) for p in range(6)]
        t = times.draw(each.plan(0, generator(0)).times, 1.0, 8, sources, 0)
        seeds = row_seeds((4, 8), False, noise_of == "group", sources)
        rows, _, sizes = noised_images(leaves, prompts(6), t, seeds, advantage, "image")
        assert set(sizes.tolist()) == {4}
        L = each.log_likelihood(each._states(Models(model), rows)).view(6, 8, 4)
        assert torch.equal(L[..., 0], L[..., 3])  # one number for the times of an image
        return L[..., 0].std(1).mean()

    assert spread("group", "group") < 0.25 * min(spread("image", "fresh"), spread("group", "fresh"))


def test_v_grpo_bounds_advantages_with_one_update():
    algorithm = METHODS["v_grpo"]
    _, loss, _ = gradient(algorithm, some_rows(4.0))
    assert loss.item() == pytest.approx(-3 * torch.tensor(4 / 3).tanh().item())


def test_flow_awr_with_advantages_of_zero_distils_the_old_policy():
    old, rows, algorithm = MLP(seed=3), some_rows(0.0), METHODS["flow_awr"]
    model = MLP()
    _, loss, metrics = gradient(algorithm, rows, model, lagged={"old": old})
    x = 0.5 * rows.x0() + 0.5 * rows.noise()
    with torch.no_grad():
        distance = (model(x, rows.t, rows.cond) - old(x, rows.t, rows.cond)).square().mean()
    assert loss.item() == pytest.approx(distance.item(), rel=1e-5) == metrics["old_distance"].item()
    line, target = noise(2, 3), displaced_target(noise(2, 3), noise(2, 3, seed=1), torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(target[0], line[0])
    torch.testing.assert_close(target[1], 2 * noise(2, 3, seed=1)[1] - line[1])


def test_softmax_advantages_sum_to_zero_and_know_no_missing_reward():
    reward = torch.tensor([[0.0, 1.0, 2.0, NAN], [3.0, 3.0, 3.0, 3.0]])
    A = softmax_advantages(reward)
    gamma = torch.tensor([0.0, 1, 2, 3, 3, 3, 3]).std(correction=0)
    torch.testing.assert_close(A[0, :3], 3 * (reward[0, :3] / gamma).softmax(0) - 1)
    assert A[0, 3].isnan() and A[1].abs().max() < 1e-6 and A[A.isfinite()].min() > -1
    assert softmax_advantages(torch.full((2, 3), 4.0)).tolist() == [[0.0] * 3] * 2  # no spread at all
    assert softmax_advantages(torch.full((1, 3), NAN)).isnan().all()
    scores = Scores({"near": reward})
    plain, scaled = (replace(METHODS["flow_awr"], standardize=s).credit(None, [], scores)[0] for s in (False, True))
    known = plain.isfinite()
    torch.testing.assert_close(scaled[known], plain[known] / plain[known].std(correction=0).clamp(min=1e-2))


def test_dgpos_weight_in_closed_form_and_its_gates():
    A, gain, unit = torch.tensor([1.0, -1.0, 2.0, 0.0]), torch.tensor([0.1, 0.3, -0.2, 9.0]), torch.tensor([0, 0, 4, 4])
    w = group_weight(A, gain.requires_grad_(), unit, 10.0)
    expected = torch.tensor([10 * (0.1 - 0.3) / 2, 10 * (-0.4) / 2]).sigmoid().repeat_interleave(2)
    torch.testing.assert_close(w, expected)
    assert not w.requires_grad
    model, rows = MLP(), some_rows([1.0, 1.0, -1.0, -1.0, 0.0, -1.0])
    x, line = 0.5 * (rows.x0() + rows.noise()), rows.noise() - rows.x0()
    with torch.no_grad():
        d = (model(x, rows.t, rows.cond) - line).square().mean(1)
    errors = d + torch.tensor([0.5, -0.5, 0.5, -0.5, 0.5, -0.5]).clamp(
        min=-d.min()
    )  # of the average: ρ above or below 1
    average = lambda x, t, cond: line + errors.sqrt()[:, None]
    _, _, metrics = gradient(METHODS["dgpo"], rows, model, reference=model, lagged={"old": average})
    assert metrics["clip_fraction"] == pytest.approx(3 / 6)  # good ones above, bad ones below, and none between
    assert metrics["group_weight"] == 0.5


def test_dgpo_where_nothing_has_moved_is_the_weighted_error_in_closed_form():
    """With w = 1/2 its gradient is that of half of A d; a ratio of 1 is clipped on neither side."""
    rows = replace(some_rows([1.0, -1.0, 2.0, -2.0, 0.5, -0.5]), unit=torch.tensor([0, 0, 1, 1, 2, 2]))
    model, again = MLP(), MLP()
    grad, loss, metrics = gradient(METHODS["dgpo"], rows, model, reference=MLP(), lagged={"old": MLP()})
    x, line = 0.5 * (rows.x0() + rows.noise()), rows.noise() - rows.x0()
    expected = (0.5 * rows.advantage * (again(x, rows.t, rows.cond) - line).square().mean(1)).mean()
    expected.backward()
    assert metrics["clip_fraction"] == 0 and loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(grad, torch.cat([p.grad.flatten() for p in again.parameters()]), rtol=1e-5, atol=1e-8)


def test_crd_asks_that_gains_differ_within_a_group_as_rewards_do():
    values, unit = torch.tensor([1.0, 3.0, 5.0, 9.0]), torch.tensor([2, 2, 0, 0])
    assert centred(values, unit).tolist() == [-1, 1, -2, 2] and mean_of_units(values, unit).tolist() == [2, 2, 7, 7]
    rows = replace(some_rows([1.0, -1.0, 3.0, -3.0, 0.0, 0.0]), unit=torch.tensor([0, 0, 1, 1, 2, 2]))
    _, loss, metrics = gradient(METHODS["crd"], rows)
    centred_rewards = torch.tensor([0.1, -0.1, 0.3, -0.3, 0.0, 0.0])  # where nothing is gained yet
    assert loss.item() == pytest.approx((5 * centred_rewards.square()).mean().item(), rel=1e-5)
    assert metrics["gain"] == 0


def test_crds_gradient_is_of_each_gain_and_not_of_the_mean():
    algorithm = replace(METHODS["crd"], beta=2.0)
    rows = replace(some_rows([1.0, -1.0, 3.0, -3.0, 0.0, 0.0]), unit=torch.tensor([0, 0, 1, 1, 2, 2]))
    model, old = MLP(seed=3), MLP()
    grad, _, _ = gradient(algorithm, rows, model, lagged={"old": old})
    x = 0.5 * (rows.x0() + rows.noise())
    error = lambda f: image_error(f(x, rows.t, rows.cond), x, rows.t, rows.x0())
    again = MLP(seed=3)
    gain = error(old).detach() - error(again)
    misfit = 2.0 * centred(gain.detach(), rows.unit) - centred(optimality(rows.advantage, 5.0), rows.unit)
    # d/dθ of c/β (β gain - ...)², where the group's mean of gains is a constant.
    (5.0 / 2.0 * 2 * misfit * 2.0 * gain).mean().backward()
    torch.testing.assert_close(grad, torch.cat([p.grad.flatten() for p in again.parameters()]), rtol=1e-5, atol=1e-8)


def test_online_dpo_pairs_the_best_with_the_worst_and_is_log_2_at_the_reference():
    algorithm = METHODS["online_dpo"]
    reward = torch.tensor([[0.0, 3.0, NAN, 1.0], [2.0, 2.0, 2.0, NAN], [NAN] * 4, [NAN, 1.0, NAN, 0.5]])
    roles = algorithm.credit(None, [], Scores({"near": reward}))[0][..., 0]
    assert roles.nan_to_num(9).tolist() == [[-1, 1, 9, 9], [9] * 4, [9] * 4, [9, 1, 9, -1]]
    assert algorithm.requirements.reference is not None, "its loss compares with the reference, whatever its KL"
    model = MLP()
    rows = replace(some_rows([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]), unit=torch.tensor([0, 0, 1, 1, 2, 2]))
    grad, loss, _ = gradient(algorithm, rows, model, reference=copy.deepcopy(model))
    assert loss.item() == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-6)
    swapped = gradient(algorithm, replace(rows, advantage=-rows.advantage), MLP(), reference=MLP())[0]
    torch.testing.assert_close(grad, -swapped, rtol=1e-4, atol=1e-7)  # the loser is pushed as the winner is pulled
    # Away from it: the closed form of a pair.
    away, reference = MLP(seed=3), MLP()
    _, loss, metrics = gradient(replace(algorithm, beta=3.0), rows, away, reference=reference)
    x, line = 0.5 * (rows.x0() + rows.noise()), rows.noise() - rows.x0()
    d = lambda f: (f(x, rows.t, rows.cond) - line).square().mean(1).detach()
    moved = (d(away) - d(reference)).view(3, 2)
    margin = -3.0 / 2 * (moved[:, 0] - moved[:, 1])
    torch.testing.assert_close(loss, -margin.sigmoid().log().mean())
    assert metrics["preference_accuracy"] == (margin > 0).float().mean()


def test_a_judge_may_rank_the_images_of_online_dpo():
    algorithm = OnlineDPO(**SHORT)
    assert algorithm.requirements.comparisons is not None and METHODS["online_dpo"].requirements.comparisons is None
    beats = torch.tensor([[NAN, 1.0, 0.0], [0.0, NAN, 0.0], [1.0, 1.0, NAN]])[None]
    roles = algorithm.credit(None, [], Scores({}, {"win_rate": beats}))[0][..., 0]
    assert roles.nan_to_num(9).tolist() == [[9, -1, 1]]


def test_the_distance_to_the_reference_is_added_with_its_weight():
    rows, reference = some_rows(1.0), MLP(seed=3)
    plain = gradient(METHODS["nft"], rows)
    held = gradient(replace(METHODS["nft"], kl=0.5), rows, reference=reference)
    assert held[1] - plain[1] == pytest.approx(0.5 * held[2]["kl"].item(), rel=1e-5) and held[2]["kl"] > 0


def test_a_beta_that_was_not_measured_with_a_reward_is_said_and_not_refused():
    both = {"geneval_hf_flowgrpo": 0.5, "pickscore": 0.5}
    assert DiffusionNFT(both).remarks == () == DiffusionNFT({"ocr": 1.0}, beta=0.1).remarks
    (remark,) = DiffusionNFT(both, beta=5.0).remarks
    assert remark.startswith("beta = 5 has not been measured with geneval_hf_flowgrpo: published are 1 to 1")
    assert len(DiffusionNFT({"ocr": 1.0}).remarks) == 1 and DiffusionNFT(NEAR, beta=9.0).remarks == ()


# Averages of the policy


def test_a_lag_rises_with_updates_to_its_highest():
    lag = Lag(start=0.25, slope=0.1, flat=3, highest=0.9)
    assert [round(lag.decay(k), 3) for k in (0, 3, 4, 9, 10, 99)] == [0.25, 0.25, 0.35, 0.85, 0.9, 0.9]
    assert Lag(0, 0, 0, 0.5).follows_at_once and Lag(highest=0.0).follows_at_once and not Lag().follows_at_once
    for options, said in ((dict(highest=1.0), "< 1"), (dict(start=0.6), "start"), (dict(slope=-1.0), "0 or more")):
        with pytest.raises(ConfigError, match=said):
            Lag(**options)


def test_an_average_follows_once_an_iteration_and_not_where_no_update_was_made():
    policy, copied = (torch.nn.Parameter(torch.tensor([value])) for value in (1.0, 0.0))
    lagged = LaggedPolicy({"p": copied}, Lag(start=0.5, slope=0.1, highest=0.8))
    lagged.follow({"p": policy}, 0)
    assert copied.item() == 0 and lagged.updates == 0
    lagged.follow({"p": policy}, 2)
    assert copied.item() == pytest.approx(0.3) and lagged.updates == 2


@pytest.mark.parametrize("name", METHODS)
def test_averages_are_made_only_where_they_differ_from_the_policy(name):
    algorithm = METHODS[name]
    assert learns_from_finished(algorithm)
    expected = {"v_grpo": set(), "online_dpo": set(), "crd": {"old", "drawing"}}.get(name, {"old"})
    assert set(algorithm.requirements.lagged) == expected
    drawn = {"nft": "old", "flow_awr": "old", "crd": "drawing"}
    assert algorithm.requirements.explorer == drawn.get(name)
    if "old" in expected and name != "crd":
        still = replace(algorithm, lag=Lag(highest=0.0))
        assert not still.requirements.lagged and still.requirements.explorer is None


@pytest.mark.parametrize("reference", ["start", "base", "average"])
def test_the_reference_is_the_one_that_was_asked_for(reference):
    for algorithm in (replace(METHODS["nft"], kl=0.1), FlowGRPO(NEAR, beta=0.1)):
        held = replace(algorithm, reference=Reference(reference, 4.5)).requirements
        assert held.reference == Reference(reference, 4.5)
        assert ("average" in held.lagged) == (reference == "average")
    unused = replace(METHODS["nft"], kl=0.0, reference=Reference("average")).requirements
    assert unused.reference is None and "average" not in unused.lagged
    assert FlowGRPO(NEAR, beta=0.0).requirements.reference is None
    assert METHODS["nft"].requirements.reference is None and METHODS["dgpo"].requirements.reference is not None


# The loop


@pytest.mark.parametrize("name, updates", [*((name, 1) for name in METHODS), ("awm", 2), ("v_grpo", 2)])
def test_the_reward_rises(base, name, updates):
    algorithm = METHODS[name]
    if name == "dgpo":
        algorithm = replace(algorithm, beta=1.0, clip=1.0, lag=Lag(highest=0.0), times=TrainingTimes(9, shared="group"))
    if name == "online_dpo":
        algorithm = replace(algorithm, beta=1.0)
    if name == "v_grpo":
        algorithm = replace(algorithm, clip=0.5)
    if name == "awm":
        algorithm = replace(algorithm, clip=1.0, trust=0.0)
    model = copy.deepcopy(base).requires_grad_(True)
    start = copy.deepcopy(base)
    for _ in learn(algorithm, model, 24, lr=3e-3, chunk=64, updates=updates, reference=start):
        pass
    print(f"{name}: {reward(base):.2f} -> {reward(model):.2f}")
    assert reward(model) > reward(base) + 0.2


def test_the_loop_draws_with_the_average_and_moves_it(base):
    algorithm = replace(METHODS["nft"], lag=Lag(start=0.9, highest=0.95))
    model = copy.deepcopy(base).requires_grad_(True)
    lagged = averages(algorithm, model)
    network, policy = lagged["old"]
    calls = []
    wrap = lambda field: (
        lambda x, t, cond: (calls.append((field is network, torch.is_grad_enabled())), field(x, t, cond))[1]
    )
    metrics = [m for _, m in learn(algorithm, model, 3, lr=1e-3, updates=1, lagged=lagged, wrap=wrap)]
    assert policy.updates == 3
    moved, left = ((a - b).norm() for a, b in zip(network.parameters(), base.parameters())), 0
    assert all(m > 0 for m in moved) and left == 0
    assert {grad for old, grad in calls if old} == {False} and (False, False) not in calls  # the policy draws nothing
    assert metrics[0]["old_distance"] == 0 < metrics[2]["old_distance"]
    assert metrics[0]["nfe/old policy"] == metrics[0]["nfe/update"] == 9
