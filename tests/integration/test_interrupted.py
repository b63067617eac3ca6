"""Ctrl-C at any moment, lines of libraries, and parts of a recipe that a user takes out."""

import logging
import signal
import subprocess
import sys
import time
from dataclasses import fields, is_dataclass
from typing import get_args, get_type_hints

import pytest

from afterflow.cli.main import guarded
from afterflow.cli.train import overridden
from afterflow.experiment.config import GROUPS
from afterflow.recipes import RECIPES
from afterflow.system import messages
from afterflow.system.errors import ConfigError


def after_import(user, said):
    """What is said on stderr beside the line that announces the import of torch, where that was reached."""
    first, _, others = said.partition("\n")
    return others if first.startswith(f"{user}: importing torch") else said


def interrupted(folder, delay, source, *words):
    """The exit code and stderr of Python code that gets Ctrl-C some seconds after it says that it is ready."""
    pipe, command = subprocess.PIPE, [sys.executable, "-c", source, *words]
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=folder)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        return process.returncode, said
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("delay", [0.05, 1.0, 4.0])
def test_ctrl_c_ends_a_command_in_one_line_whatever_it_is_doing(tmp_path, delay):
    code = "import afterflow.cli.main as m, sys; print('ready', flush=True); sys.exit(m.main(sys.argv[1:]))"
    words = ["sample", "tiny", "a star", "--steps", "2000", "--out", str(tmp_path / "a.png")]
    code, said = interrupted(tmp_path, delay, code, *words)
    said_of_it = "afterflow: interrupted; checkpoints and results that were written are whole\n"
    assert (code, after_import("afterflow sample", said)) == (130, said_of_it)


@pytest.mark.parametrize("delay", [0.7, 2.0])
def test_ctrl_c_ends_the_demo_in_one_line_while_it_imports_libraries(tmp_path, delay):
    start = "runpy.run_module('afterflow.cli.demo', None, '__main__')"
    code = f"import afterflow.cli.main, runpy; print('ready', flush=True); {start}"
    code, said = interrupted(tmp_path, delay, code)
    said = after_import("demo", said)
    assert (code, said.count("\n"), said[:23]) == (130, 1, "afterflow: interrupted;")


def test_the_demo_and_every_command_share_what_is_done_about_errors(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert guarded(interrupted) == 130 and capsys.readouterr().err.count("\n") == 1


def test_what_libraries_say_on_every_import_is_left_out_and_nothing_else(monkeypatch):
    messages.show_messages()
    messages.show_messages()
    for name, noises in messages.NOISE.items():
        logger, heard = logging.getLogger(name), []
        monkeypatch.setattr(logger, "handlers", [Keeping(heard)])  # some libraries let nothing reach the root
        for text in (*(f"x {noise} y" for noise in noises), "something that matters"):
            logger.warning(text)
        assert heard == ["something that matters"], name
        assert logger.filters.count(messages.NO_NOISE) == 1


class Keeping(logging.Handler):
    """Keeps the messages that reach it."""

    def __init__(self, heard):
        super().__init__()
        self.heard = heard

    def emit(self, record):
        self.heard.append(record.getMessage())


def test_a_command_says_what_it_imports_and_nothing_else_of_its_own_accord(tmp_path):
    words = ["sample", "tiny", "a star", "--steps", "1", "--images", "1", "--out", str(tmp_path / "a.png")]
    ended = subprocess.run([sys.executable, "-m", "afterflow", *words], capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stderr.startswith("afterflow sample: importing torch")
    assert after_import("afterflow sample", ended.stderr) == ""


# What a recipe sets can be taken out


def test_held_out_prompts_are_taken_out_by_either_of_their_options():
    run = RECIPES["shapes_flow_grpo"]()
    assert run.evaluation.held_out is not None
    for options in (["--held-out", "None"], ["--held-out=None"], ["--eval-every", "0"], ["--eval-every=0"]):
        changed = overridden(run, [*options, "--iterations", "3"], "x")
        evaluation = changed.evaluation
        assert (evaluation.held_out, evaluation.eval_every, evaluation.best_by, evaluation.eval_rewards) == (
            None,
            0,
            None,
            (),
        )
        assert changed.batches.iterations == 3


def optional_parts(part, prefix=""):
    """The options of a run that stand for a dataclass or None and hold the dataclass."""
    hints = get_type_hints(type(part))
    for field in fields(part):
        value = getattr(part, field.name)
        inside = "" if field.name in GROUPS else f"{prefix}{field.name}."
        if is_dataclass(value):
            if type(None) in get_args(hints[field.name]):
                yield f"--{prefix}{field.name}".replace("_", "-")
            yield from optional_parts(value, inside)


@pytest.mark.parametrize(
    "recipe", ["shapes_pref_grpo", "shapes_branch_grpo", "flux_mix_grpo", "shapes_curated_soar", "shapes_dpo"]
)
def test_every_part_that_a_recipe_sets_and_that_may_be_none_can_be_unset(recipe):
    run = RECIPES[recipe]()
    for option in optional_parts(run):
        try:
            changed = overridden(run, [option, "None"], "x")
        except ValueError as error:  # the method needs it, and says so
            assert "needs" in str(error) or "take" in str(error)
        else:
            assert changed != run and option not in set(optional_parts(changed))


def test_none_is_still_a_name_and_a_number_that_is_not_there():
    run = RECIPES["shapes_flow_grpo"]()
    assert overridden(run, ["--name", "None", "--ema-decay", "None"], "x").name == "None"
    with pytest.raises(ConfigError, match="there is no option --data"):
        overridden(run, ["--data", "None"], "x")
