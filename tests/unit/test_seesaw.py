"""The seesaw: all ways cost the same, a report leaves out what is not there, and claims say what its numbers say."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def seesaw(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import seesaw

    return seesaw


@pytest.fixture
def report(seesaw, monkeypatch, tmp_path):
    """Makes a report of what methods gained: name → (composition, style), for each seed."""
    import seesaw_report

    from afterflow.recipes.seesaw import SEESAW_TASKS

    monkeypatch.setattr(seesaw_report, "RESULTS", tmp_path)
    prompts = seesaw_report.prompts_of_suite(seesaw_report.suite_prompts(seesaw.SUITE, seesaw.SIDES))
    of_composition = np.array([prompt["tag"] in SEESAW_TASKS["composition"] for prompt in prompts])
    level = np.random.default_rng(0).uniform(0.1, 0.3, len(prompts))

    def write(name, gains, seed=0):
        noise = 0.02 * np.random.default_rng([seed, len(name)]).normal(size=len(prompts))
        figures = {
            "strict": level + gains[0] * of_composition + noise,
            "style": level + gains[1] * ~of_composition + noise,
            "fidelity": np.ones(len(prompts)),
        }
        figures = {figure: values.tolist() for figure, values in figures.items()}
        (tmp_path / f"{name}.json").write_text(json.dumps({"figures": figures, "seed": seed, "hardware": {}}))

    def make(**methods):
        write("base", (0.0, 0.0))
        for name, gains in methods.items():
            for seed in (0, 1, 2):
                write(f"{name}_{seed}", gains, seed)
        return seesaw_report.make_report()

    return make


SPECIALISTS = {"composition": (0.2, -0.1), "style": (-0.2, 0.4)}


def test_every_way_that_is_compared_costs_the_same(seesaw):
    import seesaw_report

    rivals = {*seesaw_report.REWARDS, *seesaw_report.RIVALS, "composition", "style", "prompts_25", "prompts_75"}
    rivals |= {"opd", "wide_opd", *seesaw_report.WIDE_RIVALS}
    merges = {"merge", "wide_merge"}
    assert {seesaw.total_seconds(name) for name in rivals - merges} == {seesaw.TOTAL}
    assert {seesaw.total_seconds(name) for name in merges} == {2 * seesaw.TEACHER}


def test_every_way_can_be_trained_after_those_that_it_names(seesaw):
    for name, method in seesaw.METHODS.items():
        stage = seesaw.stage_of(name, 1)
        used = json.dumps(seesaw.to_json(stage)).split("runs/seesaw_")[1:]
        assert {part.split("_1/lora")[0] for part in used} == set(method.after), name
        written = seesaw.to_json(stage)
        assert json.loads(json.dumps(written)) == written  # by which a result of other settings is known
        assert stage.name == f"seesaw_{name}_1" and list(seesaw.METHODS).index(name) >= len(method.after)
        if isinstance(stage, seesaw.Run):
            seconds = stage.batches.iterations * seesaw.iteration_seconds(stage)
            assert stage.seed == 1 and seconds == pytest.approx(method.seconds, rel=0.02)
            assert stage.tune.rank == (seesaw.WIDE if name.startswith("wide") else seesaw.RANK)


@pytest.mark.parametrize("name", ["shapes_v_grpo", "shapes_crd", "shapes_awm", "shapes_flow_awr", "shapes_dgpo"])
def test_the_seconds_that_are_counted_are_those_that_were_measured_of_other_methods(seesaw, name):
    """The seconds of an image are those of shapes_nft."""
    from afterflow.recipes import RECIPES

    measured = json.loads((BENCH / "results" / "methods" / "times.json").read_text())["seconds"][name]
    assert seesaw.iteration_seconds(RECIPES[name]()) == pytest.approx(measured, rel=0.05)
    assert min(seesaw.image_seconds()) > 0


def test_pictures_are_judged_for_both_tasks(seesaw, monkeypatch):
    few = seesaw.replace(seesaw.SUITE, prompts=14, images=1, steps=2)
    monkeypatch.setattr(seesaw, "SUITE", few)
    figures = seesaw.judge(seesaw.MODEL.load(seesaw.default_device()))
    prompts = seesaw.prompts_of_suite(seesaw.suite_prompts(few, seesaw.SIDES))
    assert {name: len(values) for name, values in figures.items()} == dict.fromkeys(figures, len(prompts))
    assert set(figures) == {"strict", "style", "fidelity"} and max(figures["style"]) <= 1


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 0.75, 1])
def test_a_share_of_the_prompts_is_of_style(seesaw, share):
    from afterflow.recipes.seesaw import SEESAW_TASKS

    records = seesaw.prompts(share, 0, "some").data.records(0)
    tags = Counter(record["tag"] for record in records)
    assert sum(tags[tag] for tag in SEESAW_TASKS["style"]) / len(records) == pytest.approx(share, abs=0.01)


def test_a_report_says_what_was_gained_and_leaves_out_what_is_not_there(report):
    made = report(**SPECIALISTS, opd=(0.1, 0.3))
    methods = {method["name"]: method for method in made["methods"]}
    assert set(methods) == {"composition", "style", "opd"}
    opd = methods["opd"]["gains"]
    assert (opd["composition"]["value"], opd["style"]["value"]) == pytest.approx((0.1, 0.3), abs=0.02)
    assert opd["both"]["value"] == pytest.approx(((0.1 + 0.2) / 0.4 + (0.3 + 0.1) / 0.5) / 2, abs=0.05)
    assert opd["both"]["low"] < opd["both"]["value"] < opd["both"]["high"]
    for task in SPECIALISTS:  # the line between them has .5
        assert methods[task]["gains"]["both"]["value"] == pytest.approx(0.5)
    pairs = [{pair["first"], pair["second"]} for pair in made["differences"]]
    assert len(pairs) == 3 and all(pair < set(methods) for pair in pairs)


def test_without_both_specialists_there_is_nothing_to_stand_between(report):
    import seesaw_report

    made = report(style=SPECIALISTS["style"], opd=(0.1, 0.3), merge=(0.1, 0.2), rewards_50=(0.1, 0.2))
    assert all(set(method["gains"]) == {"composition", "style", "seeds"} for method in made["methods"])
    assert "ahead" not in seesaw_report.findings(made) and "| 240 | +" in seesaw_report.table(made)


def test_the_page_holds_what_is_stored(seesaw):
    import seesaw_report

    page, result = seesaw_report.PAGE.read_text("utf-8"), seesaw_report.RESULT
    nothing = "The runs are not complete, so nothing is reported yet.\n"
    part = seesaw_report.block(json.loads(result.read_text())) if result.is_file() else nothing
    assert seesaw_report.BEGIN + part + seesaw_report.END in page


def test_the_page_says_who_is_ahead(report):
    import seesaw_report

    made = report(**SPECIALISTS, opd=(0.18, 0.36), rewards_50=(0.05, 0.1), prompts_50=(0.2, 0.4), merge=(0.18, 0.36))
    text = seesaw_report.findings(made)
    assert "Flow-OPD is ahead of the best of the mixed rewards, `rewards_50`" in text
    assert "Flow-OPD is behind mixed prompts" in text
    assert "Flow-OPD is neither clearly ahead of nor behind the merge" in text
    assert "cascade" not in text and "rank 32" not in text
    rows = [line for line in seesaw_report.table(made).splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(made["methods"])


@pytest.fixture
def claims(monkeypatch):
    """Rows of the page on tasks in conflict, by their first words, as they are where a report is stored."""
    monkeypatch.syspath_prepend(str(BENCH))
    import claim_findings
    import claims

    def rows(made):
        def stored(name):
            if name == "seesaw.json" and made is not None:
                return made
            raise claims.Missing(name)

        monkeypatch.setattr(claim_findings, "stored", stored)
        found = [claim for claim in claims.CLAIMS["Flow-OPD (arXiv:2605.08063)"] if claim.waits]
        lines = [line for line in claims.section("Flow-OPD", found) if line.startswith("| ")][1:]
        return {line.split(" | ")[0].strip("| "): line.split(" | ")[2] for line in lines}

    return rows


MIXES = {
    f"{kind}_{share}": gains
    for kind in ("rewards", "prompts")
    for share, gains in {"25": (0.15, 0.0), "50": (0.05, 0.2), "75": (-0.1, 0.3)}.items()
}


def test_claims_that_wait_for_results_are_no_rows(claims):
    assert claims(None) == {}


def test_claims_say_what_the_report_says(claims, report):
    rest = {"merge": (0.1, 0.2), "cascade": (-0.1, 0.38), "cascade_back": (0.15, 0.1)}
    teachers = {"teacher_composition": (0.2, 0.0), "teacher_style": (-0.1, 0.4)}
    verdict = claims(report(**SPECIALISTS, **MIXES, **rest, **teachers, opd=(0.22, 0.42)))
    assert len(verdict) == 7 and set(verdict.values()) == {"held"}  # rank 32 is not there
    beaten = MIXES | {"rewards_50": (0.2, 0.4), "prompts_50": (0.2, 0.4)}
    verdict = claims(report(**SPECIALISTS, **beaten, **rest, **teachers, opd=(0.1, 0.2)))
    by_words = lambda words: next(value for claim, value in verdict.items() if words in claim)
    assert by_words("mixed rewards give up") == by_words("so do mixed prompts") == "not held"
    assert by_words("above mixed rewards") == by_words("above mixed prompts") == "not held"
    assert by_words("below its teacher") == "not held"
    assert by_words("better than the merge") == "undecided"
