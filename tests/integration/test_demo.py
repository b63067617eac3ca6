"""The demo trains, judges, prints its figures, says where its files are, and replaces no folder but its own."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from afterflow.cli import demo_run as command
from afterflow.cli.main import guarded
from afterflow.evaluation import base_meanwhile, comparison
from afterflow.evaluation.base_meanwhile import base_drawn_meanwhile
from afterflow.evaluation.report import ShapesSettings
from afterflow.recipes.shapes import demo


@pytest.fixture
def short(own_folder, monkeypatch):
    """The demo with one small iteration and a small suite."""
    algorithm = replace(demo().algorithm, steps=2, group=2)
    run = demo().with_options(algorithm=algorithm, iterations=1, batch=1, chunk=2, sample_every=0, threads=1)
    monkeypatch.setattr(command, "demo", lambda: run)
    monkeypatch.setattr(command, "SUITE", ShapesSettings(prompts=7, images=2, steps=2))


def test_the_demo_says_what_it_reached_and_where_its_files_are(short, capsys):
    assert guarded(command.run_demo) == 0
    printed, warned = capsys.readouterr()
    assert "text_encoder" not in warned
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


def test_the_demo_replaces_its_own_folder_alone(short, capsys):
    assert guarded(command.run_demo) == guarded(command.run_demo) == 0
    assert "runs/demo is there already and is replaced" in capsys.readouterr().out
    Path("runs/demo/run.json").unlink()
    assert guarded(command.run_demo) == 1
    assert "afterflow did not write it" in capsys.readouterr().err and Path("runs/demo/summary.json").exists()
