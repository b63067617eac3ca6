"""Pairs of pictures to show: those of stored pictures, drawn by a seed, and those that a run waits for."""

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ...system.atomic_files import make_folder, replacing, write_text_atomically
from ...system.errors import InputError, OutputError
from ...system.once import say_once
from ...system.text_files import read_json
from ...system.verdicts import is_inside_path

_log = logging.getLogger(__name__)

VOTES_FOLDER = "votes"
"""Folder in that of a run, or of pictures, that one `afterflow vote` has at a time."""
DRAWN_FOLDER = f"{VOTES_FOLDER}/drawn"
"""Pictures that were drawn to be judged, in GenEval's layout."""
LIVE_FOLDER = f"{VOTES_FOLDER}/live"
"""Pictures that a run has asked about, each with its prompt in a .txt beside it."""
WAITING_FOLDER = f"{VOTES_FOLDER}/waiting"
"""A file for each pair that a run waits for."""


class PicturePair(NamedTuple):
    """Two pictures of one prompt, which nobody has decoded yet."""

    prompt: str
    """The prompt of both."""
    one: str
    """Path of a picture, relative to the folder of the verdicts."""
    other: str
    """Path of another picture."""

    @property
    def key(self) -> tuple[str, frozenset[str]]:
        """The pair in whichever order."""
        return self.prompt, frozenset((self.one, self.other))


def choose_pairs(pictures: Mapping[str, Sequence[str]], per_prompt: int, seed: int) -> list[PicturePair]:
    """Draw pairs of pictures of the same prompt, all different, in an order that goes round the prompts.

    Args:
        pictures: Prompt → paths of its pictures.
        per_prompt: Number of pairs of each prompt, at most.
        seed: Seed of the draw.
    """
    rng = np.random.default_rng(seed)
    rounds: list[list[PicturePair]] = [[] for _ in range(per_prompt)]
    for prompt, paths in pictures.items():
        total = math.comb(len(paths), 2)
        for turn, number in enumerate(
            rng.choice(total, min(per_prompt, total), replace=False).tolist() if total else ()
        ):
            row = (1 + math.isqrt(8 * number + 1)) // 2  # number = row (row - 1) / 2 + column, with column < row
            column = number - row * (row - 1) // 2
            rounds[turn].append(PicturePair(prompt, paths[column], paths[row]))
    return [pairs[i] for pairs in rounds for i in rng.permutation(len(pairs)).tolist()]


def show_live_pair(folder: Path, prompt: str, digests: Sequence[str], images: Sequence[np.ndarray]) -> Path:
    """Write two pictures, and a file that asks a person about them; return the file, to be deleted when it is answered.

    Args:
        folder: Folder of the verdicts.
        prompt: Prompt of both pictures.
        digests: Digests of both.
        images: Both, uint8 (H, W, 3).
    """
    for path in (LIVE_FOLDER, WAITING_FOLDER):
        if not (folder / path).resolve().is_relative_to(folder.resolve()):
            raise OutputError(f"{folder / path} leads out of {folder}; delete the symbolic link")
        make_folder(folder / path)
    paths = []
    for digest, image in zip(digests, images):
        name = hashlib.sha256(f"{digest} {prompt}".encode()).hexdigest()[:32]
        picture = folder / LIVE_FOLDER / f"{name}.png"
        if not picture.is_file():
            write_text_atomically(picture.with_suffix(".txt"), prompt + "\n")
            with replacing(picture) as partial:
                Image.fromarray(image).save(partial, format="PNG")
        paths.append(f"{LIVE_FOLDER}/{name}.png")
    pair = hashlib.sha256("".join(sorted(paths)).encode()).hexdigest()[:32]
    file = folder / WAITING_FOLDER / f"{pair}.{os.getpid()}.json"
    write_text_atomically(file, json.dumps({"prompt": prompt, "one": paths[0], "other": paths[1]}) + "\n")
    return file


class LivePairs:
    """The pairs that a run waits for, read again whenever they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / WAITING_FOLDER
        self.read_files: dict[Path, PicturePair | None] = {}

    def pairs(self) -> list[PicturePair]:
        """Return the pairs that wait at present; several processes may wait for one."""
        files = sorted(self.folder.glob("*.json")) if self.folder.is_dir() else []
        self.read_files = {file: self.read_files.get(file) or read_waiting(file) for file in files}
        return list({pair.key: pair for pair in self.read_files.values() if pair is not None}.values())

    def remove(self, pair: PicturePair) -> None:
        """Delete the files of a pair that was answered: a run that was killed cannot."""
        for file, waiting in self.read_files.items():
            if waiting is not None and waiting.key == pair.key:
                with suppress(OSError):
                    file.unlink()


def read_waiting(file: Path) -> PicturePair | None:
    """Return the pair of a file that a run wrote; None where it is gone, or, with a warning, where it holds none."""
    try:
        value = read_json(file)
    except InputError:
        value = None
    if isinstance(value, dict) and all(isinstance(value.get(name), str) for name in PicturePair._fields):
        pair = PicturePair(*(value[name] for name in PicturePair._fields))
        if is_inside_path(pair.one) and is_inside_path(pair.other):
            return pair
    if file.exists():
        say_once(_log, str(file), f"{file}: no pair of a run that waits, so it is left out; delete it")
    return None


def check_storable(path: str) -> str:
    """Return the path of a picture; InputError for one that no verdict can name on every system."""
    if not is_inside_path(path) or not path.isprintable():
        raise InputError(f"{path!r}: verdicts name pictures by relative paths of printable characters; rename it")
    return path
