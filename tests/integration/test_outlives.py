"""A run outlives its terminal, its disk's bad days, its trackers and its neighbours, and leaves the same LoRA."""

import errno
import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
from accelerate.tracking import TensorBoardTracker

from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.cli.main import main
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment import execute as execution
from afterflow.experiment import monitor
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.experiment.metrics_file import MetricsFile
from afterflow.experiment.tracker_pictures import TensorBoardOutlet
from afterflow.models.adapters import LoRA
from afterflow.models.sd3 import SD3
from afterflow.system.atomic_files import writing
from afterflow.system.errors import ConfigError, TrainingStopped
from afterflow.system.folder_lock import locked_folder
from afterflow.train import checkpoint, loop
from afterflow.train.checkpoint import find_damage, list_checkpoints

ENDED = "runs/small/lora/pytorch_lora_weights.safetensors"


def small(pipeline):
    algorithm = FlowGRPO({"jpeg_compressibility": 1.0}, steps=3, group=2, window=2)
    model, held_out = SD3(pipeline, max_sequence_length=0), ShapesPrompts("test", count=2)
    run = Run(algorithm, ShapesPrompts(count=2), model, LoRA(rank=4, alpha=8), name="small")
    options = {"iterations": 2, "batch": 2, "chunk": 4, "learning_rate": 1e-3, "inference_steps": 1, "save_every": 1}
    return run.with_options(**options, sample_every=1, held_out=held_out, eval_every=1, eval_images=1)


@pytest.fixture
def run(pipeline, own_folder):
    return small(pipeline)


@pytest.fixture(scope="module")
def expected(pipeline, tmp_path_factory):
    """The bytes of the LoRA where nothing fails."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("whole")
        patch.chdir(folder)
        patch.setenv("AFTERFLOW_CACHE", str(folder / "cache"))
        execute(small(pipeline))
        return (folder / ENDED).read_bytes()


def result(folder):
    """The bytes of the LoRA, of a run that has a line for every iteration."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1]
    return (folder / "lora" / "pytorch_lora_weights.safetensors").read_bytes()


class Anything(BaseException):
    """What no caller of a tracker expects."""


def raising(error):
    def fail(*args, **options):
        raise error

    return fail


DISK = OSError(errno.ENOSPC, "No space left on device")
BESIDE = {
    "start of tensorboard": (TensorBoardTracker, "start", Anything("x")),
    "curves of tensorboard": (TensorBoardTracker, "log", SystemExit(3)),
    "pictures of tensorboard": (TensorBoardOutlet, "show", Anything("x")),
    "end of tensorboard": (TensorBoardTracker, "finish", RuntimeError("no network")),
    "sample pictures": (monitor, "save_groups", DISK),
    "the progress line": (monitor.Progress, "show", BrokenPipeError(errno.EPIPE, "Broken pipe")),
    "the model card": (execution, "write_card", DISK),
}


@pytest.mark.parametrize("what", BESIDE)
def test_what_is_made_beside_a_run_may_fail_and_the_lora_is_the_same(run, expected, monkeypatch, caplog, what):
    owner, name, error = BESIDE[what]
    monkeypatch.setattr(owner, name, raising(error))
    caplog.set_level("INFO", "afterflow")
    folder = execute(run.with_options(tracker="tensorboard")).folder
    assert result(folder) == expected
    assert sum(f"{what} failed: " in line for line in caplog.messages) == 1
    assert sum(line.startswith(f"not there: {what}") for line in caplog.messages) == 1


@pytest.mark.parametrize("owner, name", [(TensorBoardTracker, "log"), (monitor, "save_groups")])
def test_the_checkpoint_comes_before_all_that_may_fail(run, monkeypatch, owner, name):
    monkeypatch.setattr(owner, name, raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        execute(run.with_options(tracker="tensorboard"))
    (saved,) = list_checkpoints(run.folder / "checkpoints")
    assert saved.name == "step_000000" and find_damage(saved) is None


def test_an_evaluation_that_fails_loses_no_iteration(run, monkeypatch):
    monkeypatch.setattr(monitor.HeldOutEvaluator, "measure", raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        execute(run)
    assert [folder.name for folder in list_checkpoints(run.folder / "checkpoints")] == ["step_000000"]
    assert len((run.folder / "metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("name", ["metrics.jsonl", "held_out.jsonl"])
def test_metrics_that_cannot_be_written_stop_the_run_after_a_checkpoint_that_has_them(run, expected, monkeypatch, name):
    catch_up = MetricsFile._catch_up

    def refused(file):
        with writing(file.file):
            if file.file.name == name:
                raise DISK
        catch_up(file)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "_catch_up", refused)
        with pytest.raises(TrainingStopped, match=rf"{name} cannot be written.*iteration 0 is saved with the lines"):
            execute(run)
    assert result(execute(run, resume=True).folder) == expected
    assert len((run.folder / "held_out.jsonl").read_text().splitlines()) == 2


def at_call(monkeypatch, call, module, name, act):
    """Do something before a call of a function."""
    original, calls = getattr(module, name), []

    def acting(*args, **options):
        calls.append(1)
        if len(calls) == call:
            act()
        return original(*args, **options)

    monkeypatch.setattr(module, name, acting)


@pytest.mark.parametrize("gone", ["", "samples", "run.json"])
def test_files_that_are_deleted_meanwhile_are_written_again(run, expected, monkeypatch, gone):
    path = run.folder / gone
    at_call(monkeypatch, 2, loop.Trainer, "_descend", lambda: shutil.rmtree(path) if path.is_dir() else path.unlink())
    assert result(execute(run).folder) == expected
    assert json.loads((run.folder / "run.json").read_text())["config"]


def test_a_terminal_that_closes_leaves_a_checkpoint(run, expected, monkeypatch):
    at_call(monkeypatch, 1, loop.Trainer, "_descend", lambda: os.kill(os.getpid(), signal.SIGHUP))
    with pytest.raises(TrainingStopped, match=r"SIGHUP; iteration 0 is saved, go on with: .*--resume"):
        execute(run)
    assert result(execute(run, resume=True).folder) == expected


def test_a_lora_that_cannot_be_written_is_written_by_resume(run, expected, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("afterflow.models.lora.files.save_file", raising(DISK))
        with pytest.raises(TrainingStopped, match=r"trained, and .*lora.* step_000001 is whole; .*--resume"):
            execute(run)
    assert not (run.folder / "lora").exists()
    assert result(execute(run, resume=True).folder) == expected


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(run, expected, monkeypatch):
    with monkeypatch.context() as patch:
        at_call(patch, 2, checkpoint, "write_tensors", raising(DISK))
        with pytest.raises(TrainingStopped, match=r"No space left.*step_000000 is whole; .*--resume"):
            execute(run)
    assert result(execute(run, resume=True).folder) == expected


def test_a_second_run_is_refused_before_its_prompts_are_read(run, monkeypatch):
    monkeypatch.setattr(execution, "prompt_records", lambda run: pytest.fail("it began"))
    with locked_folder(run.folder), pytest.raises(ConfigError, match="is in use by process"):
        execute(replace(run))


def test_a_second_resume_is_refused_before_the_record_is_read(run, capsys):
    run.folder.mkdir(parents=True)
    (run.folder / "run.json").write_text("broken")
    with locked_folder(run.folder):
        assert main(["train", "--resume", str(run.folder)]) == 2
    assert "is in use by process" in capsys.readouterr().err
