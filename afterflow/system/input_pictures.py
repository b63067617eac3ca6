"""The pictures that prompts are about: what is to be edited, or the first frame of a clip.

A record names them under `input`: one, or a list, each a file or a data: address that holds a PNG.  Under `mask` it may
name one more in the same way, and under `image` the file of a picture to be like.
"""

import base64
import hashlib
import io
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
from PIL import Image

from .errors import InputError
from .own_folders import check_inside
from .pictures import named_picture, read_header, read_picture

PNG_ADDRESS = "data:image/png;base64,"
"""Start of an address that holds a PNG itself."""
MOST_PIXELS = 2**26
"""Largest number of pixels of an input."""


def input_names(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of a record's input pictures; InputError where `input` is neither a text nor a list of them."""
    value = record.get("input")
    names = () if value is None or value == "" else (value,) if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        shown = reprlib.repr(value)  # it may be a whole picture
        raise InputError(f"prompt {record.get('prompt')!r}: input = {shown}; it names a picture, or a list of them")
    return tuple(names)


def prompt_key(record: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return what tells a prompt from others: its text, which edits repeat, and the names of its input pictures."""
    return record["prompt"], input_names(record)


def content_key(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what tells a prompt from others wherever its pictures lie: its text, and their contents."""
    return record["prompt"], *map(picture_content, input_names(record))


def with_digests(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record whose pictures are named by the digests of their files, which may move or change.

    data: addresses, which are contents themselves, and names of files that are not there stay as they are.
    """
    return rename_pictures(record, lambda key, name: picture_content(name))


def rename_pictures(record: Mapping[str, Any], rename: Callable[[str, str], str]) -> dict[str, Any]:
    """Return a record whose pictures have other names: its inputs in order, then their mask, and the one to be like.

    rename: Function of the key under which a picture is named, and its name, to its other name.
    """
    renamed = dict(record)
    if names := [rename("input", name) for name in input_names(record)]:
        renamed["input"] = names[0] if isinstance(record["input"], str) else names
    for key in ("mask", "image") if names else ("image",):
        if isinstance(name := record.get(key), str) and name:
            renamed[key] = rename(key, name)
    return renamed


def picture_content(name: str) -> str:
    """Return the digest of the file of an input or a mask; a data: address, or a file that is not there, as it is."""
    version = file_version(name)
    return name if version is None else _file_digest(name, version)


def file_version(name: str) -> tuple[int, int] | None:
    """Return the time and the size of the file of an input, which change with it.

    None for a data: address, and for a file that is not there.
    """
    if name.startswith("data:"):
        return None
    try:
        state = Path(name).stat()
    except (OSError, ValueError):  # which a text that is no name raises, too
        return None
    return (state.st_mtime_ns, state.st_size) if S_ISREG(state.st_mode) else None


@lru_cache(maxsize=65536)
def _file_digest(name: str, version: tuple[int, int]) -> str:
    with Path(name).open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def read_input(name: str) -> np.ndarray:
    """Read an input picture as uint8 (H, W, 3); InputError where it cannot be read."""
    source, shown = picture_source(name)
    formats = ("PNG",) if isinstance(source, bytes) else None
    return read_picture(source, shown, formats=formats, max_pixels=MOST_PIXELS)


def picture_source(name: str) -> tuple[Path | bytes, str]:
    """Return the file of an input, or what its data: address holds, and what messages call it.

    InputError for an address that holds no PNG.
    """
    if not name.startswith("data:"):
        return Path(name), name
    if not name.startswith(PNG_ADDRESS):
        raise InputError(f"input {name[:40]}…: of data addresses only {PNG_ADDRESS} is read")
    try:
        return base64.b64decode(name.removeprefix(PNG_ADDRESS), validate=True), f"{name[:40]}…"
    except ValueError as error:
        raise InputError(f"input {name[:40]}…: not base64 ({error})") from None


def input_size(name: str) -> tuple[int, int]:
    """Return height and width of an input picture, by its header; InputError where it has none."""
    header = read_header(*picture_source(name))
    return header.height, header.width


def check_readable(name: str) -> None:
    """Raise InputError for an input picture that is none, by the header of its file, or by all of a data: address."""
    if name.startswith("data:"):
        read_input(name)
        return
    height, width = input_size(name)
    if height * width > MOST_PIXELS:
        raise InputError(f"{name}: an image has at most {MOST_PIXELS} pixels here")


def check_all_readable(records: Iterable[Mapping[str, Any]]) -> None:
    """Raise InputError where an input picture of a record is none, as `check_readable` tells."""
    for name in dict.fromkeys(name for record in records for name in input_names(record)):
        check_readable(name)


def png_address(pixels: np.ndarray) -> str:
    """Return the address that holds a picture, uint8 (H, W, 3), without loss."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", optimize=True)
    return PNG_ADDRESS + base64.b64encode(stream.getvalue()).decode("ascii")


def locate_inputs(record: Mapping[str, Any], folder: Path | None, location: str) -> dict[str, Any]:
    """Return a record whose inputs and mask are whole paths of pictures in `folder`, and so is its picture to be like.

    Without a folder, data: addresses alone are read.  InputError, with the location, where one is not there or leads
    out of the folder.  A picture to be like that is not in the folder keeps its name, which counts from the working
    folder.
    """
    try:
        input_names(record)
    except InputError as error:
        raise InputError(f"{location}: {error}") from None

    def located(key: str, name: str) -> str:
        try:
            return whole_path(name, key, folder, location)
        except InputError:
            if key != "image":
                raise
            return name  # which counts from the working folder

    return rename_pictures(record, located)


def whole_path(name: str, key: str, folder: Path | None, location: str) -> str:
    """Return the whole path of a picture in a folder, which a record names under `key`; a data: address as it is."""
    if name.startswith("data:"):
        return name
    if folder is None:
        raise InputError(f"{location}: {key} {name[:80]!r} is a file's name, and here only {PNG_ADDRESS}… is read")
    file = named_picture(folder, name, key, location)
    check_inside(file)
    return str(file.resolve())


def check_inputs(records: Sequence[Mapping[str, Any]], takes: str, model: str, most: int | None = None) -> int:
    """Return the number of input pictures of each record.

    InputError where records differ in it, and where the model takes none, needs one or takes fewer.

    Args:
        records: The prompts.
        takes: never, may or must: whether the model draws from pictures.
        model: What messages call the model.
        most: Largest number of pictures of a prompt.  None: there is no limit.
    """
    counts = {len(input_names(record)): record for record in reversed(records)}
    if takes == "never" and any(counts):
        record = counts[max(counts)]
        raise InputError(
            f"prompt {record['prompt']!r} has an input picture, and {model} draws from text alone; take a model that "
            "edits, or leave input out"
        )
    if takes == "must" and 0 in counts:
        raise InputError(
            f"prompt {counts[0]['prompt']!r} has no input picture, and {model} edits pictures; name one under input"
        )
    if most is not None and max(counts, default=0) > most:
        record = counts[max(counts)]
        raise InputError(
            f"prompt {record['prompt']!r} has {max(counts)} input pictures, and {model} takes {most}; name fewer under "
            "input"
        )
    if len(counts) > 1:
        (n, one), (m, other) = sorted(counts.items(), key=lambda item: item[0])[:2]
        raise InputError(
            f"prompt {one['prompt']!r} has {n} input pictures and prompt {other['prompt']!r} has {m}; give every "
            "prompt as many"
        )
    return next(iter(counts), 0)
