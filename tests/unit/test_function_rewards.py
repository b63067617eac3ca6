"""A Python function is a reward: recorded by name and digest, trained on only where the same one is given."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from afterflow import execute, read_run, reward
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.cli.main import main
from afterflow.data.images import ImageFolder
from afterflow.data.prompts import PromptFile
from afterflow.experiment.config import Run
from afterflow.experiment.stages import Chain, execute_chain
from afterflow.models.adapters import LoRA
from afterflow.models.sd3 import SD3
from afterflow.objectives.advantages import Blend
from afterflow.recipes import RECIPES
from afterflow.rewards.functions import GIVEN, give_function
from afterflow.rewards.jpeg import compressibility as jpeg_compressibility
from afterflow.system.errors import AfterflowError, ConfigError


def redness(images, records):
    """How much redder than green and blue."""
    return images[..., 0].mean((1, 2)) - images[..., 1:].mean((1, 2, 3))


SAME, SCALE = redness, 2.0


def scaled(images, records):
    return SCALE * redness(images, records)


class Channel:
    def __init__(self, index):
        self.index = index

    def __call__(self, images, records):
        return images[..., self.index].mean((1, 2))


def channel(index):
    def one_channel(images, records):
        return images[..., index].mean((1, 2))

    return one_channel


def pick(images, records, index=0):
    return images[..., index].mean((1, 2))


@pytest.fixture(autouse=True)
def clean(monkeypatch, own_folder):
    monkeypatch.setattr("afterflow.rewards.functions.GIVEN", GIVEN)
    GIVEN.clear()
    with open("prompts.txt", "w") as file:
        file.write("a red heart\na ring\na blue square\n")


@pytest.fixture
def run(pipeline):
    short = {"iterations": 2, "batch": 2, "chunk": 4, "sample_every": 0, "inference_steps": 2, "name": "red"}
    algorithm = FlowGRPO({redness: 1.0}, steps=3, group=2, beta=0.0)
    base = SD3(pipeline, max_sequence_length=0)
    return Run(algorithm, PromptFile("prompts.txt"), base, LoRA(rank=2, alpha=2)).with_options(**short)


def other_redness():
    def redness(images, records):
        return images[..., 0].mean((1, 2))

    return redness


def test_a_function_is_trained_on_and_the_result_can_be_used(run, capsys):
    result = execute(run)
    assert result.lora == result.folder / "lora" and result.model is None
    metrics = result.metrics
    assert metrics["step"].tolist() == [0, 1] and np.isfinite(metrics["reward/redness"]).all()
    assert "reward/redness" in repr(metrics) and "<td>" in metrics._repr_html_()
    assert {len(column) for column in metrics.values()} == {2}
    assert result.plot()._repr_png_()[:4] == result.plot("reward")._repr_png_()[:4] == b"\x89PNG"
    with pytest.raises(ConfigError, match="did you mean reward"):
        result.plot("rewrad")
    record = json.loads((result.folder / "run.json").read_text())
    assert record["config"]["algorithm"]["weights"] == {"redness": 1.0} and record["recipe"] == "FlowGRPO"
    assert record["config"]["functions"] == {"redness": give_function("redness", redness)}
    assert "red: iteration 2 of 2" in capsys.readouterr().out  # progress, without any set-up of logging


def test_a_run_is_resumed_by_the_same_function_alone(run, capsys):
    execute(run)
    longer = run.with_options(iterations=3)
    assert len(execute(longer, resume=True).metrics["step"]) == 3
    changed = run.with_options(algorithm=replace(run.algorithm, weights={other_redness(): 1.0}), iterations=4)
    with pytest.raises(AfterflowError, match="runs/red was trained by another redness"):
        execute(changed, resume=True)
    with pytest.raises(ConfigError, match="not the function that this run was made with"):
        execute(longer.with_options(iterations=5), resume=True)  # made before `redness` was given anew
    GIVEN.clear()  # as in another process
    recorded, _ = read_run(run.folder)
    assert recorded.algorithm.weights == {"redness": 1.0}
    for command in (["train", "--resume", "runs/red"], ["train", "--from", "runs/red/run.json", "--name", "b"]):
        assert main(command) == 2
        assert "reward redness is a Python function, of which a record holds" in capsys.readouterr().err
    assert main(["status", "runs/red"]) == 0


@pytest.mark.parametrize(
    "one, other",
    [
        (redness, other_redness()),
        (Channel(0), Channel(1)),
        (channel(0), channel(1)),
        (partial(pick, index=0), partial(pick, index=1)),
        (reward("a", 0, 1)(redness), reward("a", 0, 2)(redness)),
    ],
)
def test_what_a_function_is_made_of_is_in_its_digest(one, other):
    assert give_function("a", one) == give_function("a", one) != give_function("a", other)


def test_a_number_or_a_function_of_the_same_module_that_it_uses_is_in_its_digest(monkeypatch):
    before = give_function("scaled", scaled)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    changed = give_function("scaled", scaled)
    monkeypatch.setitem(globals(), "redness", other_redness())
    assert len({before, changed, give_function("scaled", scaled)}) == 3


def test_a_function_without_a_file_has_a_digest():
    scope = {}
    exec("def f(images, records):\n    return images.mean((1, 2, 3))", scope)
    first = give_function("f", scope["f"])
    exec("def f(images, records):\n    return images.mean((1, 2, 3)) + 1", scope)
    assert give_function("f", scope["f"]) != first


def test_functions_stand_wherever_a_reward_is_named():
    run = RECIPES["shapes_flow_grpo"]()
    algorithm = replace(run.algorithm, weights={SAME: 1.0}, blend=Blend(gate={scaled: 0.5}))
    run = run.with_options(algorithm=algorithm, eval_rewards=(channel(1),), best_by=SAME)
    assert run.algorithm.requirements.rewards == ("redness", "scaled") and run.best_reward == "redness"
    assert run.watched == ("redness", "scaled", "one_channel")
    assert set(run.functions) == {"redness", "scaled", "one_channel"}
    dropped = run.with_options(algorithm=replace(run.algorithm, weights={"redness": 1.0}, blend=Blend()))
    assert set(dropped.functions) == {"redness", "one_channel"}
    images = RECIPES["shapes_sft"]().with_options(data=ImageFolder("x", min_reward={redness: 1.0}))
    assert images.data.min_reward == {"redness": 1.0} and set(images.functions) == {"redness"}


def test_a_reward_of_ours_is_its_name():
    run = RECIPES["jpeg_ddpo"]()
    run = run.with_options(algorithm=replace(run.algorithm, weights={jpeg_compressibility: 1.0}))
    assert run.algorithm.weights == {"jpeg_compressibility": 1.0} and run.functions == {}


def named(name):
    def function(images, records):
        return images.mean((1, 2, 3))

    function.__name__ = name
    return function


@pytest.mark.parametrize(
    "weights, words",
    [
        ({(lambda images, records: images.mean((1, 2, 3))): 1.0}, "needs a name"),
        ({named("ocr"): 1.0}, "a reward of afterflow is called ocr"),
        ({named("win_rate"): 1.0}, "a reward of afterflow is called win_rate"),
        ({redness: 1.0, other_redness(): 1.0}, "two functions are called redness"),
        ({redness: 1.0, "redness": 1.0}, "a reward is named twice"),
        ({3: 1.0}, "a reward is a name or a function, not 3"),
        ({(lambda images: images): 1.0}, "needs a name"),
        ({len: 1.0}, "must take"),
    ],
)
def test_what_cannot_be_a_reward_is_refused(weights, words):
    run = RECIPES["jpeg_ddpo"]()
    with pytest.raises(ConfigError, match=words):
        run.with_options(algorithm=replace(run.algorithm, weights=weights))


def test_a_chain_cannot_give_a_function_to_its_processes(run):
    with pytest.raises(ConfigError, match="'MODULE:redness'"):
        execute_chain(Chain("chain", (run,)))
