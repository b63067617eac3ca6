"""Texts from outside, escaped for where they go: a terminal, Markdown, Python, a plot; and without local paths."""

import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Categories of characters that a terminal does not show but follows."""
MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
"""Markup of Markdown; an underscore between letters is none."""
LOCAL_PATH = re.compile(r"""(?<![\w/.:~-])(?:~|[A-Za-z]:)?(?:[/\\]+[^\s/\\"'`<>|)\]]+){2,}""")
"""A path from the root, a home folder or a drive, in a text; not the path of an address."""

WHOLE_PATH = re.compile(r"(?:~|[A-Za-z]:|file:)?(?:[/\\]+[^/\\\n]+){2,}[/\\]?")
"""A text that is such a path from its beginning to its end."""


def printable(text: str) -> str:
    """Return a text for a terminal: escape codes, other controls and changes of direction are shown as \\x1b.

    Line feeds and tabs stay.
    """
    if text.isprintable():
        return text
    # Joiners, which Persian and emoji need, steer nothing.
    steers = lambda char: unicodedata.category(char) in STEERING and char not in "\n\t\u200c\u200d"
    return "".join(repr(char)[1:-1] if steers(char) else char for char in text)


def one_line(text: str) -> str:
    """Return a text as `printable` does, on one line."""
    return " ".join(printable(text).split())


def markdown_text(text: str) -> str:
    """Return a text for a line or a cell of a table in Markdown, in which it is no markup and no HTML."""
    for char, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(char, entity)
    return MARKDOWN.sub(lambda match: "\\" + match[0], one_line(text))


def code_span(text: str) -> str:
    """Return a text as code in a line or a cell of a table in Markdown."""
    text = one_line(text).replace("|", "\\|")
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{ticks}{text}{ticks}" if len(ticks) == 1 else f"{ticks} {text} {ticks}"


def python_text(text: str) -> str:
    """Return a text as a literal of Python, on one line of printable characters."""
    return json.dumps(text)


def plot_text(text: str) -> str:
    """Return a text for a plot, in which dollar signs begin no formula."""
    return one_line(text).replace("$", r"\$")


def without_local_paths(value: Any, inside: bool = True) -> Any:
    """Return a value of JSON with the last part of every local path alone, in texts and in keys.

    Without `inside` only texts that are a path of several parts as a whole change, and none that merely hold one.
    """
    if isinstance(value, str):
        if not inside:
            return last_part(value) if WHOLE_PATH.fullmatch(value) else value
        whole = re.match(r"[/~\\]|[A-Za-z]:[/\\]|file:", value) and len(value) > 1
        return last_part(value) if whole else LOCAL_PATH.sub(lambda match: last_part(match[0]), value)
    if isinstance(value, dict):
        return {without_local_paths(key, inside): without_local_paths(item, inside) for key, item in value.items()}
    return [without_local_paths(item, inside) for item in value] if isinstance(value, list) else value


def last_part(path: str) -> str:
    """Return the last part of a path of any system."""
    return re.split(r"[/\\]+", path.rstrip("/\\"))[-1]


def local_paths(value: Any) -> Iterable[str]:
    """Yield the texts in a value of JSON that `without_local_paths` would change."""
    if isinstance(value, str) and without_local_paths(value) != value:
        yield value
    elif isinstance(value, dict):
        for item in value.items():
            yield from local_paths(list(item))
    elif isinstance(value, list):
        for item in value:
            yield from local_paths(item)
