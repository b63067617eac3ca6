"""The public names of the package: which there are, where they live, and what importing them costs."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import afterflow

SOURCE = ast.parse(Path(afterflow.__file__).read_text())


def for_editors(tree):
    """The names of the TYPE_CHECKING block, each with its module."""
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    return {alias.name: node.module for node in block.body for alias in node.names}


def test_editors_and_the_interpreter_see_the_same_public_names():
    assert for_editors(SOURCE) == afterflow._MODULES
    assert sorted(afterflow._MODULES) == sorted(afterflow.__all__)


@pytest.mark.parametrize("name", afterflow.__all__)
def test_a_public_name_is_the_one_of_its_module(name):
    value = getattr(afterflow, name)
    assert value is getattr(import_module(f"afterflow.{afterflow._MODULES[name]}"), name)
    assert name in dir(afterflow)


def test_every_algorithm_of_a_run_is_public():
    from typing import get_args

    from afterflow.experiment.config import AnyAlgorithm

    assert {kind.__name__ for kind in get_args(AnyAlgorithm)} <= set(afterflow.__all__)


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Runs'"):
        afterflow.Runs  # noqa: B018


def test_importing_the_package_imports_neither_torch_nor_its_own_rooms():
    code = "import sys, afterflow; afterflow.__all__; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" not in modules and "numpy" not in modules
    assert [name for name in modules if name.startswith("afterflow.")] == []


def test_the_types_are_declared_to_other_packages():
    assert (Path(afterflow.__file__).parent / "py.typed").is_file()
