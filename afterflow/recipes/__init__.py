"""Recipes: runs worth repeating, by name, each a function that returns a Run or a Chain.

May import every room but `cli`.  Read `shapes.py` first.
"""

import inspect
from collections.abc import Callable, Iterator
from types import ModuleType

from ..experiment.config import Run
from ..experiment.stages import Chain
from . import (
    editing,
    editing_shapes,
    generalist,
    klein_z_image,
    moving,
    papers,
    papers_forward,
    pretrain_tiny,
    seesaw,
    shapes,
    shapes_forward,
    shapes_images,
    shapes_methods,
)


def _recipes(module: ModuleType) -> Iterator[tuple[str, Callable[[], Run | Chain]]]:
    """Yield name and function of a module's recipes, and after a recipe its twin for several processes."""
    for name, recipe in vars(module).items():
        if inspect.isfunction(recipe) and recipe.__module__ == module.__name__ and not name.startswith("_"):
            yield name, recipe
            if name in papers.MULTI_GPU:
                yield f"{name}_8gpu", papers._multi_gpu(recipe)


RECIPE_MODULES = (
    shapes,
    shapes_methods,
    shapes_forward,
    shapes_images,
    generalist,
    seesaw,
    moving,
    editing_shapes,
    pretrain_tiny,
    papers,
    papers_forward,
    klein_z_image,
    editing,
)
RECIPES: dict[str, Callable[[], Run | Chain]] = {
    name: recipe for module in RECIPE_MODULES for name, recipe in _recipes(module)
}
"""Name → recipe."""
