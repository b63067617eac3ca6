"""Handlers for Ctrl-C, for the SIGTERM of a machine that is about to be preempted, and for a terminal that closes."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from ..system.ended import TERMINATIONS, Handler, handlers, signal_name
from ..system.launcher import launched_rank
from .clock import Clock

_log = logging.getLogger(__name__)

INTERRUPTIBLE_STAGES = ("rollout", "decode", "reward")
"""Stages that may be left at once, because they change no weights."""
RETRY_SECONDS = 0.1
"""Seconds between two looks at a stage that must not be left."""


class Preempted(BaseException):
    """The grace period after SIGTERM or SIGHUP is over.

    It is no Exception, so that a reward which handles its own failures does not swallow it.
    """


@contextmanager
def interruptible(
    clock: Clock, grace: float, interruptible_stages: Collection[str], iteration: Callable[[], int]
) -> Iterator[list[int]]:
    """Collect Ctrl-C, SIGTERM and SIGHUP in the list that the block gets, instead of stopping the work at once.

    What happens now is said at once, with the number of the iteration under way.  A second Ctrl-C stops the work.  The
    others give the iteration `grace` seconds to end.  Then Preempted is raised: at once in a stage of
    `interruptible_stages`, else as soon as the stage, an update for example, has ended.  Windows has no alarms, so
    there the iteration ends whatever its length.
    """
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        _log.warning("this is not the main thread, so Ctrl-C and SIGTERM end the run without a checkpoint")
        yield signals
        return
    alarms = hasattr(signal, "setitimer")

    def interrupt(number: int, frame: object) -> None:
        signals.append(number)
        answer(f"finishing iteration {iteration()} and saving it; Ctrl-C again to stop now")
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    def terminate(number: int, frame: object) -> None:
        again = bool(set(TERMINATIONS) & set(signals))
        signals.append(number)
        answer(f"{signal_name(number)}: finishing iteration {iteration()} and saving it")
        if alarms and not again:
            signal.setitimer(signal.ITIMER_REAL, max(grace, RETRY_SECONDS))

    def preempt(number: int, frame: object) -> None:
        if clock.stage in interruptible_stages:
            raise Preempted
        signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)

    new: dict[int, Handler] = {signal.SIGINT: interrupt, **dict.fromkeys(TERMINATIONS, terminate)}
    with handlers(new) as before, handlers({signal.SIGALRM: preempt} if alarms else {}):
        try:
            yield signals
        finally:
            if alarms:
                signal.setitimer(signal.ITIMER_REAL, 0)


def answer(sentence: str) -> None:
    """Say on stderr, from a signal's handler, what a signal does; the first process alone speaks."""
    if launched_rank() != 0:
        return
    try:
        print(f"afterflow: {sentence}", file=sys.stderr, flush=True)
    except RuntimeError:  # the signal came in the middle of another line
        os.write(2, f"\nafterflow: {sentence}\n".encode())
