"""How a user asks a command for help."""

from collections.abc import Sequence

HELP = frozenset({"-h", "--help"})


def asks_for_help(words: Sequence[str]) -> bool:
    """Return whether one of the words of a command line asks for help."""
    return not HELP.isdisjoint(words)
