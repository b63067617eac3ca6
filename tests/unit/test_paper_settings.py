"""The settings of the papers beside those of the recipes: bench/paper_settings.json, and its page."""

import copy
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from afterflow.cli.main import main
from afterflow.models.adapters import Full

ROOT = Path(__file__).parents[2]
HALF = "It is half of it, and that is a sentence."


@pytest.fixture(scope="module")
def bench():
    return SimpleNamespace(**runpy.run_path(str(ROOT / "bench" / "paper_settings.py")))


@pytest.fixture(scope="module")
def runs(bench):
    return bench.runs()


@pytest.fixture(scope="module")
def recipes(bench, runs):
    """The options of every recipe."""
    return {name: bench.options(run) for name, run in runs.items()}


@pytest.fixture
def data(bench):
    return bench.load()


def test_every_line_is_true_of_its_recipe(bench, recipes, data):
    assert bench.complaints(data, recipes) == []


def test_the_page_has_the_lines(bench, data):
    assert bench.PAGE.read_text(encoding="utf-8") == bench.page(data), "run python bench/paper_settings.py"


def line(data, option, **wanted):
    """The first line of an option that has these values."""
    lines = [line for section in data["sections"] for line in section["lines"]]
    return next(each for each in lines if each["option"] == option and wanted.items() <= each.items())


BREAKS = {
    "a changed value of ours": (
        lambda data: line(data, "--algorithm.prune.every").update(ours=31, published=31),
        "flux_branch_grpo: --algorithm.prune.every is 30, and the line says 31",
    ),
    "a truth for a number": (
        lambda data: line(data, "--algorithm.children").update(ours=True, published=True),
        "--algorithm.children is 2, and the line says True",
    ),
    "a changed published value": (
        lambda data: line(data, "--algorithm.prune.every").update(published=31),
        "--algorithm.prune.every: published is 31, ours 30, and no reason is given",
    ),
    "a reason taken away": (lambda data: line(data, "--algorithm.points", ours=2).pop("reason"), "no reason is given"),
    "a reason for nothing": (
        lambda data: line(data, "--algorithm.prune.every").update(reason=HALF),
        "a reason is given for what does not differ",
    ),
    "two sentences": (
        lambda data: line(data, "--algorithm.points", ours=2).update(reason="It is half. It is that."),
        "is not one sentence",
    ),
    "a made-up option": (
        lambda data: line(data, "--algorithm.prune.every").update(option="--algorithm.prune.ever"),
        "flux_branch_grpo: it has no option --algorithm.prune.ever",
    ),
    "an option of another algorithm": (
        lambda data: line(data, "--algorithm.prune.every").update(recipes=["flux_branch_grpo_mix"], option="--flash"),
        "flux_branch_grpo_mix: it has no option --flash",
    ),
    "a recipe left out": (
        lambda data: data["sections"][1]["recipes"].remove("sd35_flow_dppo_8gpu"),
        "sd35_flow_dppo_8gpu: it has no lines, and no sentence says why",
    ),
    "a recipe without a line": (
        lambda data: [section["lines"].clear() for section in data["sections"] if "CRD" in section["title"]],
        "sd35_crd_geneval: it has no lines",
    ),
    "a stage left out": (
        lambda data: [section["recipes"].clear() for section in data["sections"] if "Guard" in section["title"]],
        "sd35_generalist/sd35_guard_ocr: it has no lines",
    ),
    "a recipe that is not there": (
        lambda data: data["without"].update(sd36=HALF),
        "sd36: there is no such recipe",
    ),
    "lines, and a sentence for none": (
        lambda data: data["without"].update(sd35_soar=HALF),
        "sd35_soar: it has lines and a sentence that says why it has none",
    ),
    "a source that is not named": (
        lambda data: line(data, "--algorithm.prune.every").update(source="hearsay, page 3"),
        "begins with no name of a source",
    ),
    "a line twice": (
        lambda data: data["sections"][0]["lines"].append(copy.deepcopy(line(data, "--algorithm.steps"))),
        "sd35_flow_grpo_geneval: --algorithm.steps has two lines of one source",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_broken_is_named(bench, recipes, data, name):
    broken, words = BREAKS[name]
    broken(data)
    assert any(words in complaint for complaint in bench.complaints(data, recipes))


@pytest.mark.parametrize(
    "name, changes",
    [
        ("sd35_flow_grpo_ocr", {"learning_rate": 1e-4}),
        ("flux_mix_grpo_8gpu", {"batch": 16}),
        ("sd35_generalist/sd35_guard_pickscore", {"guidance_scale": 1.0}),
    ],
)
def test_a_changed_recipe_is_named(bench, runs, recipes, data, name, changes):
    changed = bench.options(runs[name].with_options(**changes))
    [complaint] = bench.complaints(data, recipes | {name: changed})
    [option] = changes
    assert complaint.startswith(f"{name}: --{option.replace('_', '-')} is ")


def test_layers_are_those_of_the_family_where_none_are_named(bench, runs, recipes):
    layers = {name: recipes[name]["--tune.targets"] for name in ("sd35_soar", "z_image_nft")}
    assert "attn.add_q_proj" in layers["sd35_soar"] and "attention.to_q" in layers["z_image_nft"]
    full = bench.options(runs["sd35_soar"].with_options(tune=Full()))
    assert full["--adapt"] == "full" and "--tune.targets" not in full


def test_help_has_the_options_of_the_lines(data, capsys):
    main(["train", "flux_pref_grpo", "--help"])
    text = capsys.readouterr().out
    [section] = [section for section in data["sections"] if "flux_pref_grpo" in section["recipes"]]
    assert not [line["option"] for line in section["lines"] if f"{line['option']} " not in text.replace(",", " ")]
