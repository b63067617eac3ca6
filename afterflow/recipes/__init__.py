"""Recipes: runs worth repeating, by name, each a function that returns a Run or a Chain.

May import every room but `cli`.  Read `shapes.py` first.
"""

import inspect
from collections.abc import Callable

from ..experiment.config import Run
from ..experiment.stages import Chain
from . import generalist, moving, shapes
from . import papers as real
from . import pretrain_tiny as tiny
from . import shapes_images as images
from . import shapes_methods as family

RECIPES: dict[str, Callable[[], Run | Chain]] = {
    name: recipe
    for module in (shapes, family, images, generalist, moving, tiny, real)
    for name, recipe in vars(module).items()
    if inspect.isfunction(recipe) and recipe.__module__ == module.__name__ and not name.startswith("_")
}
