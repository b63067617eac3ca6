"""What no file of ours may do: run what it reads."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [path for folder in ("afterflow", "sidecars", "bench") for path in sorted((ROOT / folder).rglob("*.py"))]
CHANGES_OUR_SOURCE = ROOT / "bench" / "mutants.py"
"""Runs lines of our own package that it has changed; what it reads comes with this repository."""
UNPICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}


def complaints(source):
    """Line and reason of everything that runs what it reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from ((node.lineno, f"imports {name}") for name in names if name.split(".")[0] in UNPICKLES)
        if isinstance(node, ast.Call):
            yield from ((node.lineno, reason) for reason in of_call(node))


def of_call(node):
    name = ast.unparse(node.func)
    told = {word.arg: word.value for word in node.keywords if word.arg}
    is_true = lambda key: isinstance(told.get(key), ast.Constant) and told[key].value is True
    if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"):
        yield f"calls {name}"
    if name == "torch.load" and not is_true("weights_only"):
        yield "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and "allow_pickle" in told and is_true("allow_pickle"):
        yield "np.load with pickles"
    if name.endswith("yaml.load"):
        yield "yaml.load"
    if "shell" in told and not (isinstance(told["shell"], ast.Constant) and told["shell"].value is False):
        yield "a shell"
    if "trust_remote_code" in told and not (
        isinstance(told["trust_remote_code"], ast.Constant) and told["trust_remote_code"].value is False
    ):
        yield "trust_remote_code"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_is_run(path):
    found = {reason for _, reason in complaints(path.read_text(encoding="utf-8"))}
    assert found == ({"calls exec", "calls compile"} if path == CHANGES_OUR_SOURCE else set())


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from dill import loads",
        "eval(text)",
        "exec(text)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "torch.load(file, weights_only=maybe)",
        "np.load(file, allow_pickle=True)",
        "subprocess.run(words, shell=True)",
        "Model.from_pretrained(path, trust_remote_code=True)",
        "yaml.load(text)",
        "os.system(words)",
    ],
)
def test_the_search_finds_what_it_looks_for(line):
    assert list(complaints(line))


@pytest.mark.parametrize("line", ["block.compile()", "re.compile(x)", "torch.load(f, weights_only=True)", "np.load(f)"])
def test_and_nothing_else(line):
    assert not list(complaints(line))


def test_every_promise_names_a_test_that_is_there():
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page)
    assert len(named) >= 20
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"docs/security.md: {path} has no {name}"
