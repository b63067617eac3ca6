"""The first line of a command that needs torch: it is printed before torch is imported, which takes seconds."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder

SLOW = "torch"
"""The library whose import is announced; all other slow ones import it."""


class Announcer(MetaPathFinder):
    """A finder of modules that finds none, and prints a line when the slow library is looked for."""

    def __init__(self, line: str) -> None:
        self.line: str | None = line

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Print the line, once, where `name` is the slow library."""
        if name == SLOW and self.line is not None:
            line, self.line = self.line, None
            print(line, file=sys.stderr, flush=True)


@contextmanager
def announced_import(user: str) -> Iterator[None]:
    """Print a line on stderr, which names the user, as soon as something in the block imports the slow library."""
    announcer = Announcer(f"{user}: importing {SLOW} and what needs it, which takes some seconds")
    sys.meta_path.insert(0, announcer)
    try:
        yield
    finally:
        sys.meta_path.remove(announcer)
