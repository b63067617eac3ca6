"""Messages from outside, JSON or msgpack: how much they become is known before it is built.

A few megabytes of empty lists are gigabytes of Python objects, so values are counted and nesting is measured first.
Both readers work in Python between short calls of C, so that other threads go on while a large message is read.
"""

import json
import re
import struct
from typing import Any

from ..system.errors import InputError

MAX_VALUES = 100_000
"""Largest number of values in a message: numbers, texts, keys, lists and maps."""
MAX_DEPTH = 32
"""Deepest nesting of lists and maps in a message."""
MAX_RECORD = 2**16
"""Largest number of characters of all texts in a record."""
VALUE_BYTES = 200
"""Memory that a value takes at most, besides its text or bytes: that of a map of one entry."""

_SLICE = 2**20
"""Characters of JSON that one call of C looks at."""
_JSON_START, _JSON_TEXT = re.compile(r"[^\s,:]"), re.compile(r'(?:[^"\\]++|\\.)*+', re.S)
_JSON_WORD = re.compile(r'[^\s\[\]{},:"]*+')

_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {
    **{0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"},
    **{0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"},
}
_SIZED = {
    **{0xC4: ("bytes", 1), 0xC5: ("bytes", 2), 0xC6: ("bytes", 4), 0xD9: ("text", 1), 0xDA: ("text", 2)},
    **{0xDB: ("text", 4), 0xDC: ("list", 2), 0xDD: ("list", 4), 0xDE: ("map", 2), 0xDF: ("map", 4)},
}
"""Type byte of msgpack → the kind of value, and the bytes of its length."""


def length_of_texts(value: Any, row: int = 0) -> int:
    """Return the number of characters of all texts in a record; raise InputError where it holds bytes."""
    if isinstance(value, memoryview):
        raise InputError(f"records[{row}] holds bytes, and records are as JSON has them")
    if isinstance(value, dict):
        return sum(len(name) + length_of_texts(each, row) for name, each in value.items())
    if isinstance(value, list):
        return sum(length_of_texts(each, row) for each in value)
    return len(value) if isinstance(value, str) else 0


class TooLarge(InputError):
    """A message that would become more than is allowed."""


def decode_json(body: bytes | bytearray | str, max_values: int = MAX_VALUES) -> Any:
    """Return the message in JSON; raise TooLarge before it is built, and InputError for what is no JSON."""
    try:
        text = body if isinstance(body, str) else str(body, "utf-8").removeprefix("\ufeff")
        check_json_size(text, max_values)
        return json.loads(text)
    except TooLarge:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError("the body is not JSON") from error


def check_json_size(text: str, max_values: int) -> None:
    """Raise TooLarge where a text in JSON holds too many values, or nests them too deep."""
    at, count, depth = 0, 0, 0
    while at < len(text):
        start = _JSON_START.search(text, at, at + _SLICE)
        if start is None:
            at += _SLICE
            continue
        first, at = start.group(), start.end()
        if first in "]}":
            depth -= 1
            continue
        count, depth = count + 1, depth + (first in "[{")
        check_size(count, depth, max_values)
        if first == '"':
            at = end_of_text(text, at)
        elif first not in "[{":
            at = skip(_JSON_WORD, text, at)


def end_of_text(text: str, at: int) -> int:
    """Return the place after the quotation mark that ends a text of JSON, or the end of all."""
    while at < len(text) and text[at] != '"':
        at = skip(_JSON_TEXT, text, at)
    return at + 1


def skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Return the place where a pattern that may be empty ends, at most a slice away."""
    match = pattern.match(text, at, at + _SLICE)
    assert match is not None
    # A backslash whose letter is in the next slice, or nowhere, is passed with it.
    return match.end() if match.end() > at or text[at : at + 1] != "\\" else at + 2


def check_size(count: int, depth: int, max_values: int) -> None:
    """Raise TooLarge where a message has this many values, or nests them this deep, and may not."""
    if count > max_values:
        raise TooLarge(f"the body holds more than {max_values} values")
    if depth > MAX_DEPTH:
        raise TooLarge(f"the body is nested deeper than {MAX_DEPTH}")


def count_values(message: Any) -> int:
    """Return how many values a message holds."""
    if isinstance(message, dict):
        return 1 + len(message) + sum(map(count_values, message.values()))
    return 1 + sum(map(count_values, message)) if isinstance(message, list) else 1


def decode_msgpack(body: bytes | bytearray, max_values: int = MAX_VALUES) -> Any:
    """Return the message in msgpack; raise TooLarge before it is built, and InputError for what is no msgpack.

    Byte strings are views of the body, which is not copied.  Extension types are no data of ours and are refused.
    """
    reader = _MsgpackReader(body, max_values)
    try:
        message = reader.value(0)
    except TooLarge:
        raise
    except (ValueError, TypeError, struct.error) as error:
        raise InputError("the body is not msgpack") from error
    if reader.at != len(body):
        raise InputError("the body is not msgpack")
    return message


class _MsgpackReader:
    """A place in a body of msgpack.  The library limits each list and not all of them together, and copies."""

    def __init__(self, body: bytes | bytearray, max_values: int) -> None:
        self.body, self.at, self.count, self.max_values = memoryview(body).toreadonly(), 0, 0, max_values

    def take(self, size: int) -> memoryview:
        """Return the next bytes; raise ValueError where the body ends before."""
        self.at += size
        if self.at > len(self.body):
            raise ValueError("it breaks off")
        return self.body[self.at - size : self.at]

    def value(self, depth: int) -> Any:
        """Return the next value, at this depth of nesting."""
        self.count += 1
        check_size(self.count, depth, self.max_values)
        kind = self.take(1)[0]
        if kind < 0x80 or kind >= 0xE0:
            return kind if kind < 0x80 else kind - 256
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        if kind in _NUMBERS:
            return struct.unpack(_NUMBERS[kind], self.take(struct.calcsize(_NUMBERS[kind])))[0]
        return self.sized(kind, depth)

    def sized(self, kind: int, depth: int) -> Any:
        """Return the rest of a value that says its length."""
        if kind < 0xC0:
            name = "map" if kind < 0x90 else "list" if kind < 0xA0 else "text"
            length = kind & (0x1F if name == "text" else 0x0F)
        else:
            name, bytes_of_length = _SIZED.get(kind) or ("", 0)
            length = int.from_bytes(self.take(bytes_of_length))
        if name in ("list", "map"):
            check_size(self.count + length, depth + 1, self.max_values)
        match name:
            case "bytes":
                return self.take(length)
            case "text":
                return str(self.take(length), "utf-8")
            case "list":
                return [self.value(depth + 1) for _ in range(length)]
            case "map":
                return {self.key(depth + 1): self.value(depth + 1) for _ in range(length)}
        raise ValueError(f"no data of ours: type {kind}")

    def key(self, depth: int) -> str:
        """Return the next value, which must be a text."""
        key = self.value(depth)
        if not isinstance(key, str):
            raise TypeError("a key is a text")
        return key
