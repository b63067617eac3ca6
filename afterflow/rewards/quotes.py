"""The quoted texts of a prompt, as a person reads them: straight, curly and other quotation marks, and inch marks.

    a 10" cake that says "Hi"  →  Hi

A mark can open a quotation, close it, or measure inches.  Of all readings the likeliest is taken: every quotation ends,
marks that open stand before a word, marks that close behind one, and inches stand behind a number.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

STRAIGHT = '"\uff02'
CLOSERS = {
    **dict.fromkeys('"\uff02\u201c\u201d', '"\uff02\u201d\u201c'),
    **dict.fromkeys("\u201e\u201f", '\u201c\u201d"\uff02'),
    "\u00ab": "\u00bb",
    "\u00bb": "\u00ab",
    "\u300c": "\u300d",
    "\u300e": "\u300f",
}
"""Marks that open a quotation → those that close it."""
PAIRS = ('""', "\uff02\uff02", "\u201c\u201d", "\u201e\u201c", "\u201e\u201d", "\u201f\u201d", "\u00ab\u00bb")
PAIRS += ("\u201d\u201d", "\u300c\u300d", "\u300e\u300f")
"""Marks that belong together; others that meet are taken for a slip."""
UNUSUAL_OPENERS = "\u201d\u00bb"
INCH_MARKS = '"\uff02\u201d'
MARKS = frozenset(CLOSERS) | frozenset("".join(CLOSERS.values()))
UNLIKELY, IMPOSSIBLE = 1.0, 10.0
"""Costs of a reading that a person hardly means, and of a mark without its partner."""


@dataclass(frozen=True)
class Reading:
    """One way to read a prompt up to a mark."""

    cost: float
    texts: tuple[str, ...] = ()
    opened: int | None = None
    """The position of the mark whose quotation is open."""


def quoted_texts(prompt: str) -> tuple[str, ...]:
    """Return the texts in quotation marks, in their order, without those that are empty."""
    prompt = prompt.replace('\\"', '"')
    readings = [Reading(0.0)]
    for i, mark in enumerate(prompt):
        if mark in MARKS:
            best: dict[int | None, Reading] = {}
            for reading in (new for old in readings for new in continued(prompt, i, old)):
                if reading.opened not in best or reading.cost < best[reading.opened].cost:
                    best[reading.opened] = reading
            readings = list(best.values())
    likeliest = min(readings, key=lambda reading: reading.cost + IMPOSSIBLE * (reading.opened is not None))
    return tuple(text for text in likeliest.texts if text.strip())


def continued(prompt: str, i: int, reading: Reading) -> Iterator[Reading]:
    """Yield the readings of the mark at i after one of what stands before it."""
    mark, before, after = prompt[i], prompt[i - 1 : i], prompt[i + 1 : i + 2]
    inch = is_inch_mark(prompt, i)
    if reading.opened is None:
        yield Reading(reading.cost + (0.0 if inch else IMPOSSIBLE), reading.texts)
        if mark in CLOSERS:
            odd = (is_word(before) + is_digit(before)) + (not after.strip()) + 2 * (mark in UNUSUAL_OPENERS)
            yield Reading(reading.cost + UNLIKELY * odd, reading.texts, i)
        return
    opener = prompt[reading.opened]
    if mark in CLOSERS[opener]:
        odd = (opener + mark not in PAIRS) + before.isspace() + is_word(after)
        text = prompt[reading.opened + 1 : i]
        yield Reading(reading.cost + UNLIKELY * odd, (*reading.texts, text))
    within = 1 if inch or mark != opener else 3
    yield Reading(reading.cost + UNLIKELY * within, reading.texts, reading.opened)


def is_inch_mark(prompt: str, i: int) -> bool:
    """Return whether the mark at i can stand for inches: behind a number, or apart from it and from what follows."""
    before, after = prompt[:i], prompt[i + 1 : i + 2]
    if prompt[i] not in INCH_MARKS:
        return False
    return is_digit(before[-1:]) or (before[-1:].isspace() and is_digit(before[-2:-1]) and not after.strip())


def is_digit(letter: str) -> bool:
    """Return whether a character is a digit or a fraction."""
    return bool(letter) and unicodedata.category(letter)[0] == "N"


def is_word(letter: str) -> bool:
    """Return whether a character is part of a word in a script that puts spaces between words."""
    return letter.isalnum() and unicodedata.east_asian_width(letter) not in "WF"
