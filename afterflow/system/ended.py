"""Signals that end a process: each is handled where it was not ignored at the start, as `nohup` lets SIGHUP be."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

TERMINATIONS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals of a machine that is taken away and of a terminal that closes; Windows has no SIGHUP."""

Handler = Callable[[int, FrameType | None], Any]
"""What a signal calls, with its number."""


class Ended(KeyboardInterrupt):
    """A signal ends the command; like Ctrl-C it unwinds, so that temporary files go and locks are given back."""

    def __init__(self, number: int) -> None:
        super().__init__(signal_name(number))
        self.number = number


def signal_name(number: int) -> str:
    """Return the name of a signal, as SIGHUP, or its number where the system has no name for it."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@contextmanager
def handlers(new: Mapping[int, Handler]) -> Iterator[Mapping[int, Any]]:
    """Install handlers for the block, and return those before them.

    A signal that was ignored at the start stays ignored, and one that no Python code handles is left alone.  Outside
    the main thread nothing is installed.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in new}
        before = {number: each for number, each in before.items() if each not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, new[number])
    try:
        yield before
    finally:
        for number, each in before.items():
            signal.signal(number, each)


@contextmanager
def terminations_raised() -> Iterator[list[int]]:
    """Raise Ended in the block where a signal would end the process at once, and KeyboardInterrupt for Ctrl-C.

    The block gets the list of those that came: a library that is half imported may turn one into another error.
    """
    came: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else Ended(number)

    with handlers(dict.fromkeys((signal.SIGINT, *TERMINATIONS), end)):
        yield came
