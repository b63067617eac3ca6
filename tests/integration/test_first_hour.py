"""What a newcomer meets first: help, errors of one style, tables that are whole, and the first lines of a run."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.sft import SFT
from afterflow.cli.main import COMMANDS, main
from afterflow.cli.output import result_console
from afterflow.data.images import ImageFolder
from afterflow.data.prompts import PromptFile, ShapesPrompts
from afterflow.evaluation.report import figure_table
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.experiment.stages import Chain, Merge
from afterflow.models.adapters import LoRA
from afterflow.models.sd3 import SD3
from afterflow.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("own_folder")


def called(*words):
    """The exit code of a command; help of tyro ends the process."""
    try:
        return main(list(words))
    except SystemExit as end:
        return end.code or 0


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps(command, flag, capsys):
    assert called(command, flag) == 0
    out, err = capsys.readouterr()
    assert "usage: afterflow" in out and command in out and not err


WRONG = [
    *[[command, "--no-such-option"] for command in COMMANDS],
    ["nothing"],
    ["sample"],
    ["sample", "tiny"],
    ["push"],
    ["tree"],
    ["export"],
    ["merge", "a"],
    ["compare"],
    ["report"],
    ["serve-rewards"],
    ["eval", "tiny", "--imags", "3"],
    ["eval", "tiny", "--images", "x"],
    ["eval", "tiny", "--images", "0"],
    ["eval", "tiny", "--suite", "foo"],
    ["train", "demo", "--iterations", "x"],
    ["train", "demo", "--iterations", "0"],
    ["train", "demo", "--bath", "3"],
    ["train", "demo", "--tracker", "foo"],
    ["train", "demo", "--tune.rank"],
    ["train", "demo", "5"],
    ["train", "--resume", "runs/nowhere"],
    ["train", "shapes_generalist", "--batch", "3"],
    ["train", "shapes_generalist", "--iterations", "x"],
    ["doctor", "demo", "--bath", "3"],
    ["doctor", "no_recipe"],
]


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_every_error_is_one_line_of_one_style(words, capsys):
    assert called(*words) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(r"afterflow: \S[^\n]{10,400}\n", err), err
    assert not re.search(r"[│╭╰─]|Traceback|Error parsing|literal for int|\(required\)", err)


@pytest.mark.parametrize(
    "words, sentence",
    [
        ("eval tiny --imags 3", "there is no option --imags; did you mean --images? (afterflow eval --help)"),
        ("eval tiny --images x", "--images: 'x' is not a whole number"),
        ("train shapes_flow_grpo --budget-seconds 1h", "--budget-seconds: '1h' is not a number"),
        ("train demo --iterations 0", "iterations = 0: at least 1"),
        ("train demo --learning-rate x", "--learning-rate: 'x' is not a number"),
        ("train demo --tracker foo", "--tracker: no choice is 'foo'; there are 'none', 'tensorboard'"),
        ("train demo --tune.rank", "--tune.rank needs a value after it"),
        ("train demo 5", "5 is not expected here"),
        ("sample", "MODEL is missing: Hub id or folder of a pipeline"),
        ("push", "REPO-ID, RUN is missing: owner/name"),
        ("sample tiny", "a prompt is missing or empty"),
    ],
)
def test_an_error_says_what_is_wrong(words, sentence, capsys):
    assert called(*words.split()) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, sentence",
    [
        ("train shapes_sft --images nowhere", "images nowhere: no such folder"),
        ("train shapes_sft --images ./pictures/cats", "images ./pictures/cats: no such folder"),
        ("train shapes_sft --images /pictures", "images /pictures: no such folder"),
        ("train shapes_sft --images one.png", "images one.png: this is a file"),
        ("train shapes_flow_grpo --prompts nowhere.txt", "prompts nowhere.txt: no such file"),
        ("train runs/nowhere", "runs/nowhere is a path"),
        ("train one.png", "one.png is a path"),
        ("doctor ./demo", "./demo is a path"),
        ("train --from runs/nowhere", "no such file"),
    ],
)
def test_a_path_that_does_not_exist_is_named(words, sentence, capsys):
    Image.new("RGB", (4, 4)).save("one.png")
    assert called(*words.split()) == 2
    assert sentence in capsys.readouterr().err


def test_a_folder_that_might_be_of_the_hub_is_named_before_the_library(monkeypatch, capsys):
    monkeypatch.setattr("afterflow.system.optional_dependencies.find_spec", lambda name: None)
    assert called("train", "shapes_sft", "--images", "pictures/cats") == 2
    assert "images pictures/cats: no such folder, and a data set of the hub needs datasets" in capsys.readouterr().err


def test_a_table_is_whole_in_a_pipe_and_in_a_narrow_terminal(capsys):
    rows = [["a metric with a long name", *["+0.1234 [+0.0123, +0.2345]"] * 9]]
    table = figure_table("metric", [f"column {i}" for i in range(9)], rows)
    result_console().print(table)
    out = capsys.readouterr().out
    assert out.count("+0.1234 [+0.0123, +0.2345]") == 9 and "…" not in out
    narrow = Console(width=60, record=True, force_terminal=True)
    narrow.print(table)
    assert "…" not in narrow.export_text()


@pytest.fixture
def short(pipeline):
    Path("mine.txt").write_text("".join(f"prompt {i}\n" for i in range(20)))
    algorithm = FlowGRPO({"jpeg_compressibility": 1.0}, steps=3, group=2, beta=0.0)
    run = Run(algorithm, PromptFile("mine.txt"), SD3(pipeline, max_sequence_length=0), LoRA(rank=2, alpha=2))
    return run.with_options(iterations=1, batch=2, chunk=4, sample_every=0, inference_steps=2, name="first")


def first_lines(run, capsys, **options):
    execute(run, **options)
    lines = capsys.readouterr().out.splitlines()
    return lines[: next(i for i, line in enumerate(lines) if "(100%)" in line)]


def test_the_first_lines_of_a_run_say_what_it_is(short, capsys):
    evaluated = short.with_options(held_out_share=0.1, eval_every=1, eval_rewards=("shapes_fidelity",))
    run, model, trains, data, held_out, passes, takes = first_lines(evaluated, capsys, recipe="mine")
    assert run == "runs/first: FlowGRPO, recipe mine, seed 0"
    assert f"{short.model.path} (SD3), float32, on cpu" in model
    assert re.search(r"a LoRA of rank 2: [\d,]+ of [\d,]+ parameters", trains)
    assert "18 prompts of PromptFile mine.txt; 2 an iteration with 2 images each; rewards 1 jpeg_compressi" in data
    assert "2 prompts of the run's own, none of which is trained on; every 1 iterations jpeg_comp" in held_out
    assert held_out.endswith("shapes_fidelity (not trained); best/ by shapes_fidelity")
    assert re.search(r"passes    one: the graphs of at most \d+ rows \([\d.]+ GB\) wait for their rewards", passes)
    assert re.search(r"takes     about [\d.]+ (s|min) for 1 iterations", takes)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, "none: nothing is evaluated and there is no best/"),
        ({"held_out_share": 0.01, "eval_every": 1}, "none (a share of 0.01 of so few prompts is less than one)"),
        ({"held_out": PromptFile("mine.txt"), "eval_every": 1}, "20 of which are trained on as well"),
        ({"held_out": ShapesPrompts("test", count=5), "eval_every": 1}, "5 prompts of ShapesPrompts, none of which"),
    ],
)
def test_the_first_lines_say_what_is_held_out(short, changes, words, capsys):
    lines = first_lines(short.with_options(**changes), capsys)
    assert words in next(line for line in lines if line.startswith("  held out"))


def test_the_first_lines_of_a_run_on_images_count_them(short, capsys):
    folder = Path("pictures")
    folder.mkdir()
    draws = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(draws.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / f"{i}.png")
    (folder / "metadata.jsonl").write_text("".join(f'{{"file_name": "{i}.png", "text": "a {i}"}}\n' for i in range(3)))
    text = "\n".join(first_lines(short.with_options(algorithm=SFT(), data=ImageFolder(str(folder))), capsys))
    assert "images of ImageFolder pictures" in text and "3 images" in text and "held out  none" in text


def test_a_chain_takes_plan_and_iterations(short, monkeypatch, capsys):
    stages = (short, replace(short, name="second"), Merge(("runs/first/lora", "runs/second/lora"), name="both"))
    monkeypatch.setitem(RECIPES, "shapes_generalist", lambda: Chain("shapes_generalist", stages))
    assert called("train", "shapes_generalist", "--plan", "--iterations", "7") == 0
    out = capsys.readouterr().out
    assert out.count("PFLOP in 7 iterations") == 2 and "both: Merge, not counted" in out
    done = []
    monkeypatch.setattr("afterflow.experiment.stages.execute_chain", lambda chain: done.append(chain) or "runs/both")
    assert called("train", "shapes_generalist", "--iterations", "7") == 0
    assert [stage.batches.iterations for stage in done[0].stages[:2]] == [7, 7]
