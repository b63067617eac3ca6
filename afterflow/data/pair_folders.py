"""Where pairs of pictures lie, of which one is preferred: a list, verdicts of people, or a folder for each pair."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..system.errors import InputError
from ..system.own_folders import check_inside, check_links
from ..system.pictures import is_picture_file
from ..system.text_files import read_text
from ..system.verdicts import VERDICTS_FILE
from .image_folders import (
    DEFAULT_CAPTION,
    NO_CAPTION,
    SIDECARS,
    Entry,
    caption_record,
    joined_lines,
    json_rows,
    named_picture,
    visible_files,
)
from .verdict_pairs import read_verdicts

LIST = "pairs.jsonl"
"""Name of the list of a folder's pairs."""
ROLES = ("winner", "loser")
"""Names, without their endings, of the two pictures of a pair in a folder of its own."""
TIED = "without a winner, because they are tied"


class PairListing(NamedTuple):
    """The pairs of a source, and those that it has without a winner or a caption."""

    origin: str
    """Where pairs come from, as a message says it."""
    pairs: Sequence[tuple[Entry, Entry]]
    """Winner and loser of each pair, in an order that never changes."""
    left_out: Mapping[str, int]
    """Reason → number of pairs that are left out for it."""


def list_pairs(path: Path, caption: str) -> PairListing:
    """List the pairs of a folder, by the first of these that it holds.

    They are pairs.jsonl, the verdicts.jsonl of afterflow vote, and folders with a winner and a loser.

    path: The folder, or a .jsonl file in it.

    Raises InputError where it holds none, or what cannot be used.
    """
    check_inside(path)
    if path.is_file() and path.suffix.lower() != ".jsonl":
        raise InputError(f"pairs {path}: no folder, and of files only .jsonl is read")
    check_links(path.parent if path.is_file() else path)
    files = [path] if path.is_file() else [path / LIST, path / VERDICTS_FILE]
    file = next((file for file in files if file.is_file()), None)
    if file is not None and not holds_verdicts(file):
        return list_lines(file, caption)
    if caption != DEFAULT_CAPTION:
        layout = "prompt.txt beside a winner and a loser" if file is None else "verdicts of people"
        raise InputError(f"pairs {path}: data.caption = {caption} names a key, and the captions here are of {layout}")
    return list_folders(path) if file is None else list_verdicts(file)


def holds_verdicts(file: Path) -> bool:
    """Return whether the first line of a .jsonl file is a verdict of afterflow vote, and no pair."""
    first = next((line for _, line in json_rows(file)), None)
    return isinstance(first, dict) and "verdict" in first


def list_verdicts(file: Path) -> PairListing:
    """List the pairs of which people prefer one picture; ties, and pictures that are gone, are counted in one line."""
    pairs = []
    for prompt, *pictures in read_verdicts(file):
        pairs.append(tuple(Entry(str(picture), {"prompt": prompt}, picture.read_bytes) for picture in pictures))
    return PairListing(f"the verdicts in {file}", pairs, {})


def list_lines(file: Path, caption: str) -> PairListing:
    """List the pairs of a .jsonl file, whose lines hold a caption, `chosen` and `rejected`, or `"tie": true`."""
    pairs, left_out = [], Counter()
    for location, line in json_rows(file):
        if not isinstance(line, dict):
            raise InputError(f"{location}: a line is an object with a prompt, chosen and rejected")
        if line.get("tie") is True:
            left_out[TIED] += 1
            continue
        about = {k: v for k, v in line.items() if k not in ("chosen", "rejected")}
        record = caption_record(about, caption, file.parent, location)
        pictures = []
        for key in ("chosen", "rejected"):
            if not isinstance(line.get(key), str):
                raise InputError(f'{location}: no picture under {key!r}; name its file, or write "tie": true')
            pictures.append(named_picture(file.parent, line[key], key, location))
        pairs.append(tuple(Entry(str(picture), record, picture.read_bytes) for picture in pictures))
    if not pairs and not left_out:
        raise InputError(f"{file}: it is empty; write a line with prompt, chosen and rejected for each pair")
    return PairListing(str(file), pairs, left_out)


def list_folders(folder: Path) -> PairListing:
    """List the folders that hold a winner, a loser and their caption; captions beside both must be the same."""
    by_folder: defaultdict[Path, list[Path]] = defaultdict(list)
    for file in visible_files(folder):
        if file.stem in (*ROLES, "prompt"):
            by_folder[file.parent].append(file)
    pairs, left_out = [], Counter()
    for parent, files in by_folder.items():
        pictures = {role: [file for file in files if file.stem == role and is_picture_file(file)] for role in ROLES}
        if not any(pictures.values()):
            continue
        for role, named in pictures.items():
            if len(named) != 1:
                what = f"{len(named)} pictures called {role}" if named else f"no picture called {role}"
                raise InputError(f"{parent}: {what}; a pair is one winner, one loser and prompt.txt")
        if (caption := pair_caption(files)) is None:
            left_out[NO_CAPTION] += 1
            continue
        (winner,), (loser,) = pictures.values()
        pairs.append(tuple(Entry(str(file), {"prompt": caption}, file.read_bytes) for file in (winner, loser)))
    if not pairs and not left_out:
        raise InputError(
            f"pairs {folder}: no {LIST} in it, and no folder with winner.png, loser.png and prompt.txt; write a line "
            "with prompt, chosen and rejected for each pair"
        )
    return PairListing(f"{folder}, a folder for each pair", pairs, left_out)


def pair_caption(files: Sequence[Path]) -> str | None:
    """Return the caption in the texts of a pair's folder; None where there is none.  InputError where they differ."""
    texts = {file: joined_lines(read_text(file)) for file in files if file.suffix.lower() in SIDECARS}
    written = [(file, text) for file, text in texts.items() if text]
    for file, text in written:
        if text != written[0][1]:
            raise InputError(
                f"{file}: its caption differs from that of {written[0][0].name}; the pictures of a pair have one"
            )
    return written[0][1] if written else None
