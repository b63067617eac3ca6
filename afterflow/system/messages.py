"""Messages that are worth saying, and worth saying once."""

import logging

_SAID: set[tuple[str, str]] = set()


def say_once(logger: logging.Logger, kind: str, message: str) -> None:
    """Log a message at level WARNING, unless one of the same kind has been logged by this process."""
    if (logger.name, kind) not in _SAID:
        _SAID.add((logger.name, kind))
        logger.warning(message)
