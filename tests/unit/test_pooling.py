"""What is averaged: runs that differ in their seed alone, and sets of images that were drawn alike."""

import json
from dataclasses import replace

import numpy as np
import pytest

from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.cli.main import main
from afterflow.data.prompts import PromptFile, ShapesPrompts
from afterflow.evaluation.comparison import Finished, methods_of
from afterflow.evaluation.image_set import drawing_differences
from afterflow.evaluation.report import render_report
from afterflow.evaluation.suites import suite_report
from afterflow.experiment.config import Run
from afterflow.experiment.serialization import to_json
from afterflow.models.adapters import LoRA

RUN = Run(FlowGRPO({"jpeg_compressibility": 1.0}), ShapesPrompts())
RECORD = {"versions": {"torch": "2.0"}, "git_commit": "abc", "hardware": {"gpu": "H100"}, "processes": 1}
JUDGED = None  # naming runs looks at no picture


@pytest.fixture
def ended(tmp_path):
    """Makes a run that has ended, in a folder of its own."""

    def make(run=RUN, seed=0, recipe="mine", **changes):
        name = str(len(list(tmp_path.iterdir())))
        folder, run = tmp_path / name, run.with_options(seed=seed, name=name)
        folder.mkdir()
        record = {"recipe": recipe, "config": to_json(run), "seed": seed, **RECORD, **changes}
        (folder / "run.json").write_text(json.dumps(record))
        return Finished(folder, run, recipe, JUDGED, [])

    return make


def seeds(methods):
    return {name: [run.run.seed for run in runs] for name, runs in methods.items()}


def test_runs_that_differ_in_their_seed_alone_are_one_method(ended):
    resumed = [{"iteration": 3, **RECORD}]
    runs = [ended(seed=0), ended(seed=1, resumed=resumed), ended(seed=0, recipe="other")]
    assert seeds(methods_of(runs)) == {"mine": [0, 1], "other": [0]}


def test_a_seed_that_was_resumed_stays_one_of_its_method(ended):
    """Whatever a resume records again, of prompts that the seed draws and of the options that it began with."""
    spread = to_json(RUN)["distribution"]

    def contents(seed):
        return {"prompts": f"p{seed}", "held-out prompts": f"h{seed}", "model": "m"}

    def again(seed):
        return {"iteration": 3, **RECORD, "contents": contents(seed), "distribution": spread}

    runs = [
        ended(seed=0, contents=contents(0)),
        ended(seed=1, contents=contents(1), resumed=[again(1)]),
        ended(seed=2, contents=contents(2), resumed=[again(2), again(2)]),
    ]
    assert seeds(methods_of(runs)) == {"mine": [0, 1, 2]}
    other = again(3) | {"contents": contents(4)}
    apart = again(3) | {"distribution": spread | {"grad_partitions": 4}}
    for change, words in ((other, "resumed.contents.prompts"), (apart, "resumed.distribution.grad_partitions = 4")):
        methods = methods_of([*runs, ended(seed=3, contents=contents(3), resumed=[change])])
        assert list(seeds(methods).values()) == [[0, 1, 2], [3]] and words in list(methods)[1]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"learning_rate": 1e-3}, "optimization.learning_rate = 0.001"),
        ({"budget_seconds": 9.0}, "batches.budget_seconds = 9.0"),
        ({"tune": LoRA(rank=5)}, "tune.rank = 5"),
        ({"algorithm": replace(RUN.algorithm, weights={"jpeg_compressibility": 2.0})}, "jpeg_compressibility = 2.0"),
        ({"data": PromptFile("a.txt")}, 'data.type = "PromptFile"'),
    ],
)
def test_runs_with_different_options_are_methods_named_by_them(ended, changes, words):
    methods = methods_of([ended(seed=0), ended(seed=1), ended(RUN.with_options(**changes), seed=2)])
    assert list(seeds(methods).values()) == [[0, 1], [2]]
    plain, changed = methods
    assert words in changed and words not in plain


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"versions": {"torch": "2.1"}}, 'versions.torch = "2.1"'),
        ({"git_commit": "abc+"}, 'git_commit = "abc+"'),
        ({"hardware": {"gpu": "A100"}}, 'hardware.gpu = "A100"'),
        ({"digests": {"prompts": "12"}}, 'digests.prompts = "12"'),
        ({"resumed": [{"iteration": 2, **RECORD, "git_commit": "abd"}]}, 'resumed.git_commit = "abd"'),
    ],
)
def test_runs_made_with_something_else_are_methods_named_by_it(ended, changes, words):
    methods = methods_of([ended(seed=0), ended(seed=1, **changes)])
    assert list(seeds(methods).values()) == [[0], [1]] and words in list(methods)[1]


def test_many_differences_are_counted_and_names_stay_distinct(ended):
    runs = [RUN.with_options(batch=b, chunk=b, updates=b, iterations=b, warmup=w) for b, w in ((2, 0), (3, 0), (3, 1))]
    methods = methods_of([ended(run) for run in runs])
    assert len(methods) == 3 and all("2 more" in name for name in methods)


def test_a_seed_that_is_there_twice_is_not_counted_twice(ended):
    assert [len(runs) for runs in methods_of([ended(seed=1), ended(seed=1), ended(seed=2)]).values()] == [1, 1, 1]


def test_a_run_that_is_named_twice_is_refused(capsys):
    assert main(["report", "runs/a", "runs/../runs/a/run.json"]) == 2
    assert "runs/a is named twice" in capsys.readouterr().err


def drawn(folder, **settings):
    folder.mkdir()
    if settings:
        (folder / "settings.json").write_text(json.dumps(settings))
    return folder


def test_two_sets_that_were_drawn_otherwise_are_told_apart(tmp_path):
    one = drawn(tmp_path / "one", model="a", steps=20, images=4, guidance=1.0)
    other = drawn(tmp_path / "other", model="b", steps=40, images=2, guidance=1.0)
    foreign, alien = drawn(tmp_path / "foreign"), drawn(tmp_path / "alien")
    assert [line.partition(" too:")[0] for line in drawing_differences(one, other)] == [
        "the sets differ in steps",
        "the sets differ in images",
    ]
    assert drawing_differences(one, one) == drawing_differences(foreign, alien) == []
    [line] = drawing_differences(foreign, one)
    assert "foreign was drawn is not known" in line


def test_a_mean_over_fewer_tags_than_others_says_so():
    records = [{"tag": tag, "prompt": tag} for tag in ("counting", "text")]
    scores = {"ocr": np.array([[np.nan], [1.0]]), "clipscore": np.array([[0.5], [1.0]])}
    report = suite_report("drawbench", records, scores, None, ("m", None), 0, 20)
    lines = [getattr(part, "plain", "") for part in render_report(report).renderables]
    assert [line for line in lines if "mean is without" in line] == [
        "ocr: its mean is without counting, where it scored nothing."
    ]
    assert report.overall["ocr"].tuned.value == 1.0
