"""Options of a command: read by tyro, whose complaints become one sentence, as every other error of a command."""

import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from itertools import dropwhile, takewhile
from typing import Any

import tyro
from tyro.conf import PositionalMetavarFromFieldName

from ..system.errors import ConfigError
from .help_words import asks_for_help
from .options import OPTIONS

WIDE = "10000"
"""Columns in which tyro lays a complaint out, so that no sentence of it is broken."""
REWORDED = {
    r"invalid choice (.*) for argument '(.*?)'\. Expected one of \((.*?),?\)\.": r"\2: no choice is \1; there are \3",
    r"no type matching .* could be instantiated from .* Got errors: .*<class '(?:int|float)'>: (.* is not .*)": r"\1",
    r"no type matching (.*?) could be instantiated from \[(.*?)\]\. Got errors: .*": r"\2 cannot be read; it takes \1",
    r"Missing value for argument '(.*?)'\. Expected (\d+) values\.": r"\1 needs a value after it",
}
"""Complaint of tyro → the same as a sentence of ours."""


def parse_options(kind: Callable[..., Any], args: Sequence[str], prog: str, **options: Any) -> Any:
    """Return what tyro makes of the arguments of a command; --help prints and ends it.

    ConfigError says in one sentence what is wrong with them.

    Args:
        kind: The class whose fields are the options.
        args: The arguments.
        prog: The command, as it is typed.
        options: Further arguments of `tyro.cli`.
    """
    options = {"config": [PositionalMetavarFromFieldName], "registry": OPTIONS} | options
    if asks_for_help(args):
        return tyro.cli(kind, args=args, prog=prog, **options)
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint), wide_terminal():
            parsed = tyro.cli(kind, args=args, prog=prog, **options)
    except SystemExit as end:
        if not end.code:
            raise
        raise ConfigError(complaint_sentence(complaint.getvalue(), prog)) from None
    sys.stderr.write(complaint.getvalue())
    return parsed


@contextmanager
def wide_terminal() -> Iterator[None]:
    """Let tyro take the terminal for a wide one inside the context."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDE
    try:
        yield
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before


def complaint_sentence(box: str, prog: str) -> str:
    """Return what stands in tyro's box as one sentence, with the nearest options and where to read more."""
    box = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line for line in (line.strip("│╭╮╰╯ ") for line in box.splitlines()[1:]) if line]
    is_bar = lambda line: set(line) <= {"─", "-"}
    # Without UTF-8 there is a bar below the title too.
    message = list(takewhile(lambda line: not is_bar(line), dropwhile(is_bar, lines)))
    near = [line.split()[0].rstrip(",") for line in lines if line.startswith("--") and not is_bar(line)]
    what = re.sub(r"^Error parsing ([^-\s]\S*): ", "", " ".join(message)).removeprefix("Error parsing ")
    if message and message[0].startswith("Missing from"):
        names = [line.split()[0].split("|")[-1] for line in message[1::2]]
        what = f"{', '.join(names)} is missing: {message[2].removesuffix(' (required)').rstrip('.')}"
    elif what.startswith("Unrecognized options: "):
        unknown = what.removeprefix("Unrecognized options: ").split(", ")
        option = next((word for word in unknown if word.startswith("--")), None)
        what = f"{unknown[0]} is not expected here" if option is None else f"there is no option {option}"
        what += f"; did you mean {near[0]}?" if near and option is not None else ""
    for pattern, words in REWORDED.items():
        what = re.sub(pattern, words, what)
    return f"{what.rstrip('.')} ({prog} --help)" if message else f"{prog}: the options cannot be read"
