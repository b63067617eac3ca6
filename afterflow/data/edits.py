"""Data of the editing world: requests to explore, and edited pictures to learn from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..envs.shapes.edits import EDIT_TASKS, SIZE, EditScene, draw_edit, edit_suite, render_scene
from ..sampling.seeds import number
from ..system.checks import check_at_least_one
from ..system.errors import ConfigError
from ..system.input_pictures import png_address
from ..system.names import unknown_name
from .images import CaptionedImage, LeftOut, ListedImages, rendered_image
from .prompts import NO_CHECKS, RecordChecks


@dataclass(frozen=True)
class EditPrompts:
    """Requests of the editing world, each about a picture of its own."""

    split: Literal["train", "test"] = "train"
    """train leaves out some (task, class, colour), test asks for those."""
    count: int = 700
    """Number of requests, shared evenly among the tasks and rounded up to a multiple of them."""
    tasks: tuple[str, ...] = EDIT_TASKS
    """What is asked: recolor, remove, add, move, count (up), swap and retype."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "count")
        check_tasks(self.tasks)

    def records(self, seed: int, checks: RecordChecks = NO_CHECKS) -> list[dict]:
        """Return the requests' records; no check is needed, because the world makes valid records only."""
        per_task = -(-self.count // len(self.tasks))
        return edit_suite(self.split, per_task, number(seed, "edit prompts") % 2**32, self.tasks)


@dataclass(frozen=True)
class EditImages(ListedImages):
    """Edited pictures of the editing world, with what was asked and the pictures before."""

    count: int = 20_000
    """Number of edits, rendered before training starts."""
    split: Literal["train", "test"] = "train"
    """Split of what is asked."""
    tasks: tuple[str, ...] = EDIT_TASKS
    """What is asked, used in turn."""
    cropped: bool = False
    """Whether pictures are cut to what the model draws, around what an edit changes: fewer pixels, and of them more to
    learn from.  Edits that change more than fits are left out."""
    min_reward: Mapping[str, float] = field(default_factory=dict)
    """Lowest value of each named reward at which an edit is used for training."""
    cache: bool = False
    """Whether latents are stored on disk for the next run; rendering takes longer than encoding."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "count")
        check_tasks(self.tasks)
        if self.cropped and self.min_reward:
            raise ConfigError("min_reward measures whole pictures, and cropped cuts them; leave one of them out")

    def images(self, seed: int, size: tuple[int, int], unit: int = 1) -> Iterator[CaptionedImage | LeftOut]:
        """Yield the edited pictures, each rendered when it is its turn."""
        fits = max(size) <= SIZE if self.cropped else size == (SIZE, SIZE)
        if not fits:
            raise ConfigError(f"edits have pictures of {SIZE} px, and the model draws {max(size)}; set its size")
        rng, places = (np.random.default_rng(number(seed, purpose)) for purpose in ("edits", "places of cuttings"))
        for i in range(self.count):
            record = draw_edit(self.split, self.tasks[i % len(self.tasks)], rng)
            pixels = render_scene(EditScene.from_record(record["result"]))
            if not self.cropped:
                yield rendered_image(record, pixels, size)
                continue
            before = render_scene(EditScene.from_record(record["scene"]))
            window = change_window(before, pixels, size, places)
            if window is None:
                yield LeftOut("that change more than the model draws")
            else:
                record["input"] = png_address(before[window])
                yield rendered_image(record, pixels[window], size)


def change_window(
    before: np.ndarray, after: np.ndarray, size: tuple[int, int], rng: np.random.Generator
) -> tuple[slice, slice] | None:
    """Return the rows and columns of a random window that holds all that differs in two pictures, uint8 (H, W, 3).

    None where no window of this height and width does.
    """
    changed = (before != after).any(-1)
    window = []
    for axis, side in enumerate(size):
        places = np.flatnonzero(changed.any(1 - axis))
        first, last = (places[0], places[-1]) if len(places) else (0, 0)
        low, high = max(0, last + 1 - side), min(first, changed.shape[axis] - side)
        if low > high:
            return None
        start = int(rng.integers(low, high + 1))
        window.append(slice(start, start + side))
    return window[0], window[1]


def check_tasks(tasks: Sequence[str]) -> None:
    """Raise ConfigError for tasks that the editing world does not have."""
    for task in tasks:
        if task not in EDIT_TASKS:
            raise unknown_name("task", task, EDIT_TASKS)
    if not tasks:
        raise ConfigError("tasks is empty: name at least one of " + ", ".join(EDIT_TASKS))
