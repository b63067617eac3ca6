"""Texts that users bring: read as UTF-8, cut into lines at line feeds alone, and told with file and line.

`str.splitlines` also cuts at U+2028, at form feeds and at six characters more, which may stand inside a prompt.
"""

import json
from pathlib import Path
from typing import Any

from .errors import InputError
from .json_text import json_error, parse_strict_json


def read_text(file: Path | str) -> str:
    """Read a file of UTF-8, without its byte order mark.

    Raises InputError, with the line, where it is not UTF-8 or holds a NUL, and for a file that cannot be opened.
    """
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise InputError(f"{file}: it cannot be read ({error.strerror or error})") from None
    return decode_text(content, str(file))


def decode_text(content: bytes, location: str) -> str:
    """Return the text of a file, which stands at `location`; InputError as of `read_text`."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf_16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
        line, why = content.count(b"\n", 0, error.start) + 1, " (it is UTF-16)" if utf_16 else ""
        raise InputError(f"{location}:{line}: not UTF-8 at byte {error.start}{why}; save it as UTF-8") from None
    check_text(text, location, first_line=1)
    if "\n" not in text and text.strip("\r").count("\r") > 1:
        raise InputError(f"{location}: its lines end in carriage returns alone; save it with line feeds")
    return text


def read_text_lines(file: Path | str) -> list[tuple[str, str]]:
    """Read the lines of a file that are not blank, as pairs of FILE:LINE and text; InputError as of `read_text`."""
    lines = read_text(file).split("\n")
    return [(f"{file}:{n}", line.removesuffix("\r")) for n, line in enumerate(lines, 1) if line.strip()]


def read_json(file: Path | str) -> Any:
    """Read a file of JSON; InputError as of `read_text`, and where it is no JSON."""
    return parse_json(read_text(file), str(file))


def parse_json(text: str, location: str) -> Any:
    """Return what a text of JSON holds; InputError, with its location, where it is none or `check_text` refuses it."""
    try:
        value = parse_strict_json(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{location}: {json_error(error, text)}") from None
    for part in texts_in(value):
        check_text(part, location)
    return value


def texts_in(value: Any) -> list[str]:
    """Return all texts in a value of JSON, keys too."""
    texts, waiting = [], [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            waiting += [*part.keys(), *part.values()]
    return texts


def check_text(text: str, location: str, first_line: int | None = None) -> None:
    """Raise InputError for a NUL or half a surrogate pair, which tokenizers and files take for other things.

    `first_line` numbers the text's first line, where the location is a file's.
    """
    for i, character in enumerate(text) if "\0" in text or not encodable(text) else ():
        if character == "\0" or "\ud800" <= character <= "\udfff":
            line = "" if first_line is None else f":{first_line + text.count(chr(10), 0, i)}"
            what = "a NUL character" if character == "\0" else f"half a character, \\u{ord(character):04x}"
            raise InputError(f"{location}{line}: {what} in the text; take it out")


def encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
