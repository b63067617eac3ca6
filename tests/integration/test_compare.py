"""Two short runs beside each other, the page about them, and a tree of one."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from afterflow.algorithms.branch_grpo import BranchGRPO
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.sft import SFT
from afterflow.cli.main import main
from afterflow.data.images import ImageFolder
from afterflow.data.prompts import ShapesPrompts
from afterflow.evaluation import comparison
from afterflow.evaluation.comparison import pooled
from afterflow.evaluation.report import ShapesSettings
from afterflow.evaluation.shapes_suite import Judged, suite_pictures
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.experiment.stages import Chain, Merge, Samples
from afterflow.experiment.train_subprocess import CURVE_PROMPTS, budgeted, has_ended, train_all
from afterflow.models.adapters import LoRA, Teacher
from afterflow.models.sd3 import SD3
from afterflow.models.tiny_parts.build import untrained_tiny_sd3
from afterflow.recipes import RECIPES
from forked import forked_command

SMALL = {"jpeg_compressibility": 1.0}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two runs in runs/pair."""
    path = tmp_path_factory.mktemp("compare")
    torch.manual_seed(0)
    untrained_tiny_sd3().save_pretrained(path / "pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setenv("OMP_NUM_THREADS", "1")
        run = Run(
            BranchGRPO(SMALL, steps=4, splits=(0, 1), path_weight=0.0),
            ShapesPrompts(count=5),
            SD3(str(path / "pipeline"), max_sequence_length=0),
            LoRA(rank=2, alpha=2),
        ).with_options(
            iterations=2,
            batch=2,
            chunk=8,
            sample_every=0,
            inference_steps=2,
            held_out=ShapesPrompts("test", count=5),
            eval_every=1,
        )
        chain = replace(run, algorithm=FlowGRPO(SMALL, steps=4, group=4, beta=0.0))
        starts = SimpleNamespace(Popen=forked_command)
        patch.setattr("afterflow.experiment.train_subprocess.subprocess", starts)
        train_all({"branch": run}, None, 1, "pair")
        # One of the two in a process of its own is enough.
        patch.setattr("afterflow.experiment.train_subprocess.train_in_subprocess", execute)
        train_all({"chain": chain}, None, 1, "pair")
        yield path, {"branch": run, "chain": chain}


@pytest.fixture(autouse=True)
def there(place, monkeypatch):
    monkeypatch.chdir(place[0])


def test_runs_that_have_ended_are_not_repeated(place, capfd):
    folders = train_all(place[1], None, 1, "pair")
    assert [str(folder) for folder in folders] == ["runs/pair/branch_0", "runs/pair/chain_0"]
    assert capfd.readouterr().out.count("there already") == 2
    lines = [json.loads(line) for line in (folders[0] / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert (lines[0]["nfe/rollout"], lines[0]["nfe/update"]) == ((1 + 2 + 4 + 4) / 4, (1 + 2 + 4) / 4)
    assert not has_ended(Path("runs/pair/elsewhere"), place[1]["branch"])


def test_a_folder_with_other_settings_is_neither_taken_for_the_run_nor_gone_on_with(place):
    other = {"branch": place[1]["branch"].with_options(learning_rate=1e-5)}
    with pytest.raises(ValueError, match="runs/pair/branch_0 holds a run with other settings"):
        train_all(other, None, 1, "pair")


def test_the_page_has_everything_in_it(place, capsys):
    assert main(["report", "runs/pair/branch_0", "runs/pair/chain_0", "--prompts", "7", "--images", "2"]) == 0
    page = (place[0] / "runs/report/index.html").read_text()
    assert "branch" in page and "BranchGRPO" in page and "FlowGRPO" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # readable without a network
    assert page.count("data:image/png;base64,") == 2 + 1  # before and after of each, one tree
    found = json.loads((place[0] / "runs/report/comparison.json").read_text())
    first, second = found["methods"]
    assert (first["nfe"]["rollout"], second["nfe"]["rollout"]) == (2.75, 4.0)
    assert first["report"]["overall"]["strict"]["base"] == second["report"]["overall"]["strict"]["base"]
    points = first["runs"][0]["curve"]
    assert [point["steps"] for point in first["curve"]] == [[0], [1]]
    assert first["curve"][1]["means"]["jpeg_compressibility"]["value"] == pytest.approx(
        points[1]["eval/jpeg_compressibility"]
    )
    assert points[0]["evaluations"] == 2 * 4 * (2.75 + 1.75) and len(points) == 2
    assert (place[0] / "runs/report/comparison.png").is_file()
    [apart] = found["differences"]
    assert (apart["first"], apart["second"]) == ("branch", "chain")
    gains = [method["report"]["overall"]["strict"]["delta"]["value"] for method in (first, second)]
    assert apart["strict"]["value"] == pytest.approx(gains[0] - gains[1])
    assert not apart["of_seeds"]  # a seed each says nothing of others


def test_the_bases_pictures_are_drawn_once_for_all_commands(place, monkeypatch):
    drawn, run, settings = [], place[1]["chain"], ShapesSettings(prompts=7, images=2, steps=2, seed=9)
    monkeypatch.setattr(comparison, "suite_pictures", lambda *given: drawn.append(given) or suite_pictures(*given))
    draw = comparison.base_of.__wrapped__  # as another command does, which remembers nothing
    first, again = draw(run.model, settings), draw(run.model, settings)
    assert len(drawn) == 1 and np.array_equal(first.pictures, again.pictures)
    model, others = run.model.load(), (replace(settings, steps=1), replace(settings, guidance=2.0))
    keys = [comparison.pictures_key(model, first.records, each) for each in (settings, *others)]
    keys.append(comparison.pictures_key(model, first.records[1:], settings))
    os.utime(place[0] / "pipeline" / "transformer" / "config.json")
    keys.append(comparison.pictures_key(model, first.records, settings))
    assert len(set(keys)) == len(keys) == 5


def test_of_a_chain_the_last_run_is_compared_and_what_comes_before_is_done_once(place, capfd, monkeypatch):
    run = place[1]["chain"]
    samples = Samples(run.model, (Teacher("base", None, ("counting",)),), ShapesPrompts(count=2, tags=("counting",)))
    samples = replace(samples, per_prompt=1, steps=2)
    data = ImageFolder(str(samples.folder / "images"), caption="caption")
    student = run.with_options(algorithm=SFT(), data=data, iterations=1)
    monkeypatch.setitem(RECIPES, "shapes_curated_sft", lambda: Chain("any", (samples, student)))
    monkeypatch.setattr(
        "afterflow.experiment.train_subprocess.train_in_subprocess", execute
    )  # a process of its own takes seconds to start
    command = ["compare", "shapes_curated_sft", "--seeds", "2", "--name", "drawn", "--prompts", "7", "--images", "1"]
    assert main(command) == 0
    assert capfd.readouterr().out.count("2 pictures by 1 teachers") == 1
    [found] = json.loads((place[0] / "runs/drawn/comparison.json").read_text())["methods"]
    folders = [f"runs/drawn/shapes_curated_sft_{seed}" for seed in (0, 1)]
    assert (found["name"], [each["folder"] for each in found["runs"]]) == ("shapes_curated_sft", folders)

    monkeypatch.setitem(RECIPES, "shapes_curated_sft", lambda: Chain("any", (samples, Merge(("a", "b")))))
    assert main(command) == 2
    assert "any ends in merge, which is not a run" in capfd.readouterr().err


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_tree_is_drawn_for_any_prompt(suffix, capsys):
    out = f"pictures/tree.{suffix}"
    assert main(["tree", "runs/pair/branch_0", "a red sign", "--out", out]) == 0
    with open(out, "rb") as file:
        assert file.read(4) == b"\x89PNG" if suffix == "png" else b"<?xm"


@pytest.mark.parametrize(
    "command, advice",
    [
        (["tree", "runs/pair/chain_0", "a"], "trained by FlowGRPO; only BranchGRPO grows trees"),
        (["tree", "runs/pair/branch_0", "a", "--out", "tree.gif"], ".png or .svg"),
        (["compare", "shapes_branch", "--budget-seconds", "9"], "did you mean shapes_branch_grpo"),
        (["compare", "demo", "--budget-seconds", "0"], "give some of each"),
        (["compare", "tiny_sd3_pretrain", "--budget-seconds", "9"], "trained from scratch"),
        (["report", "runs/nowhere"], "no such file"),
    ],
)
def test_what_cannot_be_shown_is_refused(command, advice, capsys):
    try:
        code = main(command)
    except SystemExit as error:  # tyro's way
        code = error.code
    assert code == 2
    assert advice in capsys.readouterr().err


def test_a_budget_takes_the_place_of_iterations(place):
    run = budgeted(place[1]["branch"].with_options(held_out=None, eval_every=0), 60.0, 3, "pair/long")
    assert (run.batches.budget_seconds, run.seed, run.name, run.evaluation.held_out) == (
        60.0,
        3,
        "pair/long",
        CURVE_PROMPTS,
    )
    assert run.batches.iterations > 10**5


def test_seeds_are_pooled_prompt_by_prompt():
    runs = [Judged({"strict": np.array([0.0, 1.0])}, np.ones((2, 1)), 2.0)]
    runs.append(Judged({"strict": np.array([1.0, 1.0])}, np.ones((2, 1)), 4.0))
    both = pooled(runs)
    assert both.figures["strict"].tolist() == [0.5, 1.0] and both.frechet == 3.0
