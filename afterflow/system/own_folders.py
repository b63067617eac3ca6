"""What a folder may lose and what it may lead to: only what afterflow wrote is deleted, and no link is followed out."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from .errors import InputError, OutputError


def check_links(folder: Path) -> None:
    """Raise InputError for a symbolic link inside a folder that leads out of it; the folder itself may be one."""
    home = folder.resolve()
    for parent, folders, files in os.walk(home):
        for path in (Path(parent) / name for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                shown = folder / path.relative_to(home)
                raise InputError(
                    f"{shown} is a symbolic link that leads out of {folder}; put what it points to in its place, or "
                    "delete the link"
                )


def check_own(path: Path, is_own: Callable[[Path], bool], mark: str) -> None:
    """Raise OutputError for what would be deleted or replaced and is not afterflow's.

    Args:
        path: A folder, which may be absent or empty.
        is_own: Whether a folder carries the mark of what afterflow wrote.
        mark: The mark in words.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise OutputError(f"{path} is no folder but a file or a symbolic link, which is not replaced; move it away")
    if path.is_dir() and any(path.iterdir()) and not is_own(path):
        raise OutputError(f"{path} holds files and no {mark}, so afterflow did not write it; move it away")


def remove_own(path: Path, is_own: Callable[[Path], bool], mark: str) -> None:
    """Delete a folder that afterflow wrote, if it is there.  OutputError as of `check_own`; then nothing is deleted."""
    check_own(path, is_own, mark)
    if path.is_dir():
        shutil.rmtree(path)


def holds_object(file: Path, key: str) -> bool:
    """Return whether a file is an object of JSON with that key, and no symbolic link."""
    if file.is_symlink() or not file.is_file():
        return False
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and key in content
