"""Verdicts of people about pairs of pictures: a file of JSON lines, to which whole lines are added and nothing else.

    {"id": ..., "prompt": ..., "left": {"path": ..., "digest": ...}, "right": {...}, "verdict": "left", "time": ...,
     "session": ...}
    {"undo": ID, "session": ..., "time": ...}

Paths are relative to the folder of the file.  A digest is of the pixels, so that a verdict is about what was seen.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

from .atomic_files import flush_to_disk, make_folder, writing
from .errors import InputError
from .own_folders import check_inside
from .text_files import check_text, decode_text, parse_json

VERDICTS_FILE = "verdicts.jsonl"
"""Name of the file in the folder of a run, or of pictures."""
Choice = Literal["left", "right", "tie", "skip"]
"""What a person says of a pair; skip is no verdict, and the pair is not shown again."""
LEFT_WINS: Mapping[str, float | None] = {"left": 1.0, "right": 0.0, "tie": 0.5, "skip": None}
"""Choice → how far the left picture is better, in [0, 1]."""
DIGEST = re.compile(r"[0-9a-f]{64}")

PairKey = tuple[str, str, str]
"""A prompt and the digests of two pictures, the smaller one first."""


@dataclass(frozen=True)
class JudgedPicture:
    """A picture that was judged."""

    path: str
    """Its path, relative to the folder of the verdicts, with / between its parts."""
    digest: str
    """The digest of its pixels (`picture_digest`)."""


@dataclass(frozen=True)
class Verdict:
    """What one person said about one pair of pictures."""

    id: str
    """Name of the verdict, by which it can be undone."""
    prompt: str
    """The prompt of both pictures."""
    left: JudgedPicture
    """The picture shown left, or above."""
    right: JudgedPicture
    """The picture shown right, or below."""
    verdict: Choice
    """Which is better."""
    time: str
    """When it was said, as ISO 8601."""
    session: str
    """The open page on which it was said; every person has one."""

    @property
    def key(self) -> PairKey:
        """The pair, in whichever order it was shown."""
        return pair_key(self.prompt, self.left.digest, self.right.digest)


def pair_key(prompt: str, one: str, other: str) -> PairKey:
    """Return a pair of digests under a prompt, in whichever order they come."""
    return prompt, min(one, other), max(one, other)


def mean_verdicts(verdicts: Iterable[Verdict]) -> dict[PairKey, float | None]:
    """Return how far the first picture of each pair's key is better, in [0, 1], the mean over all verdicts about it.

    It is None where everybody skipped the pair.
    """
    values: defaultdict[PairKey, list[float]] = defaultdict(list)
    for verdict in verdicts:
        of_pair, value = values[verdict.key], LEFT_WINS[verdict.verdict]
        if value is not None:
            of_pair.append(value if verdict.left.digest == verdict.key[1] else 1 - value)
    return {key: sum(of_pair) / len(of_pair) if of_pair else None for key, of_pair in values.items()}


@dataclass(frozen=True)
class VerdictFile:
    """The verdicts about the pictures of a folder."""

    file: Path

    @property
    def folder(self) -> Path:
        """The folder to which paths are relative."""
        return self.file.parent

    def size(self) -> int:
        """Return the bytes of the file, which grows with every line; 0 where there is none."""
        return self.file.stat().st_size if self.file.is_file() else 0

    def read(self) -> list[Verdict]:
        """Return the verdicts that nobody took back, oldest first; a last line that is half written is none yet.

        InputError, with file and line, for a line that is no verdict.
        """
        if not self.file.is_file():
            return []
        check_inside(self.file)
        try:
            content = self.file.read_bytes()
        except OSError as error:
            raise InputError(f"{self.file}: it cannot be read ({error.strerror or error})") from None
        verdicts: dict[str, Verdict] = {}
        whole = decode_text(content[: content.rfind(b"\n") + 1], str(self.file))
        for n, text in enumerate(whole.split("\n"), 1):
            if text.strip():
                line = parse_json(text, f"{self.file}:{n}")
                if isinstance(line, dict) and isinstance(line.get("undo"), str):
                    verdicts.pop(line["undo"], None)
                else:
                    verdict = read_verdict(line, f"{self.file}:{n}")
                    verdicts[verdict.id] = verdict
        return list(verdicts.values())

    def add(self, verdict: Verdict) -> None:
        """Add a verdict.  OutputError where the disk does not take it."""
        self._append(asdict(verdict))

    def undo(self, verdict: Verdict, time: str) -> None:
        """Take a verdict back.  OutputError where the disk does not take that."""
        self._append({"undo": verdict.id, "session": verdict.session, "time": time})

    def _append(self, line: dict[str, Any]) -> None:
        """Add a line and wait until the disk has it; half a line that a killed process left at the end is cut off."""
        make_folder(self.folder)
        with writing(self.file), self.file.open("ab+", buffering=0) as stream:
            stream.seek(0)
            content = stream.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                stream.truncate(whole)
            try:
                stream.write((json.dumps(line) + "\n").encode())
            except OSError:
                stream.truncate(whole)
                raise
            os.fsync(stream.fileno())
        with writing(self.file):
            flush_to_disk(self.folder)


def verdict_file(path: Path | str) -> VerdictFile:
    """Return the verdicts of a folder, or those in a file that ends in .jsonl, whether they exist yet or not."""
    path = Path(path)
    if path.suffix.lower() == ".jsonl" and not path.is_dir():
        return VerdictFile(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: verdicts are in a file that ends in .jsonl, or in the folder of a run")
    return VerdictFile(path / VERDICTS_FILE)


def read_verdict(line: Any, location: str) -> Verdict:
    """Return the verdict in a line; InputError, with its location, where it is none."""
    try:
        texts = {name: line[name] for name in ("id", "prompt", "verdict", "time", "session")}
        if not all(isinstance(text, str) for text in texts.values()) or texts["verdict"] not in LEFT_WINS:
            raise TypeError
        left, right = (read_judged_picture(line[side], location) for side in ("left", "right"))
    except (TypeError, KeyError):
        raise InputError(
            f"{location}: no verdict, which has texts under id, prompt, time and session, left and right with path and "
            f"digest, and as verdict one of {', '.join(LEFT_WINS)}; correct the line or delete it"
        ) from None
    return Verdict(left=left, right=right, **texts)


def read_judged_picture(value: Any, location: str) -> JudgedPicture:
    """Return a picture of a verdict; InputError for a path that leads out, TypeError or KeyError for another form."""
    path, digest = value["path"], value["digest"]
    if not isinstance(path, str) or not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise TypeError
    check_text(path, location)
    if not is_inside_path(path):
        raise InputError(f"{location}: {path!r} leads out of the folder of the verdicts; correct the path")
    return JudgedPicture(path, digest)


def is_inside_path(path: str) -> bool:
    """Whether a path is relative on every system, names something below its folder, and is written with /."""
    named = PureWindowsPath(path)  # of whose drives and roots those of others are some
    return bool(named.parts) and not named.anchor and ".." not in named.parts and "\\" not in path
