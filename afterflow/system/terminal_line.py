"""A line at the end of a terminal that is written anew where it stands, below what others print meanwhile.

It is made of carriage returns and blanks alone, so that a console without escape codes shows it too, and a killed
process leaves no hidden cursor.
"""

import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.cells import cell_len, set_cell_size

from .streams import LastingStream

ROOM = 3
"""Columns that stay free: two for the ^C that a terminal prints behind the line, and the last, where some wrap."""


class TerminalLine:
    """The line; it is there between `show` and `close`, and makes way for what is printed on the same terminal."""

    def __init__(self, stream: LastingStream, others: Sequence[LastingStream] = ()) -> None:
        """Write the line to `stream`; `others` are on the same terminal."""
        self.stream, self.sharing = stream, (stream, *others)
        self.lock = threading.RLock()
        self.text = ""
        self.columns = 0
        """Columns that the line takes at the moment."""
        self.open = False
        """Whether others have begun a line that they have not ended."""
        for sharer in self.sharing:
            sharer.line = self

    @property
    def width(self) -> int:
        """The number of columns that a text may have to be shown whole."""
        return max(1, shutil.get_terminal_size().columns - ROOM)

    def show(self, text: str) -> None:
        """Show a text in place of the one before; what is too long is cut off."""
        with self.lock:
            self.text = text
            self._draw()

    @contextmanager
    def aside(self, text: str) -> Iterator[None]:
        """Let others print a text above the line in the block."""
        with self.lock:
            if self.columns:
                blanks = " " * (min(self.columns, self.width) + ROOM - 1)
                self.stream.put(f"\r{blanks}\r")
                self.columns = 0
            try:
                yield
            finally:
                self.open = not text.endswith("\n") if text else self.open
                self._draw()

    def _draw(self) -> None:
        """Write the line, where the cursor is at the begin of one."""
        if self.open or not self.text:
            return
        # The terminal may have become narrower meanwhile.
        text = self.text if cell_len(self.text) <= self.width else set_cell_size(self.text, self.width)
        columns = cell_len(text)
        self.columns = max(columns, min(self.columns, self.width))
        self.stream.put(f"\r{text}{' ' * (self.columns - columns)}")
        self.stream.flush()

    def close(self) -> None:
        """Leave the last text where it is, and the cursor on a new line."""
        with self.lock:
            for sharer in self.sharing:
                sharer.line = None
            if self.columns:
                self.stream.put("\n")
                self.stream.flush()
                self.columns = 0
