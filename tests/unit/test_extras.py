"""Optional libraries: what the extras hold, and that whatever needs one says which."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from afterflow.cli.compare import check_libraries
from afterflow.cli.serve import Serve
from afterflow.data.images import HubImages
from afterflow.data.prompt_lists import read_prompts
from afterflow.experiment.config import Logging, Optimization
from afterflow.experiment.result import Result
from afterflow.recipes import RECIPES
from afterflow.rewards.registry import REWARDS, check_rewards
from afterflow.rewards.vlm.judge import VLMJudge
from afterflow.system.errors import MissingDependencyError

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
FOR_US = {"dev", "docs"}
IMPORTED_AS = {"pillow": "PIL", "huggingface-hub": "huggingface_hub"}


def libraries(requirements):
    """The libraries of these requirements by the names they are imported by; extras of ours are followed."""
    for requirement in requirements:
        name = re.match(r"[\w-]+", requirement).group()
        if name == "afterflow":
            for extra in re.search(r"\[(.*)\]", requirement).group(1).split(","):
                yield from libraries(EXTRAS[extra])
        else:
            yield IMPORTED_AS.get(name, name)


def test_all_is_the_union_of_the_extras():
    others = {name for extra in EXTRAS if extra not in {*FOR_US, "all"} for name in libraries(EXTRAS[extra])}
    assert set(libraries(EXTRAS["all"])) == others and len(others) > 12


def test_a_tracker_alone_brings_no_other():
    for tracker in ("tensorboard", "wandb", "trackio"):
        assert list(libraries(EXTRAS[tracker])) == [tracker]
    assert set(libraries(EXTRAS["track"])) == {"tensorboard", "wandb", "trackio"}


def test_every_library_that_is_imported_is_in_the_dependencies_or_in_an_extra():
    known = {*libraries(PROJECT["dependencies"]), *libraries(EXTRAS["all"]), *sys.stdlib_module_names, "afterflow"}
    imported = set()
    for file in (ROOT / "afterflow").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    assert imported - known == set()


def checked():
    """The libraries and the extra of each call of check_extra in which both are written out."""
    for file in (ROOT / "afterflow").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "check_extra":
                _, names, extra = node.args
                if isinstance(names, ast.List) and isinstance(extra, ast.Constant):
                    yield f"{file.name}:{node.lineno}", ast.literal_eval(names), extra.value


def test_an_extra_that_is_named_holds_what_is_missing():
    calls = list(checked())
    assert len(calls) > 8
    needs = [*calls, *((name, found.libraries, found.extra) for name, found in REWARDS.items() if found.libraries)]
    assert not [where for where, names, extra in needs if not set(names) <= set(libraries(EXTRAS[extra]))]


@pytest.mark.parametrize(
    "use, library, extra",
    [
        (lambda: Logging(tracker="tensorboard"), "tensorboard", "tensorboard"),
        (lambda: Logging(tracker="wandb"), "wandb", "wandb"),
        (lambda: Optimization(optimizer="adamw_8bit"), "bitsandbytes", "quantize"),
        (lambda: HubImages("owner/name"), "datasets", "data"),
        (lambda: read_prompts("owner/name"), "datasets", "data"),
        (lambda: check_rewards(["ocr"]), "rapidocr", "ocr"),
        (lambda: VLMJudge("http://127.0.0.1/v1"), "httpx", "judge"),
        (lambda: Serve(("ocr",))(), "fastapi", "serve"),
        (check_libraries, "matplotlib", "report"),
        (lambda: Result(Path("runs/x")).plot(), "matplotlib", "report"),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(use, library, extra, monkeypatch):
    monkeypatch.setattr("afterflow.system.optional_dependencies.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=rf"needs .*{library}.*; pip install 'afterflow\[{extra}\]'$"):
        use()


def test_what_the_first_page_shows_needs_what_it_installs():
    text = (ROOT / "README.md").read_text()
    installed = set(re.search(r"pip install -e '\.\[(.*?)\]'", text).group(1).split(","))
    recipes = set(re.findall(r"afterflow (?:train|doctor) (\w+)", text))
    assert installed and recipes
    for recipe in recipes:
        extras = {REWARDS[name].extra for name in RECIPES[recipe]().rewards} - {None}
        assert extras <= installed, recipe


def test_the_first_page_names_every_extra():
    table = (ROOT / "README.md").read_text()
    assert not [extra for extra in EXTRAS if extra != "docs" and f"`{extra}`" not in table]
