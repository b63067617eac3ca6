"""A file of lines that grows while it is read: each line is read once, and a file that was replaced from its start."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..system.errors import InputError

LINES_AT_ONCE = 1000
"""Number of lines that are parsed at once."""
LARGEST_NUMBER = 1 << 53
"""Bound of whole numbers, below which a float holds each of them."""
KEPT_BYTES = 256
"""Bytes of the end of what was read that are kept, to see whether a file still holds them."""
LARGEST_TAIL = 1 << 17
"""Bytes at the end of a file that are read where the last lines are enough."""


def check_inside_run(path: Path, run_folder: Path) -> Path:
    """Return a path of a run's folder; InputError where a symbolic link takes it out of the folder."""
    if not path.resolve().is_relative_to(run_folder.resolve()):
        raise InputError(f"{path.name} leads out of the folder of its run by a symbolic link, and is not read")
    return path


class GrowingFile:
    """Reads what was added to a file of JSON lines since the last time."""

    def __init__(self, file: Path, run_folder: Path) -> None:
        self.file, self.run_folder = file, run_folder
        self.position, self.inode, self.time = 0, -1, -1
        self.end = b""
        """The last bytes that were read."""

    def changed(self) -> bool:
        """Return whether the file holds something that was not read, or is gone."""
        try:
            state = self.file.stat()
        except OSError:
            return self.inode != -1
        return (state.st_ino, state.st_size, state.st_mtime_ns) != (self.inode, self.position, self.time)

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """Return whether the file is another one than before, and its whole lines that were not read.

        A line that is no object of JSON with a step is passed over.  A file that is not there has no lines.
        """
        anew, content = self.read_bytes()
        texts, lines = content.splitlines(), []
        for start in range(0, len(texts), LINES_AT_ONCE):
            lines += parse_lines(texts[start : start + LINES_AT_ONCE])
        return anew, lines

    def read_bytes(self) -> tuple[bool, bytes]:
        """Return whether the file is another one than before, and the bytes of its whole lines that were not read."""
        if not self.file.is_file():
            anew, self.inode, self.position, self.end = self.inode != -1, -1, 0, b""
            return anew, b""
        with check_inside_run(self.file, self.run_folder).open("rb") as stream:
            state = os.fstat(stream.fileno())
            # A file that was deleted and made anew may have the number of the old one.
            stream.seek(self.position - len(self.end))
            anew = self.inode != -1 and (state.st_ino != self.inode or stream.read(len(self.end)) != self.end)
            if anew or self.inode == -1:
                self.inode, self.position, self.end = state.st_ino, 0, b""
            stream.seek(self.position)
            content = stream.read()
        whole = content.rfind(b"\n") + 1
        self.position, self.time = self.position + whole, state.st_mtime_ns
        self.end = (self.end + content[:whole])[-KEPT_BYTES:]
        return anew, content[:whole]


def parse_lines(texts: Sequence[bytes]) -> list[dict[str, Any]]:
    """Return the objects of those lines that are lines of metrics.

    They are parsed at once, which takes half the time and shares their keys, and one by one where one of them is
    no JSON.
    """
    try:
        values = json.loads(b"[" + b",".join(texts) + b"]")
    except (ValueError, RecursionError):
        values = []
    if len(values) != len(texts):
        return [line for line in map(parse_line, texts) if line is not None]
    return [line for line in values if is_metrics_line(line)]


def parse_line(text: bytes) -> dict[str, Any] | None:
    """Return the object of a line of metrics; None where it is none, or has no step."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if is_metrics_line(line) else None


def is_metrics_line(value: object) -> bool:
    """Return whether a value of JSON is an object with the number of an iteration."""
    return isinstance(value, dict) and is_number(value.get("step")) and 0 <= value["step"] < LARGEST_NUMBER


def is_number(value: object) -> bool:
    """Return whether a value of JSON is a number that a float can hold."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < LARGEST_NUMBER
    return isinstance(value, float)


def first_and_last_lines(file: Path, run_folder: Path, last: int) -> list[dict[str, Any]]:
    """Return the first line of a file and at most `last` whole lines at its end, without reading what is between."""
    with check_inside_run(file, run_folder).open("rb") as stream:
        first = stream.readline(LARGEST_TAIL)
        size = os.fstat(stream.fileno()).st_size
        start = max(len(first), size - LARGEST_TAIL)
        stream.seek(start)
        tail = stream.read(LARGEST_TAIL)
    # The first part of the tail is the end of a line, unless the tail begins where the first line ends.
    texts = tail[: tail.rfind(b"\n") + 1].splitlines()[0 if start == len(first) else 1 :]
    return [line for line in map(parse_line, [first, *texts[-last:]]) if line is not None]
