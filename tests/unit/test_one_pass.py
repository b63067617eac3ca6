"""One pass gives the gradients of two: the graphs of the rollout stand for what the update would compute again."""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from afterflow.algorithms.base import Models, Scores
from afterflow.algorithms.branch_grpo import BranchGRPO
from afterflow.algorithms.dance_grpo import DanceGRPO
from afterflow.algorithms.ddpo import DDPO
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.flow_opd import FlowOPD
from afterflow.algorithms.mix_grpo import MixGRPO
from afterflow.algorithms.pref_grpo import PrefGRPO
from afterflow.algorithms.pruning import Pruning
from afterflow.algorithms.windows import SlidingWindow
from afterflow.models.wrappers import in_chunks
from afterflow.objectives.advantages import Blend, Normalize
from afterflow.train.clock import Clock
from afterflow.train.distributed import Processes
from afterflow.train.explore import ExploreOptions, Explorer
from afterflow.train.gradients import gradients
from afterflow.train.one_pass import OnePass
from afterflow.train.reward_history import RewardHistory
from toy import MLP, TASKS, prompts, score

NEAR, TWO = {"near": 1.0}, {"near": 0.5, "far": 1.5}
WIN = {"win_rate": 0.4, "near": 0.6}
BRANCH = BranchGRPO(NEAR, steps=6, splits=(0, 2))
METHODS = {
    "flow": FlowGRPO(NEAR, steps=5, group=6, beta=0.0),
    "flow with a KL": FlowGRPO(NEAR, steps=5, group=6, beta=0.5),
    "flow fast": FlowGRPO(NEAR, steps=6, group=5, window=2, beta=0.1, shared_noise=True),
    "flow over the batch": FlowGRPO(NEAR, steps=4, group=6, beta=0.0, normalize=Normalize(scale="batch")),
    "guard": FlowGRPO(NEAR, steps=5, group=6, beta=0.3, guard=True),
    "cps": FlowGRPO(NEAR, steps=5, group=6, kernel="cps", window=2, density="variance_free", beta=0.0),
    "dance": DanceGRPO(TWO, steps=6, group=6),
    "dance best of": DanceGRPO(NEAR, steps=6, group=6, best_of=2),
    "mix": MixGRPO(TWO, steps=8, group=6, window=SlidingWindow(3)),
    "mix flash": MixGRPO(NEAR, steps=10, group=6, flash=0.5),
    "branch": BRANCH,
    "branch pruned": replace(BRANCH, prune=Pruning("parent_top1", depth=1)),
    "branch mix": replace(BRANCH, mix=SlidingWindow(2)),
    "pref": PrefGRPO(WIN, steps=6, group=6),
    "pref by group": PrefGRPO(WIN, steps=6, group=6, blend=Blend("z_sum"), guard=False),
    "ddpo": DDPO(NEAR, steps=5, group=2),
    "ddpo with a history": DDPO(NEAR, steps=5, group=2, history=8, min_count=2),
    "opd": FlowOPD(steps=5, group=4, anchor="base", beta=0.3, route="prompt"),
    "opd full": FlowOPD(steps=5, group=4, gradient="full", sampler="sde", weight="kl", anchor=None, route="prompt"),
}


def both_scores(missing=False, tied=False):
    """Two rewards and a judge; some are missing, and those of a task are equal."""

    def scores(leaves, records, streams, clock):
        made = score(leaves, records)
        near = made.rewards["near"].clone()
        index = [TASKS.index(record["prompt"]) for record in records]
        if tied:
            near[[task == 0 for task in index]] = 1.0
        if missing:
            near[:, 1] = torch.nan
        return Scores({"near": near, "far": -3 * near.roll(1, 1) ** 2}, made.judged)

    return scores


def made_by(algorithm, retained_rows, *, scores, partitions=1, chunk=8, overlap=False, iterations=1):
    """The gradients and the metrics of each iteration, by one pass or by two."""
    policy, other = MLP(1), MLP(2)
    velocity = in_chunks(policy, chunk)
    models = Models(velocity, in_chunks(other, chunk), {task: in_chunks(MLP(3), chunk) for task in TASKS}, None)
    if algorithm.requirements.anchor:
        models = replace(models, anchor=in_chunks(other, chunk))
    processes = Processes(Accelerator(cpu=True), grad_partitions=partitions)
    options = ExploreOptions(7, (2,), chunk, max_missing=0.5, overlap=overlap)
    history = RewardHistory(8) if algorithm.requirements.history else None
    explorer = Explorer(algorithm, models, lambda step: prompts(6), scores, options, processes, Clock(), history)
    parameters, out = list(policy.parameters()), []
    for step in range(iterations):
        if retained_rows:
            iteration = OnePass(explorer, step, retained_rows)
            ((measured, problem),) = iteration.gradients(parameters)
        else:
            iteration = explorer.iteration(step)
            (update,) = iteration.updates
            measured, problem = gradients(algorithm, models, iteration, update, parameters, processes)
        assert problem is None
        grads = torch.cat([p.grad.flatten() for p in parameters])
        out.append((grads, {**iteration.metrics, **measured}))
        for p in parameters:
            p.grad = None
    return out


def assert_same(algorithm, rows, **options):
    for (one, metrics), (two, expected) in zip(
        made_by(algorithm, rows, **options), made_by(algorithm, 0, **options), strict=True
    ):
        assert two.norm() > 0
        assert (one - two).norm() / two.norm() < 2e-6
        assert metrics == pytest.approx(expected, rel=1e-5, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("rows", [1, 10_000])
@pytest.mark.parametrize("name", METHODS)
def test_one_pass_gives_the_gradients_and_metrics_of_two(name, rows):
    assert_same(METHODS[name], rows, scores=both_scores(), iterations=2 if "history" in name else 1)


@pytest.mark.parametrize("options", [{"partitions": 3}, {"overlap": True}, {"partitions": 2, "overlap": True}])
@pytest.mark.parametrize("name", ["flow with a KL", "dance", "branch pruned", "pref", "ddpo with a history", "opd"])
def test_partitions_and_overlap_change_nothing_of_that(name, options):
    assert_same(METHODS[name], 60, scores=both_scores(), **options)


@pytest.mark.parametrize("trouble", [{"missing": True}, {"tied": True}, {"missing": True, "tied": True}])
@pytest.mark.parametrize("name", ["flow", "flow with a KL", "dance", "branch", "pref by group", "ddpo"])
def test_missing_rewards_and_tied_groups_count_as_in_two_passes(name, trouble):
    assert_same(METHODS[name], 60, scores=both_scores(**trouble))
