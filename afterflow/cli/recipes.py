"""Recipes by name.  Importing them takes seconds, so their list is read from the source."""

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..system.names import unknown_name

if TYPE_CHECKING:
    from ..experiment.config import Run
    from ..experiment.stages import Chain


FOLDER = Path(__file__).parents[1] / "recipes"


def recipes(args: Sequence[str]) -> None:
    """List the recipes."""
    if args:
        raise ValueError(f"afterflow recipes takes no options, so not {args[0]}")
    print(recipe_lines())


def made_by(name: str) -> "Run | Chain":
    """What the recipe of that name says; ValueError where there is none."""
    if name.startswith("-"):
        raise ValueError(f"the recipe comes first, then options such as {name}: afterflow train RECIPE {name} ...")
    if name not in recipe_summaries():
        raise unknown_name("recipe", name, recipe_summaries())
    from ..recipes import RECIPES

    return RECIPES[name]()


def recipe_summaries() -> dict[str, str]:
    """Name and first line of every recipe."""
    return {name: line for file in sorted(FOLDER.glob("*.py")) for name, line in function_summaries(file).items()}


def function_summaries(file: Path) -> dict[str, str]:
    """Return name and first line of every public function of a file, without importing it."""
    nodes = ast.parse(file.read_text(encoding="utf-8")).body
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return {node.name: summary(ast.get_docstring(node)) for node in functions}


def recipe_lines() -> str:
    """Name, label (docs/recipes.md says what it means) and first line of every recipe."""
    found, known = recipe_summaries(), json.loads((FOLDER / "evidence.json").read_text())
    labels = {name: known[name]["label"] for name in found}
    wide, wider = (max(map(len, column)) for column in (found, labels.values()))
    return "\n".join(f"  {name:<{wide}}  {labels[name]:<{wider}}  {line}" for name, line in found.items())


def summary(docstring: str | None) -> str:
    return (docstring or "").strip().partition("\n")[0]
