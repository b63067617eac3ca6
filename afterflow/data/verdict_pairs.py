"""Verdicts of people as pairs to learn from: the pictures that won and lost, for DPO."""

import logging
from pathlib import Path
from typing import NamedTuple

from ..system.errors import InputError
from ..system.pictures import picture_digest, read_picture
from ..system.verdicts import JudgedPicture, VerdictFile, mean_verdicts, verdict_file

_log = logging.getLogger(__name__)


class PreferredPair(NamedTuple):
    """Two pictures of one prompt, of which people prefer the first."""

    prompt: str
    """The prompt of both."""
    winner: Path
    """File of the picture that is better in the mean over all verdicts about the pair."""
    loser: Path
    """File of the other picture."""


def read_verdicts(path: Path | str) -> list[PreferredPair]:
    """Return the pairs of which people prefer one picture, in the order in which they were first judged.

    Ties in the mean over all verdicts about a pair are left out, and so are pairs of which a picture is gone or has
    changed since; one line says how many.

    path: The folder of a run or of pictures, or the verdicts.jsonl in it.

    Raises InputError where there is no verdict, where a line is none, and where no pair is left.
    """
    file = verdict_file(path)
    verdicts = file.read()
    if not verdicts:
        raise InputError(f"{file.file}: no verdict is there; afterflow vote {file.folder} asks for some")
    pictures: dict[str, list[JudgedPicture]] = {}
    for verdict in verdicts:
        for picture in (verdict.left, verdict.right):
            pictures.setdefault(picture.digest, []).append(picture)
    unchanged = {digest: find_unchanged(file, seen) for digest, seen in pictures.items()}
    pairs, gone, ties = [], 0, 0
    for (prompt, one, other), value in mean_verdicts(verdicts).items():
        winner, loser = (unchanged[one], unchanged[other])[:: -1 if value is not None and value < 0.5 else 1]
        if value is None or value == 0.5:
            ties += 1
        elif winner is None or loser is None:
            gone += 1
        else:
            pairs.append(PreferredPair(prompt, winner, loser))
    left_out = ", ".join(
        f"{count} {what}"
        for count, what in ((gone, "with a picture that is gone or has changed"), (ties, "without a winner"))
        if count
    )
    if not pairs:
        raise InputError(f"{file.file}: no judged pair can be used: {left_out}; judge more with afterflow vote")
    if left_out:
        _log.warning(
            f"{file.file}: {len(pairs)} of {len(pairs) + gone + ties} judged pairs are used; left out: {left_out}"
        )
    return pairs


def find_unchanged(file: VerdictFile, pictures: list[JudgedPicture]) -> Path | None:
    """Return a file that holds the picture with the digest that all these have; None where none does any more."""
    for path in dict.fromkeys(file.folder / picture.path for picture in pictures):
        if not path.is_file() or not path.resolve().is_relative_to(file.folder.resolve()):
            continue
        try:
            pixels = read_picture(path, str(path))
        except InputError:
            continue
        if picture_digest(pixels) == pictures[0].digest:
            return path
    return None
