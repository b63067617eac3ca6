"""The scripts in examples/ do what they say, in this process and with small numbers; pages end as their blocks do."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops

from documents import run_notebook, run_page
from forked import Forked

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name, *words):
    """What the script leaves behind when it is started with these words."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, words)])
        patch.syspath_prepend(EXAMPLES)  # as the interpreter does for a script
        patch.setattr(torch, "set_num_threads", lambda count: None)  # the other core is of another test
        return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder in which the first example has trained a recipe for an iteration."""
    path = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        run_example("train_a_recipe.py", 1, 1)
    return path


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


def test_a_recipe_is_trained_with_changes(folder):
    assert (folder / "runs/my_flow_grpo/lora/pytorch_lora_weights.safetensors").is_file()
    config = json.loads((folder / "runs/my_flow_grpo/run.json").read_text())["config"]
    assert (config["batches"]["batch"], config["optimization"]["learning_rate"]) == (1, 2e-3)


def test_a_reward_of_ones_own_is_trained(folder, capsys):
    run_example("reward_of_your_own.py", 1, 1)
    [line] = [json.loads(line) for line in (folder / "runs/dark/metrics.jsonl").read_text().splitlines()]
    printed = re.search(r"\n\[([\d.]+)\]\n", capsys.readouterr().out)
    assert printed and 0 < line["reward/dark"] < 255
    assert float(printed[1]) == pytest.approx(line["reward"], rel=1e-7)


def test_a_toy_flow_learns_without_a_pipeline():
    rewards = runpy.run_path(str(EXAMPLES / "toy_flow.py"))["main"]()
    assert rewards[-1] > rewards[0] + 0.5


def test_a_lora_is_judged_beside_the_base(folder, capsys):
    run_example("evaluate_a_lora.py", "runs/my_flow_grpo/lora", 7)
    out = capsys.readouterr().out
    assert "strict" in out and "fidelity" in out


def test_diffusers_alone_draws_with_the_lora(folder):
    run_example("lora_in_diffusers.py", "runs/my_flow_grpo/lora")
    before, after = (Image.open(folder / name) for name in ("before.png", "after.png"))
    assert before.size == after.size == (32, 32)
    assert ImageChops.difference(before, after).getbbox() is not None


def test_every_example_is_run_here_and_is_short():
    scripts = sorted(EXAMPLES.glob("*.py"))
    text = Path(__file__).read_text()
    assert len(scripts) == 5
    for script in scripts:
        assert f'"{script.name}"' in text
        assert len(script.read_text().splitlines()) <= 50


@pytest.mark.parametrize(
    "text, code",
    [
        ("```\nafterflow recipes\n```", 0),
        ("```\nafterflow recipe\n```", 1),
        ("```\n# fails on purpose\nafterflow recipe\n```", 0),
        ("```\n# fails on purpose\nafterflow recipes\n```", 1),
        ("```\n# not run here: there is none\nafterflow recipe\n```", 0),
        ("    afterflow recipe\n", 1),
        ("```python\n# own.py\nx = 3\n```\n\n```python\nfrom own import x\n```\n\n```python\nassert x == 3\n```", 0),
        ("```python\nassert False\n```", 1),
        ("```\npython examples/no_such_script.py\n```", 1),
    ],
)
def test_a_page_ends_as_its_blocks_do(text, code, tmp_path):
    page, clone = tmp_path / "page.md", tmp_path / "clone"
    page.write_text(text)
    clone.mkdir()
    assert Forked(run_page, page, clone).wait(60) == code


@pytest.mark.parametrize("cell, code", [("print(f())", 0), ("assert inspect.getsource(f) == '1'", 1)])
def test_cells_of_a_notebook_share_their_names_and_show_their_source(cell, code, tmp_path):
    first = "import inspect\n\ndef f():\n    return inspect.getsource(f)"
    cells = [{"cell_type": "code", "source": source} for source in (first, "# words", cell)]
    notebook, clone = tmp_path / "notebook.ipynb", tmp_path / "clone"
    notebook.write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": "no code ("}, *cells]}))
    clone.mkdir()
    assert Forked(run_notebook, notebook, clone).wait(60) == code
