"""Who is shown which pair: each open page another one, those that nobody judged first, none twice unless wanted."""

import hashlib
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ...system.errors import InputError
from ...system.once import say_once
from ...system.pictures import picture_digest, read_picture
from ...system.verdicts import Choice, JudgedPicture, Verdict, VerdictFile
from .pairs import LivePairs, PicturePair

_log = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
"""How long a pair stays a page's own after the page was last heard of; an open page reports every few seconds."""


class NotShown(InputError):
    """A verdict about a pair that this page does not show, or a step back where there is none."""


@dataclass(frozen=True)
class ShownPair:
    """A pair as a page shows it, with what its pictures held when it was shown."""

    id: str
    """Name of the pair on this page, which is new each time a pair is shown."""
    pair: PicturePair
    """The pair."""
    left: JudgedPicture
    """The picture shown left, or above."""
    right: JudgedPicture
    """The picture shown right, or below."""


@dataclass
class Session:
    """One open page."""

    seen: float = 0.0
    """When it was last heard of, in seconds of the clock."""
    shown: ShownPair | None = None
    """The pair that it shows."""
    judged: set[tuple[str, frozenset[str]]] = field(default_factory=set)
    """Pairs that were judged on it."""


class Voting:
    """The pairs of a folder, the pages that show them, and the verdicts.  It is used by one thread at a time."""

    def __init__(
        self,
        file: VerdictFile,
        pairs: Sequence[PicturePair],
        seed: int,
        again: bool,
        clock: Callable[[], float],
    ) -> None:
        """Read the verdicts that are there.  InputError where a line is none.

        Args:
            file: The verdicts.
            pairs: Pairs of stored pictures, in the order in which they are shown.
            seed: Seed of the sides on which pictures are shown.
            again: Whether judged pairs are shown again, after all others, to each page once.
            clock: Returns seconds that never go back.
        """
        self.file, self.pairs, self.seed, self.again, self.clock = file, list(pairs), seed, again, clock
        self.live = LivePairs(file.folder)
        self.sessions: dict[str, Session] = {}
        self.verdicts = file.read()
        self.unreadable: set[str] = set()
        self.equal: set[tuple[str, frozenset[str]]] = set()
        self.digests: dict[str, str] = {}
        self.count: Counter[tuple[str, frozenset[str]]] = Counter()
        for verdict in filter(self.is_of_today, self.verdicts):
            self.count[paths_of(verdict)] += 1

    def show(self, session: str) -> ShownPair | None:
        """Return the pair that a page shows, another one where it has none; None where no pair is left."""
        now, page = self.clock(), self.session(session)
        lost = page.shown is not None and page.seen < now - LEASE_SECONDS and self.is_shown(page.shown.pair, session)
        page.seen = now
        if page.shown is None or lost:
            page.shown = next((shown for pair in self.open_pairs(session) if (shown := self.prepare(pair))), None)
        return page.shown

    def session(self, name: str) -> Session:
        """Return what is known of a page, which may have been open before this command was started."""
        if name not in self.sessions:
            judged = {paths_of(verdict) for verdict in self.verdicts if verdict.session == name}
            self.sessions[name] = Session(judged=judged)
        return self.sessions[name]

    def open_pairs(self, session: str) -> Iterator[PicturePair]:
        """Yield the pairs that a page may be shown, the most urgent first."""
        judged = self.sessions[session].judged
        free = lambda pair: pair.key not in judged | self.equal and not self.is_shown(pair, session)
        yield from (pair for pair in self.live.pairs() if not self.count[pair.key] and free(pair))
        yield from (pair for pair in self.pairs if not self.count[pair.key] and free(pair))
        if self.again:
            yield from (pair for pair in sorted(self.pairs, key=lambda pair: self.count[pair.key]) if free(pair))

    def is_shown(self, pair: PicturePair, session: str) -> bool:
        """Whether another page shows a pair at present."""
        recent = self.clock() - LEASE_SECONDS
        others = (page for name, page in self.sessions.items() if name != session and page.seen >= recent)
        return any(page.shown is not None and page.shown.pair.key == pair.key for page in others)

    def prepare(self, pair: PicturePair) -> ShownPair | None:
        """Return a pair on the sides that the seed draws; None for pictures that are gone, or equal.

        Shown a second time the sides are exchanged, so that a habit of the eye cancels out.
        """
        paths = sorted((pair.one, pair.other))
        digests = [self.digest(path, again=True) for path in paths]
        if None in digests:
            return None
        if digests[0] == digests[1]:
            self.equal.add(pair.key)
            return None
        drawn = hashlib.sha256(f"{self.seed} {pair.prompt} {paths}".encode()).digest()[0]
        pictures = [JudgedPicture(path, str(digest)) for path, digest in zip(paths, digests)]
        left, right = pictures[:: -1 if (drawn + self.count[pair.key]) % 2 else 1]
        return ShownPair(secrets.token_hex(8), pair, left, right)

    def vote(self, session: str, shown: str, choice: Choice) -> Verdict:
        """Store what a page says about the pair that it shows.  NotShown where it shows another one.

        OutputError is raised where the disk does not take it; the pair then is still shown.
        """
        page = self.sessions.get(session)
        if page is None or page.shown is None or page.shown.id != shown:
            raise NotShown("this pair is no longer shown here; judge the one that is")
        one = page.shown
        verdict = Verdict(secrets.token_hex(8), one.pair.prompt, one.left, one.right, choice, utc_now(), session)
        self.file.add(verdict)
        self.verdicts.append(verdict)
        self.count[one.pair.key] += 1
        page.judged.add(one.pair.key)
        self.live.remove(one.pair)
        page.shown = None
        return verdict

    def is_of_today(self, verdict: Verdict) -> bool:
        """Whether the pictures of a verdict are still those that were judged."""
        return all(self.digest(picture.path) == picture.digest for picture in (verdict.left, verdict.right))

    def undo(self, session: str) -> ShownPair | None:
        """Take back the last verdict of a page, and show its pair again.  NotShown where there is none.

        Where its pictures have changed since, they are shown as they are now; None where one of them is gone.
        """
        page = self.session(session)
        last = next((verdict for verdict in reversed(self.verdicts) if verdict.session == session), None)
        if last is None:
            raise NotShown("there is no verdict of this page to take back")
        self.file.undo(last, utc_now())
        self.verdicts.remove(last)
        pair = PicturePair(last.prompt, last.left.path, last.right.path)
        page.judged.discard(pair.key)
        now = self.prepare(pair)  # reads both pictures again
        same_pair = (verdict for verdict in self.verdicts if paths_of(verdict) == pair.key)
        self.count[pair.key] = sum(map(self.is_of_today, same_pair))
        again = ShownPair(secrets.token_hex(8), pair, last.left, last.right)
        page.seen, page.shown = self.clock(), again if now is not None and self.is_of_today(last) else now
        return page.shown

    def leave(self, session: str) -> None:
        """Let others have the pair of a page that closes; where it comes back, it is shown one anew."""
        self.sessions.pop(session, None)

    def can_undo(self, session: str) -> bool:
        """Whether a page has a verdict to take back."""
        return any(verdict.session == session for verdict in self.verdicts)

    def progress(self) -> dict[str, int]:
        """Return how many pairs are judged, how many are not, how many a run waits for, and how many have no picture.

        Pairs of two equal pictures are none.
        """
        pairs = [pair for pair in self.pairs if pair.key not in self.equal]
        judged = sum(self.count[pair.key] > 0 for pair in pairs)
        gone = sum(not self.unreadable.isdisjoint((pair.one, pair.other)) for pair in pairs if not self.count[pair.key])
        waiting = sum(not self.count[pair.key] for pair in self.live.pairs())
        return {"judged": judged, "open": len(pairs) - judged - gone, "waiting": waiting, "gone": gone}

    def digest(self, path: str, again: bool = False) -> str | None:
        """Return the digest of a picture, read `again` although it is known; None where it cannot be read."""
        if again or path not in self.digests:
            pixels = self.pixels(path)
            if pixels is None:
                return None
            self.digests[path] = picture_digest(pixels)
        return self.digests[path]

    def pixels(self, path: str) -> np.ndarray | None:
        """Return a picture, uint8 (H, W, 3); None, with a warning, where it is gone or cannot be read."""
        file = self.file.folder / path
        try:
            if not is_file_inside(file, self.file.folder):
                raise InputError(f"{file}: it is gone, or a link that leads out of {self.file.folder}")
            pixels = read_picture(file, str(file))
        except InputError as error:
            say_once(_log, path, f"{error}; pairs with it are left out")
            self.unreadable.add(path)
            return None
        self.unreadable.discard(path)
        return pixels


def is_file_inside(file: Path, folder: Path) -> bool:
    """Whether a path is a file that lies in a folder, with links followed."""
    return file.is_file() and file.resolve().is_relative_to(folder.resolve())


def paths_of(verdict: Verdict) -> tuple[str, frozenset[str]]:
    """Return the key of the pair that a verdict is about."""
    return PicturePair(verdict.prompt, verdict.left.path, verdict.right.path).key


def utc_now() -> str:
    """Return the time as ISO 8601 in UTC, with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")
