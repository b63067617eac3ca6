"""Ctrl-C, and the SIGTERM of a machine that is about to be taken away."""

import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from .clock import Clock

INTERRUPTIBLE_STAGES = ("rollout", "decode", "reward")
"""Stages in which nothing that is trained moves."""
RETRY_SECONDS = 0.1
"""Seconds after which a stage that must not be left is looked at again."""


class Preempted(BaseException):
    """The grace after SIGTERM is over, in a stage that can be left.

    No Exception, so that a reward which excuses its own failures does not excuse this one.
    """


@contextmanager
def interruptible(clock: Clock, grace: float, leavable: Collection[str]) -> Iterator[list[int]]:
    """A list that Ctrl-C and SIGTERM fill, instead of tearing down whatever is under way.

    A second Ctrl-C does tear it down.  SIGTERM gives the iteration `grace` seconds to end; then Reclaimed is raised, at
    once or as soon as a stage that is not `leavable`, an update say, has ended.
    """
    signals: list[int] = []

    def note(number: int, frame: object) -> None:
        signals.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, before[signal.SIGINT])
        else:
            signal.setitimer(signal.ITIMER_REAL, max(grace, RETRY_SECONDS))

    def late(number: int, frame: object) -> None:
        if clock.stage in leavable:
            raise Preempted
        signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)

    handlers = {signal.SIGINT: note, signal.SIGTERM: note, signal.SIGALRM: late}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield signals
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
