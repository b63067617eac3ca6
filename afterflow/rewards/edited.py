"""The pictures that edits begin from, as rewards see them: in the size of what is drawn, with or without a mask.

A record names its input pictures under `input`, and under `mask` one that is white where the edit may change something.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..system.errors import InputError
from ..system.input_pictures import file_version, input_names, read_input
from ..system.pictures import fit_picture

LEAST_WHITE = 128
"""Least grey level of a mask that counts as white."""


def check_edit(record: dict) -> None:
    """Raise InputError where a record has no input picture, or one that cannot be read."""
    names = input_names(record)
    if not names:
        raise InputError("it has no input, the picture that is edited")
    for name in names:
        picture_size(name)


def check_mask(record: dict) -> None:
    """Raise InputError where a record lacks a mask of its input's size that leaves something to compare."""
    check_edit(record)
    name = record.get("mask")
    if not isinstance(name, str) or not name:
        raise InputError(f"its mask, a picture that is white where the edit may change something, is {name!r}")
    size, first = picture_size(name), picture_size(input_names(record)[0])
    if size != first:
        raise InputError(
            f"its mask has {size[1]} x {size[0]} px and its input {first[1]} x {first[0]}; give it the same"
        )
    if not stays(name, *size).any():
        raise InputError("its mask is white everywhere, so that nothing is left to compare")


def picture_size(name: str) -> tuple[int, int]:
    """Return height and width of an input picture; InputError where it cannot be read."""
    return _picture_size(name, file_version(name))


def pictures_before(record: Mapping[str, Any], height: int, width: int) -> list[np.ndarray]:
    """Return the N input pictures of a record, scaled and cropped as models take them: uint8 (H, W, 3) each."""
    return [as_drawn(name, height, width) for name in input_names(record)]


def inputs_as_drawn(records: Sequence[dict], height: int, width: int) -> np.ndarray:
    """Return the first input picture of B records, scaled and cropped as models take it: uint8 (B, H, W, 3)."""
    return np.stack([as_drawn(input_names(record)[0], height, width) for record in records])


def untouched(records: Sequence[dict], height: int, width: int) -> np.ndarray:
    """Return which pixels the edits of B records leave alone, bool (B, H, W)."""
    return np.stack([stays(record["mask"], height, width) for record in records])


def as_drawn(name: str, height: int, width: int) -> np.ndarray:
    """Return an input picture scaled and cropped to a size, uint8 (H, W, 3)."""
    return _as_drawn(name, file_version(name), height, width)


def stays(name: str, height: int, width: int) -> np.ndarray:
    """Return which pixels a mask leaves alone, bool (H, W)."""
    return _stays(name, file_version(name), height, width)


# By the version of a file as well, which may be exchanged while a server of rewards runs.
@lru_cache(maxsize=65536)
def _picture_size(name: str, version: tuple[int, int] | None) -> tuple[int, int]:
    height, width = read_input(name).shape[:2]
    return height, width


# A group's pictures have one input; a few prompts are in a batch.
@lru_cache(maxsize=64)
def _as_drawn(name: str, version: tuple[int, int] | None, height: int, width: int) -> np.ndarray:
    return fit_picture(read_input(name), height, width)


@lru_cache(maxsize=64)
def _stays(name: str, version: tuple[int, int] | None, height: int, width: int) -> np.ndarray:
    return _as_drawn(name, version, height, width).max(2) < LEAST_WHITE
