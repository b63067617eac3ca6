"""One pass is taken where the run allows it and its graphs fit, and the words say why not."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from afterflow.algorithms.branch_grpo import BranchGRPO
from afterflow.algorithms.dance_grpo import DanceGRPO
from afterflow.algorithms.ddpo import DDPO
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.pruning import Pruning
from afterflow.experiment import passes
from afterflow.experiment.passes import choose_passes, graph_bytes, retained_rows, setup_passes
from afterflow.experiment.setup import compile_blocks
from afterflow.models.adapters import Full
from afterflow.objectives.advantages import Normalize
from afterflow.recipes.shapes import shapes_flow_grpo
from afterflow.train.one_pass import full_prompts

NEAR = {"shapes_strict": 1.0}
FLOW = FlowGRPO(NEAR, steps=5, group=8, beta=0.0)  # four trained steps: 32 rows a prompt

BATCH = replace(FLOW, normalize=Normalize(scale="batch"))
DANCE = DanceGRPO(NEAR, steps=6, group=6, shared_noise=False)  # three of five steps


def passes_of(algorithm=FLOW, limit=1e12, row_bytes=100.0, **options):
    run = shapes_flow_grpo().with_options(tune=Full(), **{"batch": 6, "chunk": 16, "retained_rows": None} | options)
    run = replace(run, algorithm=algorithm)
    return choose_passes(run, algorithm, row_bytes, limit)


def setup_on(cards, monkeypatch):
    """A setup whose processes measured these bytes of a row, and have these bytes for graphs."""
    run = shapes_flow_grpo().with_options(tune=Full(), batch=6, chunk=16, retained_rows=None)
    run = replace(run, algorithm=FLOW)
    monkeypatch.setattr(passes, "graph_memory", lambda *_: cards[0][1])
    monkeypatch.setattr(passes, "graph_bytes", lambda *_: cards[0][0] * 16)
    monkeypatch.setattr(passes, "trial_pass", lambda *_: None)
    processes = SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cpu")),
        all_gather_objects=lambda _: [list(card) for card in cards],
    )
    model, weights = SimpleNamespace(module=nn.Linear(1, 1)), SimpleNamespace(parameters={})
    return SimpleNamespace(run=run, algorithm=FLOW, model=model, weights=weights, processes=processes)


def test_processes_on_other_cards_choose_the_same(monkeypatch):
    """Else one would train in one pass and another in two, and their collectives would wait for each other."""
    cards = [(100.0, 1e9), (200.0, 1e9), (100.0, 12_800.0)]
    for first in range(3):
        made = setup_passes(setup_on(cards[first:] + cards[:first], monkeypatch), None)
        assert made.retained_rows == 64, "64 rows of 200 bytes in 12 800"


class Kind(nn.Module):
    """A block whose code is that of all kinds, as a transformer's is."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        return x * self.kind + 1


def test_all_kinds_of_blocks_are_compiled(monkeypatch):
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    network = nn.Module()
    network.blocks = nn.ModuleList([Kind(kind) for kind in range(2, 14)])
    compile_of = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda block, options: compile_of(block, backend=backend, dynamic=False))
    torch._dynamo.reset()
    compile_blocks(network)
    for block in network.blocks:
        block(torch.ones(2))
    assert len(compiled) == 12


@pytest.mark.parametrize(
    "options, rows, words",
    [
        ({}, 192, "one: the graphs of at most 192 rows (0.00 GB) wait for their rewards"),
        ({"limit": 6400.0}, 64, "one: the graphs of at most 64 rows"),  # two prompts fill a pass of 16 rows
        ({"limit": 6399.0}, 0, "two: the graphs of 2 prompts, which fill a pass, are 64 rows"),
        ({"limit": 6400.0, "overlap": True}, 0, "4 prompts"),  # the next are drawn while these wait
        ({"limit": 0.0, "retained_rows": 64}, 64, "one: the graphs of at most 64"),
        ({"retained_rows": 63}, 0, "and 63 rows (0.00 GB) may wait (retained_rows)"),
        ({"retained_rows": 0}, 0, "two: retained_rows = 0"),
        ({"updates": 2}, 0, "two: updates = 2"),
        ({"shard": "full"}, 0, "two: shard = full"),
        (
            {"algorithm": replace(FLOW, normalize=Normalize(scale="batch")), "limit": 19_000.0},
            0,
            "two: the graphs of the",
        ),
        ({"algorithm": BATCH}, 192, "one: "),
        ({"algorithm": DDPO(NEAR, steps=5, group=2), "limit": 4000.0}, 0, "of the batch, whose rewards are compared"),
        ({"algorithm": replace(DANCE, best_of=2)}, 0, "two: rewards take 67% of the steps"),
        ({"algorithm": replace(DANCE, best_of=4)}, 6 * 6 * 3, "one: "),
        ({"algorithm": BranchGRPO(NEAR, prune=Pruning("extreme", extreme=1))}, 0, "two: rewards take"),
    ],
)
def test_the_choice_and_its_reason(options, rows, words):
    made = passes_of(**options)
    assert made.retained_rows == rows and words in made.words


@pytest.mark.parametrize("width", ["none", "parent_top1", "extreme"])
def test_the_share_that_rewards_prune_is_that_of_the_tree(width):
    """Counted on the credit of random rewards."""
    from afterflow.algorithms.base import Scores

    algorithm = BranchGRPO(NEAR, steps=8, splits=(0, 2, 4), prune=Pruning(width, extreme=2))
    plan = algorithm.plan(0, torch.Generator())
    log_prob = [torch.zeros(3, w) for w in plan.widths[1:]]
    levels = algorithm.credit(plan, log_prob, Scores({"shapes_strict": torch.rand(3, 8)}))
    parents = trained = 0
    for k in range(plan.steps - 1):
        alive = levels[k].isfinite().all(-1).unflatten(1, (plan.widths[k], -1)).any(2)
        parents, trained = parents + alive.numel(), trained + int(alive.sum())
    assert algorithm.requirements.pruned == pytest.approx(1 - trained / parents)


def test_rows_are_those_that_an_iteration_trains():
    assert retained_rows(shapes_flow_grpo(), FLOW) == 16 * 32
    assert [full_prompts(64, width) for width in (16, 24, 64, 128, 5)] == [4, 8, 1, 1, 64]


def test_the_bytes_of_a_graph_are_what_autograd_saves():
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    x = torch.zeros(3, 4)
    # The input of each layer, and the output of tanh, which is the second layer's input; weights are there anyway.
    assert graph_bytes(lambda: network(x), network) == 4 * (3 * 4 + 3 * 8)
