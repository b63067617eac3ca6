"""How far a run is, and whether it is well."""

import json
import math
from pathlib import Path

import pytest

from afterflow.cli.main import main
from afterflow.cli.status import status_lines
from afterflow.experiment.run_folder import RunFolder, duration

pytestmark = pytest.mark.usefixtures("own_folder")


def run_of(lines, **config):
    folder = Path("runs/it")
    (folder / "checkpoints" / "step_000001").mkdir(parents=True)
    (folder / "checkpoints" / "step_000002.partial").mkdir()
    (folder / "run.json").write_text(json.dumps({"config": {"iterations": 10, "budget_seconds": None} | config}))
    text = "".join(
        json.dumps({"step": i, "seconds_trained": 6.0 * (i + 1)} | line) + "\n" for i, line in enumerate(lines)
    )
    (folder / "metrics.jsonl").write_text(text + '{"step": 99, "rew')
    return folder, (folder / "metrics.jsonl").stat().st_mtime


def test_a_run_under_way_says_how_far_it_is():
    folder, now = run_of([{"reward": 0.2, "eval/x": 1.0}, {"reward": 0.3}, {"reward": 0.4, "eval/x": 2.0}])
    said = status_lines(RunFolder(folder), now)
    assert said[0] == "runs/it: iteration 3 of 10 (30%), 6 s an iteration, about 42 s to go"
    assert said[1:] == ["  last checkpoint: step_000001", "  reward 0.2 → 0.4", "  eval/x 1 → 2"]
    assert (
        "written nothing for 10 min; go on with: afterflow train --resume runs/it"
        in status_lines(RunFolder(folder), now + 600)[1]
    )
    (folder / "lora").mkdir()
    assert status_lines(RunFolder(folder), now + 600)[0].endswith("ended after 18 s of training")


@pytest.mark.parametrize(
    "iterations, words",
    [(100, "2 (10%), 6 s an iteration, about 2 min"), (4, "2 of 4 (50%), 6 s an iteration, about 12 s")],
)
def test_the_nearer_of_two_limits_is_what_is_left(iterations, words):
    folder, now = run_of([{}, {}], budget_seconds=120.0, iterations=iterations)
    assert status_lines(RunFolder(folder), now)[0] == f"runs/it: iteration {words} to go"


def test_evaluation_and_pictures_take_part_of_the_time_that_is_left():
    seconds = [{"seconds": value} for value in (90.0, 99.0, 18.0, 30.0, 42.0)]  # resumed after the second iteration
    folder, now = run_of(seconds)
    assert "about 60 s to go" in status_lines(RunFolder(folder), now)[0]


@pytest.mark.parametrize(
    "line, said",
    [
        ({"alarm": 1.0}, "ALARM since iteration 0"),
        ({"invalid/ocr": 0.04}, "4% of the last images have no ocr"),
        ({"grad_norm": math.inf}, "a gradient was not finite"),
        ({"zero_std_groups": 0.8}, "80% of the groups have one reward"),
        ({"clip_fraction": 0.9}, "90% of the ratios are clipped"),
        ({"masked_fraction": 0.9}, "90% of the steps are masked"),
    ],
)
def test_what_somebody_should_look_at_is_said(line, said):
    folder, now = run_of([line])
    assert any(said in each for each in status_lines(RunFolder(folder), now))
    assert not any("!" in each for each in status_lines(RunFolder(folder), now) if said not in each)


def test_no_run_is_said(capsys):
    assert main(["status", "runs/nobody"]) == 2
    assert "no run is there" in capsys.readouterr().err
    folder, _ = run_of([])
    (folder / "metrics.jsonl").unlink()
    assert main(["status", str(folder)]) == 0 and "no iteration has ended yet" in capsys.readouterr().out


def test_lengths_are_in_the_unit_that_reads_best():
    assert [duration(s) for s in (45, 700, 12_000, 200_000)] == ["45 s", "12 min", "3.3 h", "2.3 days"]


def test_without_a_run_every_run_is_listed(capsys):
    assert main(["status"]) == 0
    assert "no run is in runs/" in capsys.readouterr().out
    run_of([{"alarm": 1.0}])
    for name in ("runs/compare/a_0", "runs/it/lora", "runs/broken"):
        Path(name).mkdir(parents=True)
        (Path(name) / "run.json").write_text('{"config": {"iterations": 2}}' if name != "runs/broken" else "{}")
    assert main(["status"]) == 0
    lines = sorted(capsys.readouterr().out.splitlines())
    assert [line.split(":")[0] for line in lines] == ["runs/broken", "runs/compare/a_0", "runs/it"]
    assert "iteration 1 of 10" in lines[2] and "1 to look at" in lines[2]
