"""Sets of pictures on one sheet: the first picture of some prompts from each set, beside what the prompts are about."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..experiment.image_grid import before_after, spread_rows
from ..system.pictures import fit_picture
from .image_set import ImageSet
from .image_store import prompt_folders, read_prompt


def grid_of_sets(sets: Sequence[ImageSet], scores: Sequence[np.ndarray]) -> Image.Image:
    """Return the first picture of at most 48 prompts from each set, over a green line where it passed.

    A clip is shown by its middle frame.  Where scores are not 0 and 1 alone, there is no line.

    Args:
        sets: Sets of the same prompts, in the order in which they are shown.
        scores: Scores (P, K) of each set by one reward, NaN without one.
    """
    records = sets[0].records
    rows = spread_rows(len(records))
    pictures = [[first_picture(images, row) for row in rows] for images in sets]
    height, width = pictures[0][0].shape[:2]
    fitted = [np.stack([fit_picture(picture, height, width) for picture in of_set]) for of_set in pictures]
    verdicts = all(np.isin(of_set, (0.0, 1.0)).all() for of_set in scores)
    passed = [of_set[rows, 0] == 1 if verdicts else None for of_set in scores]
    return before_after([records[row] for row in rows], list(zip(fitted, passed)))


def first_picture(images: ImageSet, row: int) -> np.ndarray:
    """Return the first picture of a prompt, uint8 (H, W, 3), or the middle frame of its first clip."""
    first = read_prompt(prompt_folders(images.folder)[row])[0]
    return first if first.ndim == 3 else first[len(first) // 2]
