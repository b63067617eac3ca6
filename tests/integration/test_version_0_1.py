"""What version 0.1 wrote is read: a run's record, its checkpoint, and the figures of its demo."""

import json
import shutil
from pathlib import Path

import pytest

from afterflow.cli.main import main
from afterflow.experiment.run_folder import read_run

DATA = Path(__file__).parents[1] / "data"
CLOCKS = ("seconds", "memory")


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith(CLOCKS)} for line in lines]


def test_a_record_of_version_0_1_is_read_into_groups():
    run, recipe = read_run(DATA / "run_0_1")
    assert (recipe, run.name, run.seed) == ("old", "old", 0)
    assert run.optimization.lr_schedule == "cosine" and run.optimization.ema_decay == 0.9
    assert run.checkpoints.keep_checkpoints == 10 and run.logging.tracker == "tensorboard"
    assert run.evaluation.held_out.count == 4 and run.batches.batch == 4


@pytest.mark.slow
def test_a_checkpoint_of_version_0_1_goes_on_as_it_did_there(own_folder):
    folder = Path("runs/old")
    shutil.copytree(DATA / "run_0_1", folder)
    before = metrics(folder)
    assert main(["train", "--resume", str(folder)]) == 0
    after = metrics(folder)
    assert [line["step"] for line in after] == [0, 1, 2] and after[0] == before[0]
    for old, new in zip(before[1:], after[1:]):
        assert new == pytest.approx(old, rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_a_record_of_version_0_1_can_be_repeated(own_folder):
    command = ["train", "--from", str(DATA / "run_0_1" / "run.json"), "--iterations", "1", "--name", "again"]
    assert main([*command, "--tracker", "none", "--sample-every", "0"]) == 0
    before, after = metrics(DATA / "run_0_1")[0], metrics(Path("runs/again"))[0]
    rates = {"learning_rate"}  # the cosine is over one iteration now
    assert {k: v for k, v in after.items() if k in before and k not in rates and not k.startswith("eval")} == (
        pytest.approx(
            {k: v for k, v in before.items() if k in after and k not in rates and not k.startswith("eval")},
            rel=1e-3,
            abs=1e-5,
        )
    )
