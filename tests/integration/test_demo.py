"""The demo trains, judges, prints its figures, says where its files are, and replaces no folder but its own."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from afterflow.cli import demo_run as command
from afterflow.cli.main import guarded
from afterflow.evaluation.report import ShapesSettings
from afterflow.recipes.shapes import demo


@pytest.fixture
def short(own_folder, monkeypatch):
    """The demo with one small iteration and a small suite."""
    algorithm = replace(demo().algorithm, steps=2, group=2)
    run = demo().with_options(algorithm=algorithm, iterations=1, batch=1, chunk=2, sample_every=0)
    monkeypatch.setattr(command, "demo", lambda: run)
    monkeypatch.setattr(command, "SUITE", ShapesSettings(prompts=7, images=2, steps=2))


def test_the_demo_says_what_it_reached_and_where_its_files_are(short, capsys):
    assert guarded(command.run_demo) == 0
    printed, warned = capsys.readouterr()
    assert "text_encoder" not in warned
    summary = json.loads(Path("runs/demo/summary.json").read_text())
    assert summary["seconds"] > 0 and {"before", "after"} <= summary["strict"].keys()
    for name in ("lora", "before_after.png", "summary.json"):
        assert Path("runs/demo", name).exists() and f"runs/demo/{name}" in printed
    assert "strict" in printed and "delta" in printed


def test_the_demo_replaces_its_own_folder_alone(short, capsys):
    assert guarded(command.run_demo) == guarded(command.run_demo) == 0
    assert "runs/demo is there already and is replaced" in capsys.readouterr().out
    Path("runs/demo/run.json").unlink()
    assert guarded(command.run_demo) == 1
    assert "afterflow did not write it" in capsys.readouterr().err and Path("runs/demo/summary.json").exists()
