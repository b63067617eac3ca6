"""The direction of imports: a room imports from the rooms to its left, and from itself."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "afterflow"

ROOMS = (
    "system",
    "envs",
    "sampling",
    "objectives",
    "algorithms",
    "models",
    "rewards",
    "data",
    "train",
    "experiment",
    "evaluation",
    "view",
    "recipes",
    "cli",
)
BORDERS = {"models", "rewards", "data"}
"""Exception 1: borders know sampling's types and what is below it, not each other and no objective or algorithm."""
BELOW_BORDERS = {"system", "envs", "sampling"}
SEEDLESS = {"sampling", "objectives", "algorithms"}
"""Exception 2: randomness comes into the maths as an argument, so none of it imports sampling.seeds."""
ONLY_IN = {
    **{library: {"models"} for library in ("diffusers", "peft")},
    "transformers": {"models", "rewards"},
    "torch": set(ROOMS) - {"system", "envs"},
}
"""Exception 3: libraries that only some rooms may import."""


def imported(path, tree):
    """The dotted names a file imports, in full: `from ..sampling.flow import x` → afterflow.sampling.flow.x"""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = ["afterflow", *path.parent.parts]
            base = here[: len(here) + 1 - node.level] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


def allowed(room):
    """The rooms that a room may import."""
    return BELOW_BORDERS | {room} if room in BORDERS else set(ROOMS[: ROOMS.index(room) + 1])


def complaints(path, source):
    """What is wrong with the imports of the file at `path`, which is relative to the package."""
    room = path.parts[0]
    if len(path.parts) > 1 and room not in ROOMS:
        return [f"{path}: the room {room!r} is not in the list of tests/unit/test_imports.py"]
    if room not in ROOMS:
        return [] if path.name in ("__init__.py", "__main__.py") else [f"{path}: only rooms stand at the top"]
    wrong = []
    for name in imported(path, ast.parse(source)):
        library, target = [*name.split("."), ""][:2]
        if library == "afterflow":
            seeds = name.startswith("afterflow.sampling.seeds") and room in SEEDLESS
            bad = seeds or (target in ROOMS and target not in allowed(room))
        else:
            bad = room not in ONLY_IN.get(library, ROOMS)
        wrong += [f"{path} may not import {name}"] * bad
    return wrong


def test_no_file_imports_against_the_direction():
    files = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py"))]
    assert files
    wrong = [line for path in files for line in complaints(path, (PACKAGE / path).read_text())]
    assert not wrong, "\n".join(wrong)


def test_every_room_says_what_lives_in_it():
    for room in ROOMS:
        text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
        assert text is not None and "Read `" in text, room


def test_the_top_of_the_package_has_at_most_seventeen_entries():
    assert len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]) <= 17


@pytest.mark.parametrize(
    "path, source",
    [
        ("sampling/kernels.py", "from afterflow.objectives.losses import flow_matching"),
        ("sampling/flow.py", "from . import seeds"),
        ("envs/shapes/render.py", "import torch.nn as nn"),
        ("envs/shapes/render.py", "from ...rewards import shapes"),
        ("models/tiny_parts/train.py", "from afterflow.algorithms import sft"),
        ("algorithms/sft.py", "from ..sampling.seeds import generator"),
        ("algorithms/sft.py", "def loss():\n    from ..models import sd3"),
        ("algorithms/deep/er.py", "from ...train.loop import train"),
        ("data/prompts.py", "import afterflow.models.base"),
        ("rewards/clip.py", "from peft import LoraConfig"),
        ("train/loop.py", "import os, peft"),
        ("experiment/setup.py", "from ..evaluation import suites"),
        ("experiment/config.py", "from afterflow.cli.main import main"),
        ("helpers/files.py", "import os"),
        ("tools.py", "import os"),
    ],
)
def test_an_import_against_the_direction_is_named(path, source):
    assert len(complaints(Path(path), source)) == 1


@pytest.mark.parametrize(
    "path, source",
    [
        ("sampling/kernels.py", "from afterflow.sampling.flow import predict_x0\nimport torch"),
        ("sampling/rollout.py", "from . import kernels\nfrom .flow import expand"),
        ("algorithms/sft.py", "from .base import Supervised\nfrom ..objectives.losses import flow_matching"),
        ("envs/geneval_rules.py", "import json\nfrom afterflow import __version__"),
        ("models/sd3.py", "import diffusers\nfrom afterflow.sampling.rollout import Rollout"),
        ("cli/evaluate.py", "from afterflow import evaluation, recipes\nfrom ..experiment import config"),
    ],
)
def test_an_import_along_the_direction_passes(path, source):
    assert complaints(Path(path), source) == []
