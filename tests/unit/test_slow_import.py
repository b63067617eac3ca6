"""Every command prints its first line before it imports torch, which takes seconds."""

import json
import subprocess
import sys

import pytest

from afterflow.cli.main import COMMANDS
from afterflow.system import slow_import
from afterflow.system.slow_import import announced_import

WORDS = {
    "train": "shapes_sft --plan",
    "doctor": "shapes_sft",
    "eval": "tiny",
    "sample": "tiny star",
    "compare": "shapes_sft shapes_soar",
    "report": "a b",
    "tree": "a star",
    "merge": "a b --out c",
    "export": "a",
    "push": "me/it a",
    "serve-rewards": "strict",
}
"""Command → words with which it begins its work."""
STARTED = """
import contextlib, io, json, sys
from importlib.abc import MetaPathFinder
from afterflow.cli.main import COMMANDS, main

class NoTorch(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            said[-1]["before"] = said[-1]["out"].getvalue() + said[-1]["err"].getvalue()
            raise SystemExit(7)

sys.meta_path.insert(0, NoTorch())
said, words = [], json.loads(sys.argv[1])
for command in COMMANDS:
    said.append({"command": command, "before": None, "out": io.StringIO(), "err": io.StringIO()})
    with contextlib.redirect_stdout(said[-1]["out"]), contextlib.redirect_stderr(said[-1]["err"]):
        main([command, *words.get(command, "").split()])
    for stream in ("out", "err"):
        said[-1][stream] = said[-1][stream].getvalue()
print(json.dumps(said))
"""
"""It runs all commands where an import of torch ends them, and prints what each had said until then, and at its end."""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each command said, by its name."""
    command = [sys.executable, "-c", STARTED, json.dumps(WORDS)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path_factory.mktemp("empty"))
    assert ended.returncode == 0, ended.stderr
    return {each["command"]: each for each in json.loads(ended.stdout)}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_something_before_torch_is_imported(said, command):
    before, printed = said[command]["before"], said[command]["out"] + said[command]["err"]
    if before is None:
        assert printed.strip()  # it needed no torch to answer
    else:
        assert before.startswith(f"afterflow {command}: importing torch")


def test_results_on_stdout_stay_alone(said):
    announced = [name for name, each in said.items() if each["before"] is not None]
    assert {"train", "doctor", "sample", "eval"} <= set(announced)
    assert [said[name]["out"] for name in announced] == [""] * len(announced)


def test_the_import_is_announced_once_and_no_other_is(monkeypatch, capsys):
    monkeypatch.setattr(slow_import, "SLOW", "a_slow_library")
    with announced_import("x"):
        for name in ("another_library", "a_slow_library", "a_slow_library"):
            with pytest.raises(ModuleNotFoundError):
                __import__(name)
    assert capsys.readouterr().err.splitlines() == [
        "x: importing a_slow_library and what needs it, which takes some seconds"
    ]
    with pytest.raises(ModuleNotFoundError):
        import a_slow_library  # noqa: F401
    assert capsys.readouterr().err == ""


def test_a_library_that_is_there_already_is_not_announced(capsys):
    with announced_import("x"):
        import torch  # noqa: F401
    assert capsys.readouterr().err == ""


def test_recipes_and_the_count_of_a_plan_import_torch_alone():
    code = (
        "import sys, afterflow.recipes, afterflow.experiment.cost_estimate\n"
        "slow = {'diffusers', 'transformers', 'peft', 'torch._dynamo', 'torch.distributed.fsdp', 'scipy.stats'}\n"
        "assert 'torch' in sys.modules and not slow & set(sys.modules), slow & set(sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
