"""Messages that are worth saying, and worth saying once."""

import logging
from collections.abc import Sequence

_SAID: set[tuple[str, str]] = set()
MAX_KINDS = 1000
"""Largest number of kinds that are said and remembered; some are named by what comes from outside."""


def say_once(logger: logging.Logger, kind: str, message: str) -> None:
    """Log a message at level WARNING, unless one of the same kind has been logged by this process."""
    if (logger.name, kind) not in _SAID and len(_SAID) < MAX_KINDS:
        _SAID.add((logger.name, kind))
        logger.warning(message)


def say_each_once(logger: logging.Logger, noise: Sequence[str]) -> None:
    """Let the handlers of a library's logger pass each message on once, and none that contains one of `noise`."""
    for handler in logger.handlers:
        if not any(isinstance(each, OnceFilter) for each in handler.filters):
            handler.addFilter(OnceFilter(logger.name, noise))


class OnceFilter(logging.Filter):
    """Passes a message of a library on where it is new and no known noise, and all messages of others."""

    def __init__(self, library: str, noise: Sequence[str]) -> None:
        super().__init__(library)
        self.noise, self.passed = noise, set[str]()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is passed on."""
        if not super().filter(record):  # a handler may be shared with other loggers
            return True
        message = record.getMessage()
        if message in self.passed or any(part in message for part in self.noise):
            return False
        self.passed.add(message)
        return True
