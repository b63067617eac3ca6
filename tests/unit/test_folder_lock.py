"""A folder is written by one process at a time, and its name is one below runs/ on every system."""

import errno
import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from afterflow.cli.compare import Compare
from afterflow.experiment import stages
from afterflow.experiment.execute import execute
from afterflow.experiment.stages import BuildParts, Chain, execute_chain
from afterflow.models.base import cache_folder
from afterflow.recipes import RECIPES
from afterflow.system import folder_lock
from afterflow.system.errors import ConfigError
from afterflow.system.folder_lock import LOCK, locked_folder
from afterflow.system.names import check_folder_name

HOLD = (
    "import sys, time, pathlib; from afterflow.system.folder_lock import locked_folder\n"
    "with locked_folder(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder runs/busy, in which this test works."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "runs" / "busy")], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_with_the_first_and_gets_the_folder_when_that_is_killed(tmp_path, other):
    folder = tmp_path / "runs" / "busy"
    message = rf"busy is in use by process {other.pid} on .+; wait until it ends"
    with pytest.raises(ConfigError, match=message), locked_folder(folder):
        pass
    other.kill()
    other.wait()
    with locked_folder(folder):
        (folder / "a").write_text("")
        assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()
    assert (folder / "a").is_file()


def test_a_run_and_a_stage_of_a_chain_claim_their_folders(tmp_path, other, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = replace(RECIPES["shapes_flow_grpo"](), name="busy")
    with pytest.raises(ConfigError, match=f"in use by process {other.pid}"):
        execute(run, "shapes_flow_grpo")
    monkeypatch.setattr(stages.BuildParts, "__call__", lambda self: pytest.fail("the stage began"))
    with pytest.raises(ConfigError, match=f"in use by process {other.pid}"):
        execute_chain(Chain("chain", (BuildParts("SD3", "busy"),)))


def test_two_threads_of_one_process_are_two(tmp_path):
    again = pytest.raises(ConfigError, match=f"in use by process {os.getpid()}")
    with locked_folder(tmp_path / "a"), again, locked_folder(tmp_path / "a"):
        pass


def test_a_folder_in_which_nothing_came_about_is_left_out(tmp_path):
    with pytest.raises(ZeroDivisionError), locked_folder(tmp_path / "a" / "b"):
        _ = 1 / 0
    assert not (tmp_path / "a").exists() and tmp_path.exists()


def test_a_disk_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def no_locks(file):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_lock, "lock", no_locks)
    with caplog.at_level(logging.WARNING), locked_folder(tmp_path / "a"):
        assert "cannot be locked (No locks available)" in caplog.text


BAD_NAMES = ["", " ", ".", "..", "../x", "a/../b", "a//b", "a/", "/tmp/x", "C:x", "C:\\x", "\\\\host\\x", "~/x", "~x"]
BAD_NAMES += ["lr=3e-4, seed 1", "a b", "$(x)", "`x`", "a;b", "<b>", "a%2e", "a&b", "a'b"]
BAD_NAMES += ["a\nb", "a\0b", "a\u202eb", 'a"b', "a|b", "a:b", "a*", "con.", "a ", " a", "x" * 201, "é" * 101]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_leaves_runs_or_that_a_system_cannot_hold_is_refused(name):
    run = RECIPES["shapes_flow_grpo"]()
    makers = [
        lambda: replace(run, name=name),
        lambda: Compare(("shapes_sft",), name=name),
        lambda: Chain("chain", (BuildParts("SD3", name),)),
    ]
    for make in makers:
        with pytest.raises(ConfigError, match=r"name ['\"]"):
            make()


@pytest.mark.parametrize(
    "name", ["run", "compare/shapes_sft_0", "lr_3e-4.seed_1", "прогон", "試", "v1.2", "-a", "é" * 100]
)
def test_other_names_are_taken(name):
    check_folder_name("name", name)


@pytest.mark.parametrize(
    "value, place",
    [("~/x", "home/x"), ("$HOME/x", "home/x"), ("", "home/.cache/afterflow"), (None, "home/.cache/afterflow")],
)
def test_the_cache_lies_where_its_variable_says_as_a_shell_would_read_it(tmp_path, monkeypatch, value, place):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("AFTERFLOW_CACHE", raising=False) if value is None else monkeypatch.setenv(
        "AFTERFLOW_CACHE", value
    )
    assert cache_folder() == tmp_path / place


def test_a_home_that_nobody_has_is_named(monkeypatch):
    monkeypatch.setenv("AFTERFLOW_CACHE", "~no_such_user/x")
    with pytest.raises(ConfigError, match="there is no home folder for ~no_such_user/x"):
        cache_folder()


def test_the_lock_of_windows_is_asked_for_there(tmp_path, monkeypatch):
    asked = []
    fake = type(sys)("msvcrt")
    fake.LK_NBLCK = 2
    fake.locking = lambda handle, mode, size: asked.append((mode, size))
    monkeypatch.setitem(sys.modules, "msvcrt", fake)
    monkeypatch.setattr(folder_lock.sys, "platform", "win32")
    with locked_folder(Path(tmp_path / "a")):
        assert asked == [(2, 1)]
