"""People as the judge of two images: what they have said is looked up, and what they have not is shown to them.

New pictures of a run are not those that were judged before.  Stored verdicts answer for the same pixels alone, as when
a run is resumed; every other pair waits for a person, who opens the page of `afterflow vote`.  The run and the page
share nothing but files: a picture and a file for each pair that waits, and the verdicts.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...system.checks import check_not_negative
from ...system.errors import ConfigError
from ...system.pictures import picture_digest
from ...system.verdicts import PairKey, VerdictFile, mean_verdicts, pair_key, verdict_file
from ..base import ImagePairs, Scored
from .pairs import show_live_pair

_log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
"""Seconds between two looks at the file of verdicts."""


@dataclass(frozen=True)
class Votes:
    """People who judge pairs on the page of `afterflow vote`; verdicts of several about one pair are averaged.

    A pair is shown once, on random sides, and answers for both orders.  Equal images are a tie that nobody is shown.
    """

    path: str
    """Folder of the run, as runs/NAME, or the verdicts.jsonl in it.  `afterflow vote` of it shows the pairs."""
    seconds: float = 300.0
    """Seconds without a verdict of any pair, after which the pairs that still wait have none.  0: nobody is waited for,
    and stored verdicts alone count."""

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise ConfigError("judge.path is empty: name the folder of the run, as runs/NAME")
        check_not_negative(self, "seconds", prefix="judge.")

    def __call__(self, pairs: ImagePairs) -> Scored:
        """Return how much the first image of each pair is better, (Q,) in [0, 1]; NaN, with a reason, is no verdict.

        InputError is raised where the file of verdicts cannot be read, OutputError where pictures cannot be written.
        """
        file, rows = verdict_file(self.path), [*zip(pairs.first.tolist(), pairs.second.tolist())]
        digests = {
            row: picture_digest(pairs.images[row]) for row in dict.fromkeys(row for pair in rows for row in pair)
        }
        keys = [pair_key(pairs.records[i]["prompt"], digests[i], digests[j]) for i, j in rows]
        means = mean_verdicts(file.read())
        unknown = {key: rows[n] for n, key in enumerate(keys) if key not in means and key[1] != key[2]}
        if unknown and self.seconds:
            with shown_pairs(file, pairs, unknown, digests) as waiting:
                means = self.wait(file, waiting)
        values, why = np.full(len(keys), 0.5), {}
        for n, (key, (i, _)) in enumerate(zip(keys, rows)):
            if key[1] == key[2]:
                continue
            mean = means.get(key)
            values[n] = np.nan if mean is None else mean if digests[i] == key[1] else 1 - mean
            if mean is None:
                why[n] = "a person skipped the pair" if key in means else self.unanswered()
        return Scored(values, why=why)

    def unanswered(self) -> str:
        """Return why a pair has no verdict."""
        if not self.seconds:
            return f"no verdict about it is stored in {self.path}, and judge.seconds = 0 asks nobody"
        return f"nobody judged it, nor any other pair, for {self.seconds:g} s; afterflow vote {self.path} shows them"

    def wait(self, file: VerdictFile, waiting: Mapping[PairKey, Path]) -> dict[PairKey, float | None]:
        """Return the means of all verdicts once no pair waits any more, or nobody has judged one for too long."""
        _log.info(f"{len(waiting)} pairs wait for a person: afterflow vote {file.folder} shows them")
        size, last, left = file.size(), time.monotonic(), dict(waiting)
        means = mean_verdicts(file.read())
        while left := {key: path for key, path in left.items() if key not in means}:
            if time.monotonic() - last > self.seconds:
                break
            time.sleep(LOOK_SECONDS)
            if file.size() != size:
                size, last, means = file.size(), time.monotonic(), mean_verdicts(file.read())
        return means


@contextmanager
def shown_pairs(
    file: VerdictFile, pairs: ImagePairs, unknown: Mapping[PairKey, tuple[int, int]], digests: Mapping[int, str]
) -> Iterator[dict[PairKey, Path]]:
    """Let the page show pairs for the block, and yield what asks for each; afterwards nothing waits any more.

    Args:
        file: The verdicts.
        pairs: All pairs of the call.
        unknown: The pairs to show, with the rows of their images.
        digests: Row → digest of the image.
    """
    waiting: dict[PairKey, Path] = {}
    try:
        for key, (i, j) in unknown.items():
            images = pairs.images[i], pairs.images[j]
            waiting[key] = show_live_pair(file.folder, key[0], (digests[i], digests[j]), images)
        yield waiting
    finally:
        for path in waiting.values():
            path.unlink(missing_ok=True)
