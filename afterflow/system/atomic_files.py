"""Atomic files: complete or absent, even if the process or the machine is killed."""

import hashlib
import os
from pathlib import Path


def write_text_atomically(file: Path, text: str) -> None:
    """Write `text` to a file of another name, wait until the disk has it, and rename it to `file`."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    flush_to_disk(partial)
    os.replace(partial, file)
    flush_to_disk(file.parent)


def flush_to_disk(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(file: Path) -> str:
    """Return the SHA-256 digest of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
