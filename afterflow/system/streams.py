"""stdout and stderr that outlive their terminal: what they refuse is left out, said once, and ends nothing."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .terminal_line import TerminalLine

PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EAGAIN, errno.EINTR}
"""Failures after which a stream is written again, because they may pass; after others it is left alone."""


class LastingStream:
    """A stream whose writing raises nothing where a pipe is closed, a terminal is gone or a disk is full."""

    def __init__(self, stream: Any, name: str) -> None:
        """Write to `stream`, which may be None as where it was closed at the start; `name` is stdout or stderr."""
        # It lives as long as what it stands for, which is until the process ends.
        self.stream = stream if stream is not None else open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        self.name = name
        self.failure: Exception | None = None
        """Why something was left out, the first time; None while nothing was."""
        self.announces = False
        """Whether the first failure is said on the other stream."""
        self.gone = False
        """Whether nothing can be written any more."""
        self.line: TerminalLine | None = None
        """A line that stays below what is written."""

    def write(self, text: str) -> int:
        """Write a text, or leave it out."""
        if self.line is None:
            return self.put(text)
        with self.line.aside(text):
            return self.put(text)

    def put(self, text: str) -> int:
        """Write a text where the cursor is, or leave it out."""
        try:
            if not self.gone:
                self.stream.write(text)
        except UnicodeEncodeError:
            encoding = getattr(self.stream, "encoding", None) or "ascii"
            return self.put(text.encode(encoding, "replace").decode(encoding))
        except (OSError, ValueError) as error:  # ValueError where it has been closed
            self._leave_out(error)
        return len(text)

    def flush(self) -> None:
        """Write what is in the buffer, or leave it there."""
        try:
            if not self.gone:
                self.stream.flush()
        except (OSError, ValueError) as error:
            self._leave_out(error)

    def isatty(self) -> bool:
        """Return whether it is a terminal that is still there."""
        try:
            return not self.gone and self.stream.isatty()
        except (OSError, ValueError):
            return False

    def _leave_out(self, error: Exception) -> None:
        """Note a failure, and say the first one on the other stream."""
        self.gone = not (isinstance(error, OSError) and error.errno in PASSING)
        if self.failure is not None:
            return
        self.failure = error
        if not self.announces:
            return
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        other = sys.stderr if self.name == "stdout" else sys.stdout
        if isinstance(other, LastingStream):
            other.write(f"afterflow: {self.name} cannot be written ({why}); its lines are lost, and the work goes on\n")
            other.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def lasting_streams(announces: bool) -> Iterator[tuple[LastingStream, LastingStream]]:
    """Let stdout and stderr raise nothing in the block, whoever prints there, and return both.

    Where `announces` is true, the first failure of one is said on the other at once.
    """
    before = sys.stdout, sys.stderr
    out = before[0] if isinstance(before[0], LastingStream) else LastingStream(before[0], "stdout")
    err = before[1] if isinstance(before[1], LastingStream) else LastingStream(before[1], "stderr")
    for stream in (out, err):
        stream.announces = stream.announces or announces
    sys.stdout, sys.stderr = out, err  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield out, err
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def open_standard_files() -> None:
    """Open /dev/null in place of a standard file that is closed; else the next file opened would be printed into."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def discard_buffer(stream: Any) -> None:
    """Let what is in a stream's buffer go nowhere: Python writes it when it ends, and would fail again."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
