"""Every recipe can be made, and says what is known of it."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from afterflow.cli.recipes import recipe_summaries
from afterflow.experiment.config import Run
from afterflow.experiment.serialization import to_json
from afterflow.experiment.stages import Chain
from afterflow.recipes import RECIPES
from afterflow.recipes.papers import _flow_opd

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench():
    return runpy.run_path(str(ROOT / "bench" / "evidence.py"))


def test_every_recipe_has_a_label_that_comes_from_stored_runs(bench):
    written = json.loads(bench["EVIDENCE"].read_text())
    assert set(written) == set(RECIPES), "run python bench/evidence.py"
    found = {name: each._replace(date=None)._asdict() for name, each in bench["evidence"]().items()}
    assert {name: each | {"date": None} for name, each in written.items()} == found, "run python bench/evidence.py"
    labels = ("verified-exact", "verified-curve", "verified-earlier", "smoke", "untested")
    assert {each["label"] for each in written.values()} <= set(labels)
    for each in written.values():
        assert each["label"] == "untested" or ((ROOT / each["result"]).is_file() and each["hardware"] and each["date"])


def test_a_label_expires_where_the_recipe_learns_otherwise_now(bench):
    entry, run = bench["Evidence"]("verified-curve"), RECIPES["shapes_nft"]()
    label = lambda run: bench["dated"](entry, "shapes_nft", to_json(run)).label
    assert label(run) == label(run.with_options(iterations=3, seed=7, name="x", mixed_precision="no")) == entry.label
    for options in ({"learning_rate": 1e-5}, {"batch": 3}, {"algorithm": replace(run.algorithm, group=4)}):
        assert label(run.with_options(**options)) == "verified-earlier"
    assert bench["dated"](entry, "shapes_nft", {"judge": {"noise": 0.1}}).label == "verified-earlier"


def test_a_result_of_todays_settings_stands_for_earlier_ones_and_no_repetition_renews_a_label(bench, monkeypatch):
    evidence = bench["evidence"]
    curve, earlier = (bench["Evidence"](f"verified-{name}", name) for name in ("curve", "earlier"))
    curves = [("demo", curve), ("demo", earlier), ("shapes_nft", earlier), ("shapes_awm", curve)]
    exact = [(name, bench["Evidence"]("verified-exact")) for name in ("shapes_nft", "shapes_awm")]
    monkeypatch.setitem(evidence.__globals__, "curve_results", lambda: iter(curves))
    monkeypatch.setitem(evidence.__globals__, "ran", lambda name: iter(exact if name == "exact.json" else []))
    labels = {name: evidence()[name].label for name in ("demo", "shapes_nft", "shapes_awm")}
    assert labels == {"demo": "verified-curve", "shapes_nft": "verified-earlier", "shapes_awm": "verified-exact"}


def test_the_page_says_what_the_file_says(bench):
    written = json.loads(bench["EVIDENCE"].read_text())
    page = bench["page"]({name: bench["Evidence"](**each) for name, each in written.items()})
    assert bench["PAGE"].read_text(encoding="utf-8") == page, "run python bench/evidence.py"


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_made_under_its_own_name_and_listed(name):
    recipe = RECIPES[name]()
    assert isinstance(recipe, Run | Chain) and recipe.name == name
    assert recipe_summaries()[name].endswith((".", "!"))


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("_8gpu")])
def test_more_gpus_change_what_an_iteration_takes_and_nothing_else(name):
    wide, narrow = RECIPES[name](), RECIPES[name.removesuffix("_8gpu")]()
    pairs = [(wide, narrow)] if isinstance(wide, Run) else zip(wide.stages, narrow.stages)
    for many, few in pairs:
        if isinstance(many, Run):
            assert many.batches.batch > few.batches.batch
            assert (many.algorithm, many.data, many.optimization) == (few.algorithm, few.data, few.optimization)


def test_the_student_of_sd35_has_a_teacher_for_every_task_of_its_prompts(own_folder):
    student = _flow_opd("student", "", 4).stages[-1]
    tasks = {task for teacher in student.teachers for task in teacher.tasks}
    *made, file = student.data.parts
    Path("prompts").mkdir()
    Path("prompts/evaluation_metadata.jsonl").write_text('{"prompt": "a photo of a bench"}\n')
    assert {record["tag"] for part in made for record in part.records(0)} | {file.tag} == tasks
