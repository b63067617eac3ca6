"""The demo trains, judges, prints its figures, says where its files are, and replaces no folder but its own."""

import io
import json
import shutil
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest

from afterflow.cli import demo_run as command
from afterflow.cli.main import guarded
from afterflow.evaluation import base_meanwhile, comparison
from afterflow.evaluation.base_meanwhile import base_drawn_meanwhile
from afterflow.evaluation.report import ShapesSettings
from afterflow.recipes.shapes import demo


def shorten(patch):
    """Give the demo one small iteration and a small suite, and one process."""
    algorithm = replace(demo().algorithm, steps=2, group=2)
    run = demo().with_options(algorithm=algorithm, iterations=1, batch=1, chunk=2, sample_every=0, threads=1)
    patch.setattr(command, "demo", lambda: run)
    patch.setattr(command, "SUITE", ShapesSettings(prompts=7, images=2, steps=2))
    patch.setattr("os.cpu_count", lambda: 1)


@pytest.fixture
def short(own_folder, monkeypatch):
    shorten(monkeypatch)


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """The folder in which the short demo has run, and what it returned and printed."""
    folder, printed = tmp_path_factory.mktemp("demo"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        patch.chdir(folder)
        with redirect_stdout(printed), redirect_stderr(printed):
            code = guarded(command.run_demo)
    return folder, code, printed.getvalue()


def test_the_demo_says_what_it_reached_and_where_its_files_are(before, monkeypatch):
    folder, code, printed = before
    monkeypatch.chdir(folder)
    assert code == 0 and "text_encoder" not in printed
    summary = json.loads(Path("runs/demo/summary.json").read_text())
    assert summary["seconds"] > 0 and {"before", "after"} <= summary["strict"].keys()
    for name in ("lora", "before_after.png", "summary.json", "report.html"):
        assert Path("runs/demo", name).exists() and f"runs/demo/{name}" in printed
    assert "strict" in printed and "delta" in printed
    assert printed.splitlines()[-1].endswith("afterflow view runs/demo")
    assert Path("runs/demo/report.html").stat().st_size <= 3_000_000


@pytest.mark.parametrize("cores, drawn", [(2, True), (1, False)])
def test_the_base_is_drawn_by_a_second_process_where_a_core_is_idle(short, monkeypatch, tmp_path, cores, drawn):
    monkeypatch.setenv("AFTERFLOW_CACHE", str(tmp_path))
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    with base_drawn_meanwhile(command.demo(), command.SUITE):
        pass
    drawn_again = lambda *args: pytest.fail("it is drawn again")
    monkeypatch.setattr(comparison, "suite_pictures", drawn_again)
    with nullcontext() if drawn else pytest.raises(pytest.fail.Exception):
        comparison.base_pictures(command.demo().model, command.SUITE)


def test_a_second_process_that_fails_costs_time_and_not_the_demo(short, monkeypatch):
    warnings = []
    monkeypatch.setattr(base_meanwhile._log, "warning", warnings.append)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(base_meanwhile.sys, "executable", shutil.which("false"))
    with base_drawn_meanwhile(command.demo(), command.SUITE):
        pass
    assert len(warnings) == 1 and "they are drawn now" in warnings[0]
    with pytest.raises(KeyError), base_drawn_meanwhile(command.demo(), command.SUITE):
        raise KeyError


def test_the_demo_replaces_its_own_folder_alone(short, before, capsys):
    shutil.copytree(before[0] / "runs", "runs")
    assert guarded(command.run_demo) == 0
    assert "runs/demo is there already and is replaced" in capsys.readouterr().out
    Path("runs/demo/run.json").unlink()
    assert guarded(command.run_demo) == 1
    assert "afterflow did not write it" in capsys.readouterr().err and Path("runs/demo/summary.json").exists()
