"""The loss is averaged over all steps that a rollout trains, though those without pull cost no forward pass."""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from afterflow.algorithms.base import Models, Scores
from afterflow.algorithms.branch_grpo import BranchGRPO
from afterflow.algorithms.dance_grpo import DanceGRPO
from afterflow.algorithms.ddpo import DDPO
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.mix_grpo import MixGRPO
from afterflow.algorithms.pref_grpo import PrefGRPO
from afterflow.algorithms.pruning import Pruning
from afterflow.algorithms.windows import SlidingWindow
from afterflow.sampling.kernels import flow_sde
from afterflow.sampling.rollout import sample
from afterflow.sampling.seeds import generator
from afterflow.train.clock import Clock
from afterflow.train.distributed import Processes
from afterflow.train.explore import ExploreOptions, Explorer
from afterflow.train.gradients import gradients
from afterflow.train.local_rows import LocalRows, local_rows
from toy import MLP, exact, prompts, score

NEAR = {"near": 1.0}
METHODS = {
    "ddpo": DDPO(NEAR, steps=4, group=4),
    "flow_grpo": FlowGRPO(NEAR, steps=4, group=4, beta=0.0, shared_noise=True),
    "guard": FlowGRPO(NEAR, steps=4, group=4, beta=0.0, guard=True),
    "dance_grpo": DanceGRPO(NEAR, steps=5, group=4, best_of=2),
    "mix_grpo": MixGRPO(NEAR, steps=6, group=4, window=SlidingWindow(width=2)),
    "branch_grpo": BranchGRPO(NEAR, steps=4, splits=(0, 1)),
    "branch_grpo_extreme": BranchGRPO(NEAR, steps=5, splits=(1, 2), prune=Pruning("extreme", extreme=1)),
    "pref_grpo": PrefGRPO(steps=4, group=4),
}


def with_ties(*tied, failed=()):
    """Scores whose groups of these numbers have one reward, and without those of the failed images."""

    def scores(leaves, records, generators=None, clock=None):
        found = score(leaves, records)
        near, judged = found.rewards["near"], found.judged["win_rate"]
        near[list(tied)] = 0.0
        judged[list(tied)] = judged[list(tied)] * 0 + 0.5
        for p, i in failed:
            near[p, i] = judged[p, i] = judged[p, :, i] = torch.nan
        return Scores({"near": near}, {"win_rate": judged})

    return scores


def update_of(algorithm, scores, chunk=64, partitions=1, reference=None, updates=1):
    """The gradient of each update of an iteration by the real loop, and the rows that were computed."""
    model, processes = MLP(), Processes(Accelerator(cpu=True), grad_partitions=partitions)
    models = Models(model, reference)
    options = ExploreOptions(seed=0, latent_shape=(2,), chunk=chunk, updates=updates, max_missing=0.9)
    explorer = Explorer(algorithm, models, lambda step: prompts(4), scores, options, processes, Clock())
    iteration, parameters, found = explorer.iteration(0), list(model.parameters()), []
    for update in iteration.updates:
        gradients(algorithm, models, iteration, update, parameters, processes)
        found.append(torch.cat([p.grad.flatten() for p in parameters]))
        for p in parameters:
            p.grad = None
    return (torch.stack(found) if found else torch.zeros(0, 1)), iteration


def every_row(algorithm):
    """The same method where rows without pull are computed like the others."""
    kind = type(algorithm)
    told = property(lambda self: replace(kind.requirements.fget(self), all_rows=True))
    different = type(f"Every{kind.__name__}", (kind,), {"requirements": told})
    return different(**{name: getattr(algorithm, name) for name in algorithm.__dataclass_fields__})


def assert_near(found, expected):
    assert (found - expected).norm() < 2e-6 * expected.norm()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tied", [(), (0,), (0, 1, 3)])
def test_rows_without_pull_are_left_out_of_the_passes_and_not_of_the_mean(method, tied):
    algorithm, scores = METHODS[method], with_ties(*tied, failed=[(2, 1)] if method != "branch_grpo_extreme" else [])
    (all_of_them,), every = update_of(every_row(algorithm), scores)
    for chunk, partitions in ((64, 1), (5, 1), (7, 4)):
        (found,), some = update_of(algorithm, scores, chunk, partitions)
        assert_near(found, all_of_them)
        assert len(some.rows) < len(every.rows) or not tied or method == "ddpo"  # whose mean is hardly ever met


@pytest.mark.parametrize("method", [name for name in METHODS if name != "ddpo"])
def test_with_three_of_four_groups_tied_the_gradient_is_a_quarter_of_the_fourth_groups(method):
    algorithm = replace(METHODS[method], **(dict(fraction=1.0) if "dance" in method or "pref" in method else {}))
    (found,), iteration = update_of(algorithm, with_ties(0, 1, 3))
    model = MLP()
    rows = iteration.rows
    loss, _ = algorithm.loss(Models(model), rows)
    alone = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    computed = rows.mass(torch.arange(len(rows)))
    (_,), every = update_of(every_row(algorithm), with_ties(0, 1, 3))
    averaged = every.rows.mass(torch.arange(len(every.rows)))
    if method in ("flow_grpo", "guard", "mix_grpo"):  # all of the fourth group pull
        assert averaged == 4 * computed
    assert_near(found, alone * computed / averaged)


def test_the_gradient_of_flow_grpo_does_not_jump_where_its_kl_begins():
    algorithm, scores = METHODS["flow_grpo"], with_ties(0, 2)
    (without,), _ = update_of(algorithm, scores)
    (with_kl,), iteration = update_of(replace(algorithm, beta=1e-9), scores, reference=MLP(seed=1))
    assert iteration.share == 1
    assert (with_kl - without).norm() < 1e-5 * without.norm()


def test_a_failed_image_is_in_no_mean():
    """It is no example; one of a tied group is."""
    algorithm = METHODS["guard"]
    (found,), iteration = update_of(algorithm, with_ties(0, 1, failed=[(3, 0), (3, 1), (0, 2)]))
    loss, _ = algorithm.loss(Models(model := MLP()), iteration.rows)
    alone = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    # Of 16 images three failed; of the others seven are in tied groups.
    assert iteration.share == pytest.approx(6 / 13)
    assert_near(found, alone * 6 / 13)


def test_updates_share_the_rows_that_pull_and_the_mean():
    algorithm, scores = METHODS["guard"], with_ties(0, 1)
    (whole,), _ = update_of(algorithm, scores)
    halves, iteration = update_of(algorithm, scores, updates=2)
    assert [sum(len(rows) for rows in update[0]) for update in iteration.updates] == [12, 12]
    assert_near(halves.mean(0), whole)


def test_where_every_group_is_tied_there_is_no_update():
    found, iteration = update_of(METHODS["guard"], with_ties(0, 1, 2, 3))
    assert len(found) == 0 and len(iteration.rows) == 0


def test_rows_of_tied_groups_are_left_out_unless_all_are_asked_for():
    made = sample(
        exact,
        flow_sde,
        METHODS["guard"].plan(0, generator()),
        prompts(2),
        torch.zeros(2, 4, 2),
        [generator(p) for p in range(2)],
    )
    advantages = [torch.tensor([[1.0, -1, 0, 0], [0, 0, 0, torch.nan]])[..., None]] * 4
    some, every = local_rows(made, advantages, torch.arange(2)), local_rows(made, advantages, torch.arange(2), True)
    assert (len(some.examples), some.share) == (3 * 2, 2 / 7) and (len(every.examples), every.share) == (3 * 7, 1.0)


def test_rows_of_other_processes_are_no_rows_of_this_one():
    rows = LocalRows(torch.arange(2), torch.tensor([1, 2]), 4, 1.0, torch.tensor([0, 0]))
    parts = rows.microbatches(torch.tensor([0, 3, 2]), [torch.tensor([0])], 4)
    assert [part.tolist() for part in parts[0]] == [[1]]
