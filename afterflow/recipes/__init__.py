"""Runs worth repeating, by name: functions that return a Run.  Vary one by `dataclasses.replace`, or with options."""

import inspect
from collections.abc import Callable

from ..chain import Chain
from ..run import Run
from . import family, generalist, images, moving, real, shapes, tiny

RECIPES: dict[str, Callable[[], Run | Chain]] = {
    name: recipe
    for module in (shapes, family, images, generalist, moving, tiny, real)
    for name, recipe in vars(module).items()
    if inspect.isfunction(recipe) and recipe.__module__ == module.__name__ and not name.startswith("_")
}
