"""What is measured fits the run: its own prompts and rewards, whichever way they were put into a recipe."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from afterflow.cli.train import overridden
from afterflow.data.images import ImageFolder
from afterflow.data.prompts import PromptFile, ShapesPrompts
from afterflow.experiment.evaluation_fit import OWN_SHARE
from afterflow.experiment.prompt_checks import held_out_records, prompt_records, without_share
from afterflow.recipes import RECIPES

OWN = "test_evaluation_fit:redness"
WEIGHTS = f"--algorithm.weights {OWN} 1.0"


@pytest.fixture(autouse=True)
def files(own_folder, monkeypatch):
    Path("mine.txt").write_text("".join(f"prompt {i % 40}\n" for i in range(50)))
    Path("theirs.jsonl").write_text('{"prompt": "theirs"}\n')
    Path("pictures").mkdir()
    Path("test_evaluation_fit.py").write_text("def redness(images, records):\n    return images[..., 0].mean((1, 2))\n")


def changed(recipe, words):
    return overridden(RECIPES[recipe](), words.split(), "train")


def evaluation(recipe, words):
    return changed(recipe, words).evaluation


@pytest.mark.parametrize(
    "recipe, words, best",
    [
        ("shapes_flow_grpo", WEIGHTS, OWN),
        ("shapes_dance_grpo", f"{WEIGHTS} --prompts mine.txt", OWN),
        ("shapes_flow_grpo", f"--algorithm.weights jpeg_compressibility 0.2 {OWN} 0.8 --prompts mine.txt", OWN),
        ("jpeg_ddpo", "--prompts mine.txt", "jpeg_compressibility"),
        ("moving_flow_grpo", WEIGHTS, OWN),
        ("sd35_flow_grpo_ocr", WEIGHTS, OWN),
    ],
)
def test_best_is_chosen_by_what_is_trained_and_no_world_judges_what_is_not_its_own(recipe, words, best):
    run = changed(recipe, words)
    assert run.best_reward == best
    assert not [name for name in run.evaluation.eval_rewards if name.startswith(("shapes_", "moving_"))]


def test_own_prompts_are_held_out_in_place_of_a_recipes():
    fitted = evaluation("shapes_flow_grpo", "--prompts mine.txt --algorithm.weights jpeg_compressibility 1.0")
    assert (fitted.held_out, fitted.held_out_share, fitted.eval_every) == (None, OWN_SHARE, 30)
    run = RECIPES["shapes_flow_grpo"]().with_options(seed=3, data=PromptFile("mine.txt"))
    run = run.with_options(algorithm=replace(run.algorithm, weights={"jpeg_compressibility": 1.0}))
    trained, measured = ([r["prompt"] for r in records(run)] for records in (prompt_records, held_out_records))
    assert len(measured) == 4 and not set(trained) & set(measured)
    assert set(trained) | set(measured) == {f"prompt {i}" for i in range(40)}
    assert held_out_records(run.with_options(seed=4)) == held_out_records(run)


def test_a_list_that_grows_holds_out_what_it_held_out():
    records = [{"prompt": f"prompt {i}"} for i in range(200)]
    few, more = (without_share(records[:n], 0.25)[1] for n in (100, 104))
    assert len(few) == 25 and len(more) == 26 and len([r for r in few if r in more]) >= 22
    assert without_share(records[:1], 0.9) == (records[:1], [])
    assert without_share(records, 0.0) == (records, [])


def test_images_of_ones_own_have_no_evaluators():
    fitted = evaluation("shapes_soar", "--images pictures")
    assert (fitted.held_out, fitted.eval_every, fitted.eval_rewards, fitted.best_by) == (None, 0, (), None)
    assert fitted == RECIPES["shapes_soar"]().with_options(data=ImageFolder("pictures")).evaluation
    kept = evaluation("shapes_soar", "--images pictures --held-out-prompts theirs.jsonl --eval-rewards clipscore")
    assert (kept.held_out, kept.eval_every, kept.eval_rewards) == (PromptFile("theirs.jsonl"), 50, ("clipscore",))


def test_images_that_a_world_judges_have_its_evaluators():
    recipe = RECIPES["shapes_soar"]()
    data = ImageFolder("pictures", min_reward={"shapes_strict": 1.0})
    fitted = recipe.with_options(data=data, held_out=ShapesPrompts("test")).evaluation
    assert fitted.eval_rewards == recipe.evaluation.eval_rewards


@pytest.mark.parametrize(
    "recipe, words",
    [
        ("shapes_flow_grpo", "--iterations 5"),
        ("shapes_flow_grpo", "--data.count 10"),
        ("shapes_flow_grpo", "--algorithm.weights shapes_strict 1.0"),
        ("shapes_flow_grpo", "--algorithm.weights shapes_fidelity 1.0"),
        ("jpeg_ddpo", "--batch 4"),
        ("sd35_flow_grpo_ocr", "--algorithm.weights ocr 0.5"),
    ],
)
def test_an_evaluation_that_fits_stays(recipe, words):
    assert evaluation(recipe, words) == RECIPES[recipe]().evaluation


def test_what_is_set_on_purpose_stays():
    words = f"{WEIGHTS} --prompts mine.txt --held-out-prompts theirs.jsonl --eval-rewards clipscore --best-by clipscore"
    fitted = evaluation("shapes_flow_grpo", words)
    assert (fitted.held_out, fitted.held_out_share) == (PromptFile("theirs.jsonl"), 0.0)
    assert (fitted.eval_rewards, fitted.best_by) == (("clipscore",), "clipscore")


def test_weights_can_be_changed_again():
    run = changed("shapes_flow_grpo", WEIGHTS).with_options(batch=3)
    again = run.with_options(algorithm=replace(run.algorithm, weights={"jpeg_compressibility": 1.0}))
    assert (run.best_reward, again.best_reward) == (OWN, "jpeg_compressibility")


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_is_a_share(share):
    with pytest.raises(ValueError, match="held_out_share"):
        RECIPES["shapes_flow_grpo"]().with_options(held_out=None, held_out_share=share)


def test_best_holds_the_reddest_weights_and_not_the_untrained_ones(monkeypatch, pipeline):
    from afterflow.experiment.execute import execute
    from afterflow.models.sd3 import SD3
    from afterflow.rewards.registry import REWARDS

    scores = iter(np.linspace(0, 1, 500))
    monkeypatch.setitem(REWARDS, "rising", lambda images, records: np.full(len(images), next(scores)))
    run = RECIPES["shapes_flow_grpo"]()
    algorithm = replace(run.algorithm, weights={"rising": 1.0}, steps=6, group=2, beta=0.0)
    run = run.with_options(algorithm=algorithm, data=PromptFile("mine.txt"), model=SD3(pipeline, max_sequence_length=0))
    run = run.with_options(iterations=3, batch=2, chunk=4, eval_every=1, sample_every=0, inference_steps=2)
    folder = execute(run.with_options(mixed_precision="no", name="rising"), "shapes_flow_grpo").folder
    best = json.loads((folder / "best.json").read_text())
    assert (best["reward"], best["step"]) == ("rising", 2)
