"""What results that are kept were made from: stamps of files, and a digest of afterflow's own source."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def file_stamps(folder: Path) -> list[tuple[str, int, int]]:
    """Return path, size and time of the last change of every file in a folder, however deep."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]


def options_digest(options: Mapping[str, Any]) -> str:
    """Return a digest of what JSON holds, 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(options).encode()).hexdigest()[:32]


def source_digest(names: Sequence[str]) -> str:
    """Return a digest of rooms and modules of afterflow, each named by its path in the package."""
    package, digest = Path(__file__).parents[1], hashlib.sha256()
    for name in names:
        for file in sorted([package / name, *(package / name).rglob("*.py")]):
            if file.is_file():
                digest.update(file.read_bytes())
    return digest.hexdigest()
