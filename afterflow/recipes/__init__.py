"""Runs worth repeating, by name: functions that return a Run.  Vary one by `dataclasses.replace`, or with options."""

from collections.abc import Callable

from ..run import Run
from .shapes import demo, shapes_flow_grpo
from .tiny import tiny_sd3_pretrain

RECIPES: dict[str, Callable[[], Run]] = {
    recipe.__name__: recipe for recipe in (demo, shapes_flow_grpo, tiny_sd3_pretrain)
}
