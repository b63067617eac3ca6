"""What is made beside checkpoints and results: pictures, curves of trackers, cards.  Its failures end nothing."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

from .errors import OutputError
from .escapes import one_line

_log = logging.getLogger(__name__)

LONGEST_FAILURE = 300
"""Characters of an error that are told."""


@dataclass
class Missing:
    """What could not be made of one kind."""

    why: str
    """Why the first one could not."""
    steps: list[int] = field(default_factory=list)
    """Iterations it is of."""


class SideOutputs:
    """Makes what training does not depend on.

    A failure is said once for each kind.  At the end of the block a line for each kind says what is not there.
    """

    def __init__(self) -> None:
        self.hook = threading.excepthook
        self.missing: dict[str, Missing] = {}

    @contextmanager
    def making(self, kind: str, step: int | None = None) -> Iterator[None]:
        """Make something of a kind, of iteration `step` if it belongs to one; only Ctrl-C leaves the block."""
        try:
            yield
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # a tracker is anybody's code and may raise anything, SystemExit too
            self._note(kind, step, failure_words(error))

    def _note(self, kind: str, step: int | None, why: str) -> None:
        if kind not in self.missing:
            self.missing[kind] = Missing(why)
            when = "" if step is None else f"iteration {step}: "
            _log.warning(f"{when}{kind} failed: {why}; the run goes on without, and says at its end what is missing")
        if step is not None:
            self.missing[kind].steps.append(step)

    def summary(self) -> list[str]:
        """Return a line for each kind of which something is not there."""
        lines = []
        for kind, missing in self.missing.items():
            steps = missing.steps
            of = f" of {len(steps)} iterations, {steps[0]} to {steps[-1]}" if len(steps) > 1 else ""
            of = f" of iteration {steps[0]}" if len(steps) == 1 else of
            lines.append(f"not there: {kind}{of} ({missing.why})")
        return lines

    def __enter__(self) -> Self:
        self.hook, threading.excepthook = threading.excepthook, self._thread_failed
        return self

    def _thread_failed(self, failed: threading.ExceptHookArgs) -> None:
        """Note the end of a thread of a library, such as a tracker's that writes; our own pass their errors on."""
        if failed.exc_value is not None:
            self._note("a thread of a library", None, failure_words(failed.exc_value))

    def __exit__(self, *error: object) -> None:
        threading.excepthook = self.hook
        for line in self.summary():
            _log.warning(line)


def failure_words(error: BaseException) -> str:
    """Return what went wrong in a few words on one line, without the advice of an error of ours."""
    if isinstance(error, OutputError):
        return one_line(str(error).partition("; ")[0])
    words = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    return one_line(f"{type(error).__name__}: {words}" if words else type(error).__name__)[:LONGEST_FAILURE]
