"""What a reward service has done, in one line a minute, and a log whose size nobody outside decides."""

import asyncio
import logging
import time
from collections import Counter

from ...system.freed_memory import trim_memory
from .limits import MemoryBudget

_log = logging.getLogger(__name__)

MINUTE = 60.0
"""Seconds between two lines of what was done."""
TRIM_SECONDS, TRIM_BYTES = 1.0, 4 * 2**20
"""How often free memory is given back, and how much of it requests must have freed."""
MAX_RECORDS = 100
"""Messages of a logger in a minute."""
MAX_CHARACTERS = 2000
"""Characters of a message, and of its traceback."""


class Activity:
    """Counts of what was done since the last line."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def count(self, what: str, times: int = 1) -> None:
        """Add to one count."""
        self.counts[what] += times

    def line(self) -> str:
        """Return the counts in one line and begin again; empty where nothing was done."""
        text = ", ".join(f"{what}: {times}" for what, times in sorted(self.counts.items()))
        self.counts.clear()
        return text

    async def report(self, budget: MemoryBudget) -> None:
        """Log a line for every minute in which something was done, and give memory back that requests have freed."""
        start = time.monotonic()
        while True:
            await asyncio.sleep(TRIM_SECONDS)
            if budget.freed > TRIM_BYTES:
                budget.freed = 0
                await asyncio.to_thread(trim_memory)
            if time.monotonic() - start >= MINUTE:
                start = time.monotonic()
                if line := self.line():
                    _log.info("in the last minute: %s", line)


class BoundedLog(logging.Filter):
    """Shortens messages, shows control characters as such, and passes on so many a minute."""

    def __init__(self) -> None:
        super().__init__()
        self.since, self.count = 0.0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is passed on; it is shortened."""
        now = time.monotonic()
        if now - self.since >= MINUTE:
            self.since, self.count = now, 0
        self.count += 1
        if self.count > MAX_RECORDS:
            return False
        record.msg, record.args = bounded(record.getMessage()).replace("\n", "\\n"), ()
        if self.count == MAX_RECORDS:
            record.msg += " (further messages of this minute are left out)"
        if record.exc_info and not record.exc_text:
            record.exc_text = bounded(logging.Formatter().formatException(record.exc_info))
        return True


def bounded(text: str) -> str:
    """Return the end of a text that is too long, without what a terminal would obey."""
    shown = text if len(text) <= MAX_CHARACTERS else f"[...] {text[-MAX_CHARACTERS:]}"
    return "".join(letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in shown)


def bound_logs() -> None:
    """Bound what the service, its server and the event loop log."""
    for name in ("uvicorn.error", "asyncio", *LOGGERS):
        logger = logging.getLogger(name)
        if not any(isinstance(each, BoundedLog) for each in logger.filters):
            logger.addFilter(BoundedLog())


LOGGERS = tuple(f"{__package__}.{name}" for name in ("batches", "gate", "server", "connections"))
"""The loggers of the service's modules."""
