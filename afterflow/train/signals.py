"""Handlers for Ctrl-C, and for the SIGTERM of a machine that is about to be preempted."""

import logging
import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from .clock import Clock

_log = logging.getLogger(__name__)

INTERRUPTIBLE_STAGES = ("rollout", "decode", "reward")
"""Stages that may be left at once, because they change no weights."""
RETRY_SECONDS = 0.1
"""Seconds between two looks at a stage that must not be left."""


class Preempted(BaseException):
    """The machine is about to be preempted: the grace period after SIGTERM is over.

    It is no Exception, so that a reward which handles its own failures does not swallow it.
    """


@contextmanager
def interruptible(clock: Clock, grace: float, interruptible_stages: Collection[str]) -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM in the list that the block gets, instead of stopping the work at once.

    A second Ctrl-C stops it.  SIGTERM gives the iteration `grace` seconds to end.  Then Preempted is raised: at once in
    a stage of `interruptible_stages`, else as soon as the stage, an update for example, has ended.  Windows has no
    alarms, so there the iteration ends whatever its length.
    """
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        _log.warning("this is not the main thread, so Ctrl-C and SIGTERM end the run without a checkpoint")
        yield signals
        return
    alarms = hasattr(signal, "setitimer")

    def record(number: int, frame: object) -> None:
        signals.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, before[signal.SIGINT])
        elif alarms:
            signal.setitimer(signal.ITIMER_REAL, max(grace, RETRY_SECONDS))

    def preempt(number: int, frame: object) -> None:
        if clock.stage in interruptible_stages:
            raise Preempted
        signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)

    handlers: dict[int, Any] = {signal.SIGINT: record, signal.SIGTERM: record}
    handlers |= {signal.SIGALRM: preempt} if alarms else {}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield signals
    finally:
        if alarms:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
