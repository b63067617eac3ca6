"""Held-out prompts that are drawn twice are no more evidence than one: in errors, intervals, alarms and files."""

import json

import numpy as np
import pytest

from afterflow.evaluation.method_curve import method_curve
from afterflow.evaluation.suites import suite_report
from afterflow.experiment.intervals import estimates
from afterflow.experiment.run_folder import REPEATED, RunFolder, are_repeated_rows
from afterflow.system.errors import InputError
from afterflow.train.repeated_prompts import mean_and_error, prompts_of_rows, repeated_rows
from afterflow.train.reward_hacking import paired_change, reward_hacking_signs
from run_folders import run_of

TWICE = {str(20 + row): row for row in range(20)}
"""Rows 20 to 39 repeat rows 0 to 19."""


def test_a_row_that_repeats_names_the_first_of_its_prompt():
    repeated = repeated_rows(["a", "b", "a", "c", "b", "a"])
    assert repeated == {"2": 0, "4": 1, "5": 0} and repeated_rows("abc") == {}
    assert prompts_of_rows(6, repeated).tolist() == [0, 1, 0, 3, 1, 0]
    assert are_repeated_rows(json.loads(json.dumps(repeated)), 6) and not are_repeated_rows(repeated, 5)


def test_the_error_is_that_of_different_prompts():
    values = np.random.default_rng(0).normal(size=20)
    mean, error = mean_and_error(values, np.arange(20))
    assert (mean, error) == pytest.approx((values.mean(), values.std(ddof=1) / np.sqrt(20)))
    assert mean_and_error(np.tile(values, 2), prompts_of_rows(40, TWICE)) == pytest.approx((mean, error))
    assert np.isnan(mean_and_error(np.array([1.0, 2.0]), np.array([0, 0]))[1])


def test_the_error_of_unevenly_repeated_prompts_is_what_many_draws_show():
    """Prompts differ by 1, the images of one by nothing; the means of many such sets are as far apart as is said."""
    prompts = np.repeat(np.arange(30), np.arange(30) % 4 + 1)
    rng = np.random.default_rng(1)
    sets = [mean_and_error(rng.normal(size=30)[prompts], prompts) for _ in range(2000)]
    means, errors = np.array(sets).T
    assert errors.mean() == pytest.approx(means.std(), rel=0.06)
    assert means.std() > 1.4 / np.sqrt(len(prompts)), "rows alone would be far too sure"


def test_an_interval_draws_the_rows_of_a_prompt_together():
    values = np.random.default_rng(0).normal(size=(20, 2))
    once = estimates(values, [np.arange(20)], 500, np.random.default_rng(0))
    labelled = estimates(values, [np.arange(20)], 500, np.random.default_rng(0), np.arange(20))
    twice = np.tile(values, (2, 1))
    together = estimates(twice, [np.arange(40)], 500, np.random.default_rng(0), prompts_of_rows(40, TWICE))
    for first, same, second in zip(once, labelled, together):
        assert first == same
        assert (second.value, second.low, second.high) == pytest.approx((first.value, first.low, first.high))
    [alone] = estimates(twice[:2, :1], [np.arange(2)], 50, np.random.default_rng(0), np.zeros(2, int))
    assert alone.low is None


def test_an_alarm_needs_as_much_evidence_as_different_prompts_give():
    rng = np.random.default_rng(3)
    before = rng.normal(size=20)
    now = before + rng.normal(0.6, 1, 20)
    change = paired_change(before, now)
    assert paired_change(np.tile(before, 2), np.tile(now, 2), TWICE) == pytest.approx(change)
    assert 2.2 < change[1] < 3 < paired_change(np.tile(before, 2), np.tile(now, 2))[1], "an accident, counted twice"
    old = {"trained": np.tile(before, 2), "hidden": np.tile(now, 2)}
    new = {"trained": np.tile(now, 2), "hidden": np.tile(before, 2)}
    assert reward_hacking_signs(old, new, ["trained"], ["hidden"])
    assert not reward_hacking_signs(old, new, ["trained"], ["hidden"], TWICE)


def test_a_suite_whose_file_repeats_prompts_is_no_surer_than_without():
    scores = np.random.default_rng(0).random((20, 4))
    records = [{"prompt": f"prompt {row}", "tag": "a"} for row in range(20)]
    once = suite_report("drawbench", records, {"x": scores}, None, ("m", None), 0, 300).overall["x"].tuned
    both = {"x": np.tile(scores, (2, 1))}
    twice = suite_report("drawbench", records * 2, both, None, ("m", None), 0, 300).overall["x"].tuned
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))


def test_a_curve_counts_repeated_prompts_once(tmp_path):
    before, now = np.random.default_rng(0).random((2, 20))

    def curve(name, repeats, repeated):
        values = [np.tile(of, repeats).tolist() for of in (before, now)]
        lines = [{"eval/x": float(np.mean(of))} for of in values]
        folder = run_of(tmp_path / name, lines, [{"x": of} | repeated for of in values])
        return method_curve([(RunFolder(folder), RunFolder(folder).metrics())], 300, 0)[-1]["changes"]["x"]

    assert curve("twice", 2, {REPEATED: TWICE}) == pytest.approx(curve("once", 1, {}))


def test_a_curve_begins_anew_where_the_held_out_prompts_changed(tmp_path):
    resumed = [{"iteration": 1, "contents": {"held-out prompts": "b"}}]
    lines = [{"eval/x": 0.0}, {"eval/x": 1.0}, {"eval/x": 1.5}]
    measurements = [{"x": [0.0, 0.0]}, {"x": [1.0, 1.0]}, {"x": [1.5, 1.5]}]
    folder = run_of(tmp_path / "a", lines, measurements, contents={"held-out prompts": "a"}, resumed=resumed)
    points = method_curve([(RunFolder(folder), RunFolder(folder).metrics())], 100, 0)
    assert [point["steps"] for point in points] == [[1], [2]]
    assert points[-1]["changes"]["x"]["value"] == 0.5, "of the same prompts"


@pytest.mark.parametrize("value", [[1], {"1": 1}, {"2": 0}, {"x": 0}, {"1": 0.0}, {"1": -1}, {"01": 0}, {"1": True}])
def test_damaged_rows_are_named(tmp_path, value):
    folder = run_of(tmp_path / "run", [{}], [{"x": [0.0, 1.0], REPEATED: value}])
    with pytest.raises(InputError, match=r"held_out\.jsonl: 'repeated_prompts' names no rows of its line"):
        RunFolder(folder).held_out()
