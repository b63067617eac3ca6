"""A folder that one process writes at a time: an exclusive lock that ends with its process, even if it is killed."""

import json
import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from .atomic_files import make_folder, writing
from .errors import ConfigError, OutputError

_log = logging.getLogger(__name__)

LOCK = ".lock"
"""File in the folder that is locked; it stays, and only its lock means anything."""


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold the folder, which is made where there is none, for the block.

    ConfigError names the process that holds it, where one does.  A disk that knows no locks is warned of.
    """
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    with writing(folder / LOCK):
        opened = (folder / LOCK).open("ab+", buffering=0)
    with opened as file:
        try:
            lock(file)
        except (BlockingIOError, PermissionError):
            raise ConfigError(f"{folder} {holder(file)}; wait until it ends, or take another --name or --out") from None
        except OSError as error:
            _log.warning(f"{folder} cannot be locked ({error.strerror}); let no other process write to it")
        with writing(folder / LOCK):
            check_own_lock(folder, file)
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        try:
            yield
        finally:
            remove_unused(folder, new_folders or [folder])


def check_unlocked(folder: Path) -> None:
    """Raise ConfigError, which names the process, where another one holds a folder; nothing is made."""
    if (folder / LOCK).is_file():
        with locked_folder(folder):
            pass


def check_own_lock(folder: Path, file: IO[bytes]) -> None:
    """Raise OutputError for a file that has the lock's name and holds something else, which would be lost."""
    file.seek(0)
    content = file.read(4096)
    if content and not (content.startswith(b'{"pid"') and content.endswith(b"}")):
        raise OutputError(f"{folder / LOCK} is no lock of afterflow's; move it away, or take another --name")


def remove_unused(folder: Path, new_folders: Sequence[Path]) -> None:
    """Remove folders, innermost first, where the first holds nothing but its lock."""
    with suppress(OSError):  # somebody may have deleted it
        if [path.name for path in folder.iterdir()] != [LOCK]:
            return
        (folder / LOCK).unlink()
        for path in new_folders:
            path.rmdir()


def lock(file: IO[bytes]) -> None:
    """Lock an open file for this process alone.  BlockingIOError or PermissionError where another has it."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(1 << 20)  # beyond the text, which others then can read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def holder(file: IO[bytes]) -> str:
    """Return which process holds the lock of a file, as far as the file says so."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        file.seek(0)
        process = json.load(file)
        return f"is in use by process {int(process['pid'])} on {process['host']}"
    return "is in use by another process"
