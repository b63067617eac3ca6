"""What a page over runs reads: thinned curves, files that grow or are replaced, pictures, what a verifier saw."""

import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from afterflow.experiment.picture_store import PictureStore, encode_picture
from afterflow.experiment.run_folder import BASE_STEP, step_name, step_of_name
from afterflow.view.answers import Answers
from afterflow.view.curves import mean_intervals, thin
from afterflow.view.growing_file import parse_line, parse_lines
from afterflow.view.picture_sets import group_of, tree_of_group
from afterflow.view.run_reader import RunReader, runs_below
from afterflow.view.verifier_sight import sight
from run_folders import RECORDS, groups_of, picture_of, pictures_of, run_of


def test_a_thinned_curve_keeps_its_ends_its_order_and_every_peak():
    values = np.sin(np.arange(5000) / 300)
    values[1234], values[4000], values[70] = 9.0, -9.0, math.nan
    points = thin(range(5000), values)
    steps, shown = [point[0] for point in points], [point[1] for point in points]
    assert len(points) <= 600 and steps == sorted(steps) and steps[0] < 20 and steps[-1] > 4980
    assert [1234, 9.0] in points and [4000, -9.0] in points
    assert None not in shown, "a missing value is not the lowest"
    assert thin([0, 1], [1.0, math.inf]) == [[0, 1.0], [1, None]]


def test_an_interval_is_of_the_mean_over_prompts_that_have_a_score():
    column = [0.0, 1.0, 1.0, 0.0, None, math.nan]
    mean, low, high, count = mean_intervals({"x": column, "none": [math.nan], "one": [2.0]}, {})["x"]
    half = 1.96 * np.std([0, 1, 1, 0], ddof=1) / 2
    assert (
        (mean, count) == (0.5, 4)
        and low == pytest.approx(0.5 - half, abs=1e-5)
        and high == pytest.approx(0.5 + half, abs=1e-5)
    )
    assert mean_intervals({"one": [2.0]}, {}) == {"one": [2.0, None, None, 1]} and "none" not in mean_intervals(
        {"none": [None]}, {}
    )


def test_rows_that_repeat_a_prompt_count_once():
    known = mean_intervals({"x": [0.0, 1.0, 1.0]}, {})
    assert mean_intervals({"x": [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]}, {"1": 0, "3": 2, "5": 4}) == known
    for damaged in ([1], {"1": 2}, {"9": 0}, {"1": "0"}, {"x": 0}, {"1": -1}, {"1": True}):
        assert mean_intervals({"x": [0.0, 1.0, 1.0]}, damaged) == known


def test_only_new_lines_are_read_and_a_replaced_file_from_its_start(tmp_path):
    run = RunReader(run_of(tmp_path, [{"kl": 1.0}, {"kl": 2.0}]))
    assert run.curves(["kl"]) == {"kl": [[0, 1.0], [1, 2.0]]}
    with run.folder.metrics_file.open("a") as stream:
        stream.write('{"step": 2, "kl": 3.0, "alarm": 1.0}\nno json\n{"step": 3, "k')
    assert run.curves(["kl", "nothing"]) == {"kl": [[0, 1.0], [1, 2.0], [2, 3.0]]}
    assert run.details()["alarms"] == [2]
    with run.folder.metrics_file.open("a") as stream:
        stream.write('l": NaN}\n')
    assert run.curves(["kl"])["kl"][3] == [3, None]
    replaced = tmp_path / "other"
    replaced.write_text('{"step": 0, "kl": 7.0}\n')
    replaced.replace(run.folder.metrics_file)
    assert run.curves(["kl"]) == {"kl": [[0, 7.0]]} and run.details()["alarms"] == []


def test_lines_that_are_parsed_at_once_are_those_that_are_parsed_one_by_one():
    good = [b'{"step": 0, "x": 1.5}', b'{"step": 1, "x": NaN}', b'{"step": 2, "y": [1, "\xc3\xa9"]}']
    bad = [b"", b"no json", b'{"x": 1}', b'{"step": -1}', b'{"step": true}', b"[1]", b"\xff", b'{"step": 1e300}']
    bad += [b'{"step": 3}, {"step": 4}', b'{"step": 5, "x": [1', b"2]}"]
    for texts in (good, bad, good + bad, [good[0], *bad, good[1]], *([good[0], text] for text in bad)):
        expected = [line for line in map(parse_line, texts) if line is not None]
        assert str(parse_lines(texts)) == str(expected)
    assert [line["step"] for line in parse_lines(good)] == [0, 1, 2] and parse_lines(bad) == []


def test_a_metric_has_the_numbers_of_its_lines_whatever_else_they_hold(tmp_path):
    lines = [
        {"x": 1.5},
        {"x": 2},
        {"x": "3"},
        {"x": True},
        {"y": 1.0, "x": 5.0},
        {"x": 1 << 60},
        {"x": None},
        {"x": 8.0},
    ]
    run = RunReader(run_of(tmp_path, [*lines, {"alarm": 0.0, "x": 1.0}, {"alarm": 1.0}, {"alarm": 1.0}]))
    curves = run.curves(["x", "y"])
    assert curves == {"x": [[0, 1.5], [1, 2.0], [4, 5.0], [7, 8.0], [8, 1.0]], "y": [[4, 1.0]]}
    assert run.details()["alarms"] == [9, 10]


def test_a_summary_says_how_far_a_run_is_and_whether_it_is_well(tmp_path):
    lines = [{"reward": 0.1 * i, "alarm": float(i == 4)} for i in range(6)]
    run = RunReader(run_of(tmp_path, lines))
    written = run.folder.metrics_file.stat().st_mtime
    summary = run.summary(written)
    assert summary["state"] == "training" and summary["share"] == 0.6 and "iteration 6 of 10" in summary["progress"]
    assert summary["rewards"] == {"reward": [0.0, 0.5]} and summary["method"] == "FlowGRPO"
    assert summary["alarm"] == 4 and "ALARM since iteration 4" in summary["health"][0]
    quiet = run.summary(written + 600)
    assert quiet["state"] == "quiet" and "written nothing for 10 min" in quiet["health"][0]
    (tmp_path / "lora").mkdir()
    assert run.summary(written + 600)["state"] == "ended"
    os.utime(tmp_path / "lora", (written - 60, written - 60))
    assert run.summary(written)["state"] == "training", "it is trained further, and still has its first result"
    assert run.summary(written + 600)["state"] == "quiet"
    stamp = run.stamp()
    pictures_of(tmp_path)
    assert run.stamp() != stamp, "a page asks for pictures when there are new ones"
    assert RunReader(run_of(tmp_path / "new")).summary()["state"] == "waiting"


def test_a_run_that_measures_for_long_is_not_silent_meanwhile(tmp_path):
    lines = [
        {"seconds": 2.0 * i + 102, "seconds/eval": 100.0} if i == 0 else {"seconds": 2.0 * i + 102} for i in range(6)
    ]
    run = RunReader(run_of(tmp_path, lines))
    written = run.folder.metrics_file.stat().st_mtime
    assert [run.summary(written + idle)["state"] for idle in (60, 250, 350)] == ["training", "training", "quiet"]


def test_a_run_that_is_gone_says_so_and_has_no_curves(tmp_path):
    run = RunReader(run_of(tmp_path / "it", [{"kl": 1.0}], [{"strict": [1.0]}]))
    assert run.curves(["kl"]) and run.details()["held_out"]
    shutil.rmtree(tmp_path / "it")
    assert run.summary()["state"] == "gone" and run.curves(["kl"]) == {}
    assert run.details()["held_out"] == run.details()["alarms"] == []


def test_a_run_that_was_made_anew_in_the_same_file_is_read_from_its_start(tmp_path):
    run = RunReader(run_of(tmp_path, [{"kl": 1.0}, {"kl": 2.0}]))
    assert run.curves(["kl"]) == {"kl": [[0, 1.0], [1, 2.0]]}
    run_of(tmp_path, [{"kl": 3.0}, {"kl": 4.0}, {"kl": 5.0}])  # written into the same inode
    assert run.curves(["kl"]) == {"kl": [[0, 3.0], [1, 4.0], [2, 5.0]]}
    run_of(tmp_path, [{"kl": 6.0}, {"kl": 7.0}, {"kl": 8.0}])  # and as many bytes
    assert run.curves(["kl"]) == {"kl": [[0, 6.0], [1, 7.0], [2, 8.0]]}


def test_curves_of_held_out_rewards_are_thinned_too(tmp_path):
    run = RunReader(run_of(tmp_path, [{}], [{"strict": [float(i)]} for i in range(2000)]))
    steps = [point["step"] for point in run.details()["held_out"]]
    assert len(steps) == 600 and (steps[0], steps[-1]) == (0, 1999) and steps == sorted(set(steps))


def test_the_summary_of_a_long_run_has_its_first_line_and_its_last(tmp_path):
    lines = [{"reward": float(i), "filler": "x" * 400, "alarm": 0.0} for i in range(3000)]
    lines[17]["alarm"] = 1.0
    summary = RunReader(run_of(tmp_path, lines)).summary()
    assert summary["iteration"] == 2999 and summary["rewards"]["reward"] == [0.0, 2999.0] and summary["alarm"] == 17


@pytest.mark.parametrize("text", ["", "[]", '{"config": 3}', "{", '{"config": {"batches": {"iterations": "x"}}}'])
def test_a_damaged_run_is_a_summary_that_says_so(tmp_path, text):
    run = RunReader(run_of(tmp_path, [{"reward": 1.0}]))
    run.folder.record_file.write_text(text)
    summary = run.summary()
    assert summary["state"] in ("unreadable", "training") and json.dumps(summary, allow_nan=False)
    assert json.dumps(run.details(), allow_nan=False)


def test_held_out_rewards_are_trained_or_hidden(tmp_path):
    run = RunReader(run_of(tmp_path, [{}], [{"strict": [0.0, 1.0], "clean": [1.0, 1.0]}]))
    details = run.details()
    assert details["trained"] == ["strict"] and details["hidden"] == ["clean"]
    assert details["held_out"][0]["means"]["clean"] == [1.0, 1.0, 1.0, 2]


def test_stored_pictures_come_in_order_with_their_prompts_and_scores(tmp_path):
    run = RunReader(run_of(tmp_path, [{}]))
    pictures_of(tmp_path)
    content = run.sets["samples"].content()
    assert [step["step"] for step in content["steps"]] == [BASE_STEP, 0, 2] and content["per_prompt"] == 2
    assert [prompt["tag"] for prompt in content["prompts"]] == ["counting", "colors", "text"]
    assert content["steps"][1]["scores"] == {"strict": [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]}
    assert run.details()["sets"] == {"samples": 3, "held_out": 0, "groups": 0}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"step": 1, "pictures": ["../../../run.json"]}',
        '{"step": 1, "pictures": ["000.svg"]}',
        '{"step": 1, "pictures": 3}',
        '{"pictures": [["000.png"]]}',
    ],
)
def test_a_step_that_no_run_wrote_is_left_out(tmp_path, text):
    run = RunReader(run_of(tmp_path, [{}]))
    pictures_of(tmp_path)
    (tmp_path / "pictures" / "samples" / "step_000002.json").write_text(text)
    assert [step["step"] for step in run.sets["samples"].content()["steps"]] == [BASE_STEP, 0]


def test_scores_and_groups_of_another_kind_are_left_out(tmp_path):
    run = RunReader(run_of(tmp_path, [{}]))
    store = PictureStore(tmp_path, "samples")
    store.begin(0, [{"prompt": 7, "tag": None}], 1)
    store.write(0, [b"\x89PNG"], {"scores": {"a": [1.0], "b": ["<b>"], "c": [1.0, 2.0], "d": 3}, "parts": []})
    content = run.sets["samples"].content()
    assert content["steps"][0]["scores"] == {"a": [1.0], "b": [None]} and content["prompts"][0]["prompt"] == "7"
    assert group_of(["x"])["total"] == [] and group_of({"total": [1.0], "best": 5, "worst": 0})["best"] is None
    level = {"step": 1, "parents": [0, 2], "rewards": [1.0, 2.0]}
    assert tree_of_group([level]) == [] and tree_of_group([{"parents": [0], "rewards": [1.0]}]) == []


def test_names_of_steps_are_read_back():
    assert [step_of_name(step_name(step)) for step in (BASE_STEP, 0, 30, 1234567)] == [BASE_STEP, 0, 30, 1234567]
    assert [step_of_name(name) for name in ("step_", "step_1", "step_00000x", "base.partial", "..", "step_٠٠٠٠٠٠")] == [
        None
    ] * 6


def test_a_verifier_sees_the_objects_and_letters_of_a_true_picture(tmp_path):
    for tag in ("counting", "text"):
        record = next(record for record in RECORDS if record["tag"] == tag)
        file = tmp_path / f"{tag}.png"
        file.write_bytes(encode_picture(picture_of(record, 0, np.random.default_rng(0))))
        seen = sight(file, record)
        assert seen["size"] == 32 and "strict: yes" in seen["words"]
        if tag == "counting":
            wanted = record["include"][0]
            assert len(seen["boxes"]) == wanted["count"] and all(box["counts"] for box in seen["boxes"])
            assert f"{wanted['class']}: {wanted['count']} wanted, {wanted['count']} seen" in seen["words"]
        else:
            assert seen["letters"]["text"] == record["text"]
        file.write_bytes(encode_picture(np.full((32, 32, 3), 128, np.uint8)))
        assert "strict: no" in sight(file, record)["words"], "a picture that changed is looked at again"


def test_a_verifier_sees_nothing_in_pictures_of_another_world(tmp_path):
    (tmp_path / "a.png").write_bytes(encode_picture(np.zeros((32, 32, 3), np.uint8)))
    (tmp_path / "b.png").write_bytes(encode_picture(np.zeros((40, 32, 3), np.uint8)))
    (tmp_path / "c.png").write_text("no picture")
    assert sight(tmp_path / "a.png", {"prompt": "a cat"}) is None
    assert sight(tmp_path / "a.png", {"prompt": "a cat", "tag": "counting"}) is None, "it is no record of the world"
    assert sight(tmp_path / "b.png", RECORDS[0]) is None and sight(tmp_path / "c.png", RECORDS[0]) is None
    assert sight(tmp_path / "gone.png", RECORDS[0]) is None


def test_every_answer_is_plain_json(tmp_path):
    run = run_of(tmp_path, [{"reward": math.nan, "kl": math.inf}] * 3, [{"strict": [math.nan, 1.0]}])
    pictures_of(run)
    groups_of(run)
    answers = Answers([run])
    paths = ["runs", "run/0", "set/0/samples", "set/0/groups", "seen/0/samples/base", "seen/0/groups/step_000002"]
    for path in paths:
        content = answers.answer(path)
        assert content and json.dumps(content, allow_nan=False), path
    assert answers.answer("curves/0", ["kl"]) == {"kl": [[0, None], [1, None], [2, None]]}
    [group] = answers.answer("set/0/groups")["steps"][0]["groups"]
    assert group["best"] == 3 and [len(level["rewards"]) for level in group["tree"]] == [1, 2, 4]
    for path in (
        "",
        "run",
        "run/1",
        "run/-1",
        "run/x",
        "run/٣",
        "set/0/checkpoints",
        "seen/0/samples/..",
        "runs/0",
        "run/0/0",
    ):
        assert answers.answer(path) is None, path


def test_runs_are_searched_without_looking_into_them(tmp_path):
    run_of(tmp_path / "b")
    run_of(tmp_path / "methods" / "a")
    run_of(tmp_path / "b" / "lora")
    assert runs_below(tmp_path) == [tmp_path / "b", tmp_path / "methods" / "a"]
    answers = Answers([], tmp_path)
    assert [summary["name"] for summary in answers.answer("runs")] == [
        str(tmp_path / "b"),
        str(tmp_path / "methods" / "a"),
    ]


def test_reading_runs_needs_no_torch():
    code = "import sys, afterflow.view.report_file; print('torch' in sys.modules, 'fastapi' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
