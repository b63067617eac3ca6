"""docs/frontier.md: published results beside the labels of our recipes."""

import copy
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench():
    return SimpleNamespace(**runpy.run_path(str(ROOT / "bench" / "frontier.py")))


@pytest.fixture
def data(bench):
    return bench.read(bench.DATA)


@pytest.fixture
def evidence(bench):
    return bench.read(bench.EVIDENCE)


def rows(data):
    return [row for table in data["tables"] for row in table["rows"]]


def test_the_page_says_what_the_results_and_labels_say(bench, data, evidence):
    assert bench.PAGE.read_text(encoding="utf-8") == bench.page(data, evidence), "run python bench/frontier.py"


def test_every_row_has_a_number_and_no_row_stands_twice(data):
    assert all(re.search(r"\d", row["score"] + row.get("cost", "")) for row in rows(data))
    for table in data["tables"]:
        keys = [(row["method"], row["source"]) for row in table["rows"]]
        assert len(keys) == len(set(keys)), table["title"]


def test_a_table_fits_the_column_of_a_page(bench):
    """Beside menu and contents, at 1280 px, five columns are 688 px wide: no word may need more than its share."""
    for line in bench.PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| "):
            text = re.sub(r"`[^`]*`|\]\([^)]*\)|<br>", " ", line)  # code breaks anywhere, and a link is its text
            assert line.count(" | ") <= 4 and max(map(len, text.split())) <= 18, line


@pytest.mark.parametrize("label", ["untested", "verified-exact"])
def test_a_label_is_that_of_the_evidence(bench, data, evidence, label):
    evidence["sd35_crd_geneval"] = evidence["sd35_crd_geneval"] | {"label": label}
    assert f"`sd35_crd_geneval`: {label}" in bench.page(data, evidence)


def without_result(evidence):
    evidence["shapes_crd"] = {"label": "smoke"}


@pytest.mark.parametrize(
    "change, words",
    [
        (without_result, "CRD: shapes_crd is smoke, so it has no gain"),
        (lambda evidence: evidence.pop("sd35_crd_geneval"), "sd35_crd_geneval: there is no such recipe"),
        (lambda evidence: evidence["shapes_crd"].update(result="bench/results/ocr.json"), "has no gain of it"),
    ],
)
def test_what_is_no_longer_known_stops_the_page(bench, data, evidence, change, words):
    change(evidence)
    with pytest.raises(bench.Stale, match=words):
        bench.page(data, evidence)


def test_a_source_has_to_be_named(bench, data, evidence):
    broken = copy.deepcopy(data)
    rows(broken)[0]["source"] = "hearsay, table 1"
    with pytest.raises(bench.Stale, match="no name of a source"):
        bench.page(broken, evidence)


@pytest.mark.parametrize("name", ["shapes_nft", "shapes_generalist", "shapes_flow_grpo", "moving_branch_grpo"])
def test_a_gain_is_that_of_the_stored_result(bench, evidence, name):
    """Results are stored in four forms: of methods, of recipes with seeds, of seeds, and of clips."""
    stored = bench.read(ROOT / evidence[name]["result"])
    if name == "shapes_nft":
        [found] = [m["report"]["overall"]["strict"]["delta"] for m in stored["methods"] if m["name"] == name]
        assert bench.gains(name, evidence[name]["result"]) == [found]
    elif name == "moving_branch_grpo":
        [change] = bench.gains(name, evidence[name]["result"])
        assert list(change.values()) == stored["methods"][name]["held_out"]["moving_strict"]["difference"]
    else:
        seeds = stored["seeds"] if "seeds" in stored else stored["recipes"][name]
        values = [change["value"] for change in bench.gains(name, evidence[name]["result"])]
        assert len(values) == 3 and values[0] == seeds["0"]["report"]["overall"]["strict"]["delta"]["value"]


def test_of_several_seeds_the_ends_are_shown(bench):
    change = lambda value: {"value": value, "low": value - 0.01, "high": value + 0.01}
    assert bench.shown([change(0.105)]) == "+.105 [+.095, +.115]"
    assert bench.shown([change(0.2), change(-0.05), change(0.1)]) == (
        "−.050 [−.060, −.040] to +.200 [+.190, +.210], 3 seeds"
    )
