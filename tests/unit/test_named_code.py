"""Reading a record runs nothing: what it names is imported where a person names it, and nowhere else."""

import importlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.cli.main import main
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment.config import Run
from afterflow.experiment.model_card import card_metadata, summary_table
from afterflow.experiment.run_folder import read_run
from afterflow.experiment.serialization import to_json
from afterflow.recipes import RECIPES
from afterflow.rewards import named_code, registry
from afterflow.rewards.named_code import module_file, names_of_command, trust_code
from afterflow.rewards.registry import find_reward, load_reward, resolve_reward
from afterflow.system.errors import ConfigError

CANARY = (
    "from pathlib import Path\nPath({mark!r}).touch()\ndef f(images, records):\n    return images.mean((1, 2, 3))\n"
)
SPELLINGS = ("stranger:f", "runs.stranger.evil:f", "package.sub.evil:f")


@pytest.fixture(autouse=True)
def clean(monkeypatch, own_folder):
    for name, value in (("NAMED", {}), ("FROM_FILES", set())):
        monkeypatch.setattr(named_code, name, value)
    monkeypatch.setattr(registry, "RESOLVED", {})
    before, path = set(sys.modules), list(sys.path)
    # Where the demo was run in the repository, `runs` there would be found before that of the test.
    sys.path[:] = [folder for folder in path if not Path(folder, "runs").is_dir()]
    yield
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("stranger", "runs", "package"):
            del sys.modules[name]


@pytest.fixture(params=SPELLINGS)
def stranger(request):
    """The folder of a run that names code, which leaves a mark when it is imported."""
    module = request.param.partition(":")[0]
    file = Path(module.replace(".", "/") + ".py")
    file.parent.mkdir(parents=True, exist_ok=True)
    for folder in (*list(file.parents)[:-1], file.parent):
        if folder != Path():
            (folder / "__init__.py").write_text(CANARY.format(mark="mark"))
    file.write_text(CANARY.format(mark="mark"))
    run = replace(RECIPES["shapes_branch_grpo"](), name="stranger")
    config = to_json(run)
    config["algorithm"]["weights"] = {request.param: 1.0}
    config["evaluation"]["eval_rewards"] = [request.param]
    folder = Path("runs/stranger")
    (folder / "lora").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints" / "step_5").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"recipe": "x", "config": config, "seed": 0}))
    (folder / "metrics.jsonl").write_text('{"step": 0, "seconds_trained": 1.0}\n')
    return request.param


COMMANDS = {
    "resume": "train --resume runs/stranger",
    "from": "train --from runs/stranger/run.json --name other",
    "plan": "train --from runs/stranger/run.json --plan",
    "status": "status runs/stranger",
    "report": "report runs/stranger",
    "tree": "tree runs/stranger prompt",
    "export": "export runs/stranger",
    "push": "push owner/name runs/stranger",
    "eval": "eval tiny --lora runs/stranger",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_imports_what_a_record_names(stranger, command, capsys):
    code = main(COMMANDS[command].split())
    assert not Path("mark").exists()
    if command in ("resume", "from"):
        told = capsys.readouterr().err
        file = Path(stranger.partition(":")[0].replace(".", "/") + ".py").resolve()
        assert code == 2 and str(file) in told and "--trust-code" in told


def test_a_run_and_its_card_import_nothing(stranger):
    run, _ = read_run(Path("runs/stranger"))
    summary_table(run.with_options(iterations=3))
    card_metadata(run)
    assert stranger in run.rewards and not Path("mark").exists()
    with pytest.raises(ConfigError, match="is code that a file names"):
        load_reward(stranger)


def test_a_changed_copy_of_a_recorded_run_is_still_a_strangers(stranger):
    run, _ = read_run(Path("runs/stranger"))
    replace(run, seed=3)
    Run(FlowGRPO({stranger: 1.0}), ShapesPrompts())
    with pytest.raises(ConfigError, match="is code that a file names"):
        resolve_reward(stranger)


def test_the_working_folder_is_searched_only_for_who_asks(stranger):
    Run(FlowGRPO({stranger: 1.0}), ShapesPrompts())  # a person's word, in this process
    sys.path[:] = [folder for folder in sys.path if folder not in ("", str(Path.cwd()))]
    with pytest.raises(ConfigError, match="No module named"):
        resolve_reward(stranger)
    with names_of_command(["--algorithm.weights", stranger, "1"]):
        assert resolve_reward(stranger).score is not None
    assert Path("mark").exists()


@pytest.mark.parametrize("words", [["--weights", "{}", "1"], ["--weights={}=1"], ["--rewards", "x,{}"]])
def test_a_name_on_the_command_line_is_imported_for_that_command(stranger, words):
    with names_of_command([word.format(stranger) for word in words]):
        assert load_reward(stranger).score is not None
    with pytest.raises(ConfigError, match="is code that a file names"):
        load_reward(stranger)


def test_trust_code_is_for_one_command(stranger):
    with names_of_command([]):
        trust_code()
        assert load_reward(stranger).score is not None
    with pytest.raises(ConfigError, match="is code that a file names"):
        load_reward(stranger)


@pytest.mark.parametrize("name", ["a b:f", ":f", "a:", "a..b:f", "../a:f", "a:b:c", "a/b:f", "a:f()"])
def test_what_is_no_name_of_code_is_refused(name):
    with pytest.raises(ConfigError, match="module:function"):
        find_reward(name)


def test_the_file_of_a_module_is_found_without_its_packages(stranger):
    module = stranger.partition(":")[0]
    assert module_file(module) == str(Path(module.replace(".", "/") + ".py").resolve())
    assert not Path("mark").exists() and module_file("no.such.module") == "module no.such.module"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def f(images, records)\n    return 1\n", r"stranger\.py, line 1: SyntaxError: "),
        ("\tx = 1\n", r"stranger\.py, line 1: IndentationError: "),
        ("import numpy\n\nWEIGHTS = open('absent.npy')\n", r"stranger\.py, line 3: FileNotFoundError: "),
        ("x = 1\nx.absent\n", r"stranger\.py, line 2: AttributeError: "),
        ("import absent_module\n", r"No module named 'absent_module'; it reads module:function"),
        ("def g(images, records):\n    return 1\n", r"has no attribute 'f'; it reads module:function"),
    ],
)
def test_code_that_cannot_be_run_is_told_with_its_line(code, words, capsys):
    Path("stranger.py").write_text(code)
    importlib.invalidate_caches()
    assert main(["train", "shapes_flow_grpo", "--algorithm.weights", "stranger:f", "1", "--iterations", "1"]) == 2
    said = capsys.readouterr().err
    assert re.search(words, said) and "Traceback" not in said
