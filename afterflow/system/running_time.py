"""A clock of the time in which this process runs: not set with the wall clock, and still while the process is stopped.

Ctrl-Z, SIGSTOP, a frozen container and a machine that sleeps stop a process.  A process that was stopped neither ran
a thread nor used a processor meanwhile; one that waits or computes does one of them.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SECONDS = 5.0
"""Shortest stop that is noticed."""
BEAT_SECONDS = 1.0
"""Seconds between two looks at the clock."""
BUSY_SHARE = 0.05
"""Share of a gap between two looks that a process computed at least, if it ran."""


class RunningTime:
    """Seconds that this process has run, as long as somebody watches; else those of a monotonic clock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.watchers = 0
        self.stopped = 0.0
        """Seconds of stops so far."""
        self.last = (0.0, 0.0)
        """Seconds of the clock and of the processor at the last look."""

    def seconds(self) -> float:
        """Return seconds since some moment, without those of stops; they never go back."""
        with self.lock:
            now, computed = time.perf_counter(), time.process_time()
            gap = now - self.last[0]
            if self.watchers and gap > STOP_SECONDS and computed - self.last[1] < BUSY_SHARE * gap:
                self.stopped += gap
            self.last = now, computed
            return now - self.stopped

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Notice stops in the block, by a thread that looks at the clock all the time."""
        self.seconds()
        done = threading.Event()

        def look() -> None:
            while not done.wait(BEAT_SECONDS):
                self.seconds()

        thread = threading.Thread(target=look, name="afterflow clock", daemon=True)
        with self.lock:
            self.watchers += 1
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            with self.lock:
                self.watchers -= 1


RUNNING_TIME = RunningTime()
"""The clock of this process."""


def running_seconds() -> float:
    """Return seconds since some moment in which this process ran, see `RunningTime`."""
    return RUNNING_TIME.seconds()
