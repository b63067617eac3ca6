"""JSON that comes from outside: strict, so that a number is a number."""

import json
import math
import re
from pathlib import Path
from typing import Any

from .errors import InputError

TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|-?(?:Infinity|NaN|[\d][\d.eE+-]*)')
"""A text, a number, or what Python takes for a number and JSON does not."""


def parse_json(text: str) -> Any:
    """Return what a JSON text holds.

    json.JSONDecodeError, with line and column, is raised for what is not JSON, for NaN and Infinity, for numbers too
    large, and for lists in lists without end.
    """

    def number(word: str) -> float:
        value = float(word)
        if math.isfinite(value):
            return value
        place = next((token.start() for token in TOKEN.finditer(text) if token[0] == word), 0)
        raise json.JSONDecodeError(f"{word} is not a finite number", text, place)

    try:
        return json.loads(text, parse_constant=number, parse_float=number)
    except RecursionError:
        raise json.JSONDecodeError("it is nested too deeply", text, 0) from None
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError):
            raise
        # Python reads no whole number of more than 4300 digits.
        raise json.JSONDecodeError("a number has too many digits", text, 0) from None


def json_error(error: json.JSONDecodeError) -> str:
    """Return in one line what is wrong with a text, and where."""
    return f"not JSON ({error.msg} at line {error.lineno}, column {error.colno})"


def read_json(file: Path) -> Any:
    """Return what a JSON file holds.  InputError names the file and what is wrong with it."""
    try:
        return parse_json(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{file}: {json_error(error)}") from None
    except OSError as error:
        raise InputError(f"{file}: it cannot be read ({error.strerror})") from None
