"""What a folder may lose and what it may lead to: only what afterflow wrote is deleted, and no link is followed out."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from .errors import InputError, OutputError

MAKER = "afterflow"
"""What the pictures that afterflow makes say of their maker."""
MARK_FILES = ("run.json", "stage.json", "inputs.json")
"""Files that say of a folder that a run or a stage of a chain left it."""


def check_links(folder: Path, home: Path | None = None) -> None:
    """Raise InputError for a symbolic link inside a folder that leads out of `home`; None is the folder itself.

    The folder may be a link.
    """
    home = home or folder
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent) / name for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(home.resolve()):
                raise InputError(
                    f"{path} is a symbolic link that leads out of {home}; put what it points to in its place, or "
                    "delete the link"
                )


def check_inside(path: Path, home: Path | None = None) -> None:
    """Raise InputError for a part of a run or of a stage that a symbolic link takes out of its folder.

    Args:
        path: A file, or a folder whose files are read.
        home: Folder of the run or stage.  None: that in which `path` lies by its name; outside of one it may be a link.
    """
    home = home or next((above for above in reversed((path, *list(path.parents)[:2])) if holds_mark(above)), None)
    if home is None:
        return
    if not path.resolve().is_relative_to(home.resolve()):
        link = next(part for part in (path, *path.parents) if part.is_symlink())
        raise InputError(f"{link} is a symbolic link that leads out of {home}; name what it points to")
    check_links(path, home)


def check_place(folder: Path) -> None:
    """Raise OutputError where a folder below runs/ would be written through a symbolic link; runs/ may be one."""
    for path in (folder, *folder.parents[:-2]):
        if path.is_symlink():
            raise OutputError(
                f"{path} is a symbolic link, which is not written through; delete it or take another name"
            )


def holds_mark(folder: Path) -> bool:
    """Return whether a folder carries a file by which a run or a stage of a chain is known."""
    return any((folder / name).is_file() for name in MARK_FILES)


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


def check_own_file(file: Path, is_own: Callable[[Path], bool]) -> None:
    """Raise OutputError for a file that would be replaced and that afterflow did not write.

    Nothing is lost where it is empty, or no file but a device.
    """
    if file.is_symlink() and not file.is_relative_to("/dev"):
        raise OutputError(f"{file} is a symbolic link, which is not written through; delete it or take another name")
    if file.is_dir():
        raise OutputError(f"{file} is a folder, and a file is written; name a file in it")
    if file.is_file() and file.stat().st_size and not is_own(file):
        raise OutputError(f"{file} was not written by afterflow and is not replaced; move it away or take another name")


def is_own_picture(file: Path) -> bool:
    """Return whether a picture says that afterflow made it: PNG and GIF do at their beginning, SVG in its title."""
    with file.open("rb") as stream:
        return MAKER.encode() in stream.read(4096)


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
