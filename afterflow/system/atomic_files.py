"""Files that are written: complete or absent, even if the process or the machine is killed, and readable by whom the
user lets read."""

import hashlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from .errors import OutputError


def write_text_atomically(file: Path, text: str) -> None:
    """Write `text` to a file of another name, wait until the disk has it, and rename it to `file`.

    OutputError where it cannot be written; then the file is as it was.
    """
    with replacing(file) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")
        flush_to_disk(partial)
    with writing(file):
        flush_to_disk(file.parent)


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield the file of another name that the block writes, and rename it to `file` when the block ends.

    Where the block fails, or a signal ends it, the file is as it was.  OutputError as of `writing`.  A device is
    written itself.
    """
    with writing(file):
        if file.exists() and not file.is_file():
            yield file
            return
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        try:
            yield partial
            os.replace(partial, file)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file, whole or not at all.  OutputError where the disk does not take it."""
    with replacing(file) as partial:
        partial.write_bytes(content)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise OutputError, which says what and why, where a disk stops the block from writing `path`.

    A symbolic link is not written through, because what it leads to may be anybody's; devices are.
    """
    if path.is_symlink() and not path.is_relative_to("/dev"):
        raise OutputError(f"{path} is a symbolic link, which is not written through; delete it or take another name")
    try:
        yield
    except OutputError:
        raise
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{path} cannot be written: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Return why a file cannot be written, and what to do, in a few words."""
    if isinstance(error, PermissionError):
        return f"{error.strerror}; work in a folder that is yours, or change whose it is"
    if isinstance(error, FileExistsError | IsADirectoryError | NotADirectoryError):
        return f"{error.strerror}; a file stands where a folder should, or the other way about; take another name"
    code = re.search(r"\(os error (\d+)\)", str(error))
    if isinstance(error, SafetensorError) and code is not None:
        return reason(OSError(int(code[1]), os.strerror(int(code[1]))))
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}; make room or take another disk, then repeat the command"
    return str(error)


def make_folder(folder: Path) -> Path:
    """Make a folder with those above it where they are missing, and return it.  OutputError where that cannot be."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def apply_umask(path: Path) -> None:
    """Give a file, or all files in a folder, the permissions that the user's umask gives to new files.

    safetensors makes files that only their owner may read.
    """
    folder = path if path.is_dir() else path.parent
    probe = folder / f".{os.getpid()}.probe"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def flush_to_disk(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder; Windows writes those by itself."""
    if sys.platform == "win32" and path.is_dir():
        return
    # Windows flushes only what is open for writing.
    handle = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(file: Path) -> str:
    """Return the SHA-256 digest of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
