"""The scripts in examples/ do what they say, in this process and with small numbers."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageChops

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name, *words):
    """What the script leaves behind when it is started with these words."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, words)])
        patch.syspath_prepend(EXAMPLES)  # as the interpreter does for a script
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
