"""docs/metrics.md names every metric that a run writes."""

import ast
import re
from pathlib import Path
from typing import get_args

import pytest
import torch

from afterflow.algorithms.base import explores
from afterflow.experiment.config import AnyAlgorithm
from toy import MLP, exact, learn, score

ROOT = Path(__file__).parents[2]
NAMES = {
    name
    for line in (ROOT / "docs/metrics.md").read_text().splitlines()
    if line.startswith("| `")
    for name in re.findall(r"`([^`]+)`", line.split("|")[1])
}
PATTERNS = [re.compile(re.sub(r"[A-Z]+", r"[\\w.:/-]+", name)) for name in NAMES]


def documented(name):
    return any(pattern.fullmatch(name) for pattern in PATTERNS)


def with_options(kind):
    """The algorithm with the options that make it log most."""
    if not issubclass(kind, tuple(k for k in get_args(AnyAlgorithm) if "weights" in k.__dataclass_fields__)):
        return kind()
    name = kind.__name__
    if name == "FlowOPD":
        return kind(steps=4, group=4, route="prompt", beta=0.1)
    if name == "PrefGRPO":
        return kind(steps=4, group=4)
    if name == "BranchGRPO":
        return kind({"near": 1.0}, steps=4, splits=(0, 1))
    return kind({"near": 1.0}, steps=8, group=4)


def with_parts(leaves, records, generators=None, clock=None):
    scores = score(leaves, records)
    near = scores.rewards["near"].clone()
    near[0, 0] = torch.nan
    return type(scores)({"near": near}, scores.judged, parts={"near/part": near}, failures={"near": ["one"]})


@pytest.mark.parametrize("kind", get_args(AnyAlgorithm), ids=lambda kind: kind.__name__)
def test_what_an_algorithm_logs_is_on_the_page(kind):
    algorithm = with_options(kind)
    options = {"skip": True, "reference": exact}
    if explores(algorithm):
        options |= {"score": with_parts, "max_missing": 0.5}
        options |= {"teachers": {"left": exact, "right": exact}} if kind.__name__ == "FlowOPD" else {}
    [(_, metrics)] = list(learn(algorithm, MLP(), 1, **options))
    assert "grad_norm" in metrics and not [name for name in metrics if not documented(name)]


def written_by(path, functions):
    """The keys of dictionaries in these functions, where they are texts."""
    tree = ast.parse((ROOT / "afterflow" / path).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in functions:
            for inner in ast.walk(node):
                keys = inner.keys if isinstance(inner, ast.Dict) else ()
                yield from (key.value for key in keys if isinstance(key, ast.Constant))


@pytest.mark.parametrize(
    "path, functions",
    [
        ("experiment/monitor.py", ("_watch", "_evaluate")),
        ("experiment/held_out_evaluation.py", ("_alarm",)),
        ("algorithms/ratios.py", ("clipped", "clipped_objective", "surrogate")),
        ("train/explore.py", ("_evaluations", "supervised")),
    ],
)
def test_what_is_written_beside_it_is_on_the_page(path, functions):
    assert not [
        name
        for name in written_by(path, functions)
        if isinstance(name, str) and not documented(name) and name not in ("reference", "teacher")
    ]


def test_a_name_that_is_not_on_the_page_is_seen():
    assert not documented("policy_los") and not documented("seconds/") and documented("part/ocr/cut")
    assert documented("reward/my_rewards:dark")
