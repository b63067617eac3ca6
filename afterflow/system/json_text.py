"""JSON that comes from outside: strict, so that a number is a number."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

JSON_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|-?(?:Infinity|NaN|[\d][\d.eE+-]*)')
"""A text, a number, or what Python takes for a number and JSON does not."""


def parse_strict_json(text: str) -> Any:
    """Return what a JSON text holds.

    json.JSONDecodeError, with line and column, is raised for what is not JSON, for NaN and Infinity, for numbers too
    large, and for lists in lists without end.
    """

    def number(word: str) -> float:
        value = float(word)
        if math.isfinite(value):
            return value
        position = next((token.start() for token in JSON_TOKEN.finditer(text) if token[0] == word), 0)
        raise json.JSONDecodeError(f"{word} is not a finite number", text, position)

    try:
        return json.loads(text, parse_constant=number, parse_float=number)
    except RecursionError:
        raise json.JSONDecodeError("it is nested too deeply", text, 0) from None
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError):
            raise
        # Python reads no whole number of more than 4300 digits.
        raise json.JSONDecodeError("a number has too many digits", text, 0) from None


def json_error(error: json.JSONDecodeError, text: str) -> str:
    """Return in one line what is wrong with a text, and where in it."""
    line = f"line {error.lineno}, " if "\n" in text else ""
    return f"not JSON ({error.msg} at {line}column {error.colno})"


def json_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a row that JSON can hold; bytes, pictures and dates are none."""
    return {name: value for name, value in row.items() if is_json(value)}


def is_json(value: Any) -> bool:
    """Return whether JSON can hold a value: texts, numbers, true, false, null, and lists and objects of them."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            waiting += [*part.values()]
            if not all(isinstance(key, str) for key in part):
                return False
        elif isinstance(part, list):
            waiting += part
        elif part is not None and not isinstance(part, str | int | float | bool):
            return False
    return True
