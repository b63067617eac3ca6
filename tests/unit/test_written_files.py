"""What is written: with the user's umask, whole or absent, and a sentence where a disk refuses."""

import errno
import io
import logging
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from afterflow.cli.main import main
from afterflow.cli.output import save_image, write_text
from afterflow.evaluation.image_store import add_images, open_store
from afterflow.experiment.image_grid import save_pictures
from afterflow.experiment.metrics_file import MetricsFile
from afterflow.experiment.provenance import tracker_options, write_record
from afterflow.models.base import read_cache_file, write_cache_file
from afterflow.models.lora.factors import LoRAFactors
from afterflow.models.lora.files import write_file, write_lora
from afterflow.system.atomic_files import apply_umask, make_folder, replacing, write_text_atomically
from afterflow.system.errors import OutputError
from afterflow.system.folder_lock import locked_folder
from afterflow.train.checkpoint import WeightState, list_checkpoints, save_checkpoint

PICTURE = np.zeros((8, 8, 3), np.uint8)
resource = pytest.importorskip("resource", reason="Windows has no limits of this kind")
LAYERS = {"a": LoRAFactors(torch.zeros(2, 4), torch.zeros(4, 2))}


def checkpoint(folder):
    layer = nn.Linear(64, 64)
    return save_checkpoint(
        folder, 3, WeightState(dict(layer.named_parameters()), torch.optim.AdamW(layer.parameters())), 2
    )


def hold(folder):
    with locked_folder(folder):
        (folder / "a").touch()


def metrics(folder):
    file = MetricsFile(make_folder(folder) / "metrics.jsonl", 0)
    try:
        file.write(0, {"reward": 1.0})
        if file.failure is not None:  # a run keeps its lines and goes on until the next checkpoint
            raise file.failure
    finally:
        file.close()


WRITERS = {
    "a text": lambda folder: write_text_atomically(make_folder(folder) / "a.json", "{}" * 3000),
    "a command's text": lambda folder: write_text(folder / "a.json", "{}" * 3000),
    "a command's picture": lambda folder: save_image(Image.effect_noise((64, 64), 90), folder / "a.png"),
    "a sheet": lambda folder: save_pictures(make_folder(folder) / "a.png", PICTURE[None], ["x"], 1),
    "a sheet of clips": lambda folder: save_pictures(make_folder(folder) / "a.png", PICTURE[None, None], ["x"], 1),
    "a suite": lambda folder: open_store(folder, {"a": 1}),
    "a suite's pictures": lambda folder: add_images(make_folder(folder), 0, {"prompt": "x"}, PICTURE[None]),
    "a record": lambda folder: write_record(make_folder(folder), {}, "x", 0),
    "a tracker": lambda folder: tracker_options(make_folder(folder), "x"),
    "metrics": metrics,
    "a LoRA": lambda folder: write_lora(folder, LAYERS),
    "a lock": hold,
    "a checkpoint": checkpoint,
}
"""Everything that writes to a disk without a model."""


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
@pytest.mark.parametrize("what", WRITERS)
def test_files_are_made_with_the_umask_of_the_user(tmp_path, what, mask, mode):
    before = os.umask(mask)
    try:
        WRITERS[what](tmp_path / "out")
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in files(tmp_path)}
    assert modes and set(modes.values()) == {oct(mode)}, modes


def test_a_folder_is_opened_to_whom_the_umask_lets_in(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a", "deep/b"):
        (tmp_path / name).touch(0o600)
    before = os.umask(0o022)
    apply_umask(tmp_path)
    os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in files(tmp_path)} == {0o644} and len(files(tmp_path)) == 2


@contextmanager
def full_disk(room=0):
    """A disk on which no file may grow beyond its room: the system refuses every write, whoever writes.

    The test's own part alone is inside, for what pytest prints of it may go into a file too.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("afterflow"), "handlers", [])  # pytest keeps what they print in a file
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("what", WRITERS)
def test_a_full_disk_is_told_with_the_file_that_it_refuses(tmp_path, what):
    with full_disk(), pytest.raises(OutputError, match=rf"{tmp_path}.* cannot be written: "):
        WRITERS[what](tmp_path / "out")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("call", ["mkdir", "open", "replace"])
@pytest.mark.parametrize("what", WRITERS)
def test_whatever_the_system_refuses_is_a_sentence(tmp_path, monkeypatch, what, call, code):
    refused = []

    def refuse(path, *args, **kwargs):
        # os.mkdir and os.replace always write, and open only in some modes.
        writes = call != "open" or any(letter in "wax+" for letter in str(kwargs.get("mode", (*args, "r")[0])))
        if str(path).startswith(str(tmp_path)) and writes:
            refused.append(path)
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *args, **kwargs)

    owner = io if call == "open" else os
    real = getattr(owner, call)
    monkeypatch.setattr(owner, call, refuse)
    if call == "open":
        monkeypatch.setattr("builtins.open", refuse)
    try:
        WRITERS[what](tmp_path / "out")
    except OutputError as error:
        assert refused and str(tmp_path) in str(error) and os.strerror(code) in str(error)
    else:
        assert not refused


NOISE = np.random.default_rng(0).integers(0, 256, (1, 2, 64, 64, 3), np.uint8)
REPLACED = {
    "a flushed text": lambda file: write_text_atomically(file, "new" * 1000),
    "a text": lambda file: write_text(file, "new" * 1000),
    "a picture": lambda file: save_image(Image.fromarray(NOISE[0, 0]), file),
    "a sheet": lambda file: save_pictures(file, NOISE[:, 0], ["x"], 1),
    "a sheet of clips": lambda file: save_pictures(file, NOISE, ["x"], 1),
    "kohya's LoRA": lambda file: write_file(file, {"a": torch.zeros(999)}, {"format": "pt"}),
}


@pytest.mark.parametrize("what", REPLACED)
def test_what_could_not_be_written_leaves_the_old_file_and_no_rest(tmp_path, what):
    (tmp_path / "a.png").write_text("old")
    with full_disk(100), pytest.raises(OutputError, match=rf"{tmp_path}/a.png cannot be written: File too large; make"):
        REPLACED[what](tmp_path / "a.png")
    assert (tmp_path / "a.png").read_text() == "old" and len(files(tmp_path)) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_is_interrupted_leaves_the_old_file_and_no_rest(tmp_path, error):
    (tmp_path / "a").write_text("old")
    with pytest.raises(error), replacing(tmp_path / "a") as partial:
        partial.write_text("half")
        raise error
    assert (tmp_path / "a").read_text() == "old" and len(files(tmp_path)) == 1


def test_a_checkpoint_that_does_not_fit_leaves_those_before_it(tmp_path):
    checkpoint(tmp_path)
    (tmp_path / "step_000003").rename(tmp_path / "step_000001")
    with full_disk(1000), pytest.raises(OutputError):
        checkpoint(tmp_path)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_000001"]


# The cache


def test_a_cache_that_cannot_be_written_costs_no_more_than_the_cache(tmp_path, caplog):
    with full_disk(), caplog.at_level(logging.WARNING):
        write_cache_file(tmp_path / "cache" / "a.safetensors", {"a": torch.zeros(9)})
    assert f"nothing is kept in the cache {tmp_path}" in caplog.text
    assert not files(tmp_path) and read_cache_file(tmp_path / "cache" / "a.safetensors") is None


@pytest.mark.parametrize("damage", [b"", b"\xff" * 40, b"cut"])
def test_a_damaged_file_of_the_cache_is_made_anew(tmp_path, damage, caplog):
    file = tmp_path / "a.safetensors"
    write_cache_file(file, {"a": torch.ones(9)})
    stored = read_cache_file(file)
    assert stored is not None and stored["a"].sum() == 9
    file.write_bytes(file.read_bytes()[:20] if damage == b"cut" else damage)
    with caplog.at_level(logging.WARNING):
        assert read_cache_file(file) is None
    assert "cannot be read and is made anew" in caplog.text


def test_a_pipeline_is_used_where_nothing_can_be_cached(tinies, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("AFTERFLOW_CACHE", str(tmp_path / "file" / "cache"))
    model = tinies["sd3"].load("cpu")
    whole = model.encode(["a red star", "two"])
    monkeypatch.setenv("AFTERFLOW_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        again = model.encode(["a red star", "two"])
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(whole, again))
    assert len(files(tmp_path / "cache")) == 1


# Commands


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), PermissionError(13, "no", "/x/y")])
def test_an_error_of_the_system_is_one_line_of_a_command(monkeypatch, capsys, error):
    def fail(args):
        raise error

    monkeypatch.setattr("afterflow.cli.recipes.recipes_command", fail)
    assert main(["recipes"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("afterflow: ") and said.count("\n") == 1 and error.strerror in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_under_the_output_is_one_line(tmp_path):
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "afterflow", "recipes"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 1 and ended.stderr == "afterflow: the output: No space left on device\n"
