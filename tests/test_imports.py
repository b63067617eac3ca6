"""The direction of imports, as a table: of ours, a room may import itself and the rooms of its row."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "afterflow"

MATHS = [
    "draws",
    "flow",
    "solvers",
    "kernels",
    "cond",
    "rollout",
    "trees",
    "preferences",
    "advantages",
    "losses",
    "distill",
]  # each may import those before it
WORLD = {"shapes", "geneval"}
BORDERS = {"models", "rewards", "data"}
PLAIN = {
    "seeds",
    "names",
    "extras",
    "files",
    "launch",
}  # not for maths and algorithms, where randomness comes in as an argument
BELOW_SCORING = {*MATHS, *PLAIN, *BORDERS, "algorithms", "train"}
BELOW_RUN = {
    *MATHS,
    *WORLD,
    *BORDERS,
    *PLAIN,
    "tiny",
    "algorithms",
    "train",
    "evaluate",
    "record",
    "report",
    "page",
    "gallery",
}
TOP = {
    "run",
    "scoring",
    "imageset",
    "parts",
    "card",
    "distances",
    "suites",
    "forecast",
    "doctor",
    "promptset",
    "watch",
    "session",
    "compare",
    "chain",
    "treeview",
    "recipes",
    "demo",
    "commands",
    "cli",
    "__main__",
}

ROOMS = {
    "__init__": set(),
    **{room: set(MATHS[:k]) for k, room in enumerate(MATHS)},
    **{room: set() for room in ("geneval", *PLAIN)},
    "shapes": {"geneval"},
    "record": {"names"},
    "report": set(),
    "gallery": {"files"},
    "page": {"report"},
    "tiny": WORLD,
    "algorithms": set(MATHS),
    **{room: {*MATHS, *WORLD, *PLAIN} for room in BORDERS},
    "models": {*MATHS, *WORLD, *PLAIN, "tiny"},
    "train": {*MATHS, *PLAIN, "algorithms", "data", "record"},
    "evaluate": {*MATHS, *WORLD, *PLAIN, *BORDERS, "report"},
    "run": BELOW_RUN,
    "scoring": BELOW_SCORING,
    **{room: BELOW_RUN | TOP for room in TOP - {"run", "scoring"}},
}

# Libraries that only some rooms may import.
ONLY_IN = {library: {"models", "tiny"} for library in ("diffusers", "transformers", "peft")}
ONLY_IN["transformers"] |= {"rewards"}
ONLY_IN["torch"] = set(ROOMS) - WORLD


def imported(path, tree):
    """The dotted names a file imports, relative ones in full: `from ..flow import x` → afterflow.flow.x"""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = ["afterflow", *path.parent.parts]
            base = here[: len(here) + 1 - node.level] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


def complaints(path, source):
    """What is wrong with the imports of the file at `path`, which is relative to the package."""
    room = Path(path.parts[0]).stem
    if room not in ROOMS:
        return [f"{path}: give the room {room!r} a row in tests/test_imports.py"]
    wrong = []
    for name in imported(path, ast.parse(source)):
        library, target = [*name.split("."), ""][:2]
        if library == "afterflow":
            bad = target in ROOMS and target not in ROOMS[room] | {room}
        else:
            foreign = room == "geneval" and library not in sys.stdlib_module_names
            bad = foreign or room not in ONLY_IN.get(library, ROOMS)
        wrong += [f"{path} may not import {name}"] * bad
    return wrong


def test_no_file_imports_against_the_direction():
    files = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py"))]
    assert files
    wrong = [line for path in files for line in complaints(path, (PACKAGE / path).read_text())]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "path, source",
    [
        ("kernels.py", "from afterflow.rollout import Plan"),
        ("flow.py", "from . import losses"),
        ("__init__.py", "from .flow import schedule"),
        ("geneval.py", "import numpy"),
        ("shapes/render.py", "import torch.nn as nn"),
        ("shapes/render.py", "from ..rewards import shapes"),
        ("tiny/train.py", "from afterflow import flow"),
        ("algorithms/sft.py", "from ..seeds import generator"),
        ("algorithms/sft.py", "def loss():\n    from ..models import sd3"),
        ("algorithms/deep/er.py", "from ...train.loop import train"),
        ("data/prompts.py", "import afterflow.models.base"),
        ("rewards/clip.py", "from peft import LoraConfig"),
        ("train/loop.py", "import os, peft"),
        ("evaluate.py", "from afterflow.algorithms import sft"),
        ("run.py", "from afterflow.cli import main"),
        ("utils.py", "import os"),
    ],
)
def test_an_import_against_the_direction_is_named(path, source):
    assert len(complaints(Path(path), source)) == 1


@pytest.mark.parametrize(
    "path, source",
    [
        ("kernels.py", "from afterflow.flow import predict_x0\nimport torch"),
        ("rollout.py", "from . import kernels\nfrom .flow import schedule"),
        ("algorithms/sft.py", "from .base import Supervised\nfrom ..losses import flow_matching"),
        ("geneval.py", "import json\nfrom afterflow import __version__"),
        ("models/sd3.py", "import diffusers\nfrom afterflow.rollout import Rollout"),
        ("commands/pictures.py", "from afterflow import demo, evaluate, recipes, run"),
    ],
)
def test_an_import_along_the_direction_passes(path, source):
    assert complaints(Path(path), source) == []
