"""Files that are there whole or not at all, whatever kills the process or the machine."""

import hashlib
import os
from pathlib import Path


def write_text_atomically(file: Path, text: str) -> None:
    """Write it under another name, wait until the disk has it, and rename it."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    flush_to_disk(partial)
    os.replace(partial, file)
    flush_to_disk(file.parent)


def flush_to_disk(path: Path) -> None:
    """Return when the disk has a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
