"""What a run or a stage of a chain is made from: files and folders on this machine, each with a digest."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from ..data.geneval_prompts import ObjectPrompts
from ..data.images import ImageFolder
from ..data.pairs import PairFolder
from ..data.prompts import PromptFile
from ..models.adapters import LoRA, Teacher
from ..models.lora.files import lora_folder
from ..models.lora.merge import LoRAMerge
from ..models.pipeline import Pretrained
from ..system.atomic_files import write_text_atomically
from ..system.errors import CheckpointError
from ..system.text_files import read_json

INPUTS = "inputs.json"
"""The file in the folder of a run or a stage that has the digests of what it was made from."""


def inputs(made: object) -> dict[str, str | None]:
    """Return the folders and files that a run or a stage is made from, each with a digest; None for one without files.

    Pipelines count where they lie in runs/, which a stage before it may have made anew; others are only read.
    """
    paths = dict(named_paths(made))
    return {name: digest_of_path(path) for name, path in paths.items()}


def named_paths(made: object) -> Iterator[tuple[str, Path]]:
    """Yield what a run, a stage or a part of one names on this machine, and where its files are."""
    if isinstance(made, LoRAMerge):
        yield from ((lora, lora_folder(Path(lora))) for lora in made.loras)
    if isinstance(made, Teacher) and made.lora is not None:
        yield made.lora, lora_folder(Path(made.lora))
    if isinstance(made, LoRA) and made.start is not None:
        yield made.start, lora_folder(Path(made.start))
    if isinstance(made, ImageFolder | PairFolder) or (isinstance(made, PromptFile) and Path(made.path).exists()):
        yield made.path, Path(made.path)
    if isinstance(made, ObjectPrompts) and made.exclude is not None:
        yield made.exclude, Path(made.exclude)
    if isinstance(made, Pretrained) and Path(made.path).resolve().is_relative_to(Path("runs").resolve()):
        yield made.path, Path(made.path)
    for part in inner_values(made):
        yield from named_paths(part)


def inner_values(made: object) -> list[Any]:
    """Return the values of a dataclass, of a tuple or of a mapping; none of anything else."""
    if is_dataclass(made):
        return [getattr(made, field.name) for field in fields(made)]
    if isinstance(made, tuple):
        return list(made)
    return list(made.values()) if isinstance(made, Mapping) else []


def digest_of_path(path: Path) -> str | None:
    """Return a digest of a file, or of all files in a folder with their places; None where there are none."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        return None
    content = hashlib.sha256()
    for file in files:
        name = file.name if file == path else file.relative_to(path).as_posix()
        content.update(name.encode())
        with file.open("rb") as stream:  # weights are large
            while block := stream.read(2**20):
                content.update(block)
    return content.hexdigest()


def write_inputs(folder: Path, made: object) -> None:
    """Write what a run or a stage is made from into its folder, before it begins."""
    write_text_atomically(folder / INPUTS, json.dumps(inputs(made)) + "\n")


def check_inputs_unchanged(folder: Path, made: object) -> None:
    """Raise CheckpointError where what a run or a stage was made from has changed since."""
    if not (folder / INPUTS).is_file():
        return
    before, now = read_json(folder / INPUTS), inputs(made)
    for name in before:
        if before[name] != now.get(name):
            raise CheckpointError(f"{folder} was made from another {name}; delete it, and it is made again")
