"""Messages from outside: what is read is what was written, and what would become too much is refused before it does."""

import json
import math
import random
import tracemalloc

import pytest

from afterflow.rewards import messages
from afterflow.rewards.messages import (
    MAX_DEPTH,
    TooLarge,
    check_json_size,
    count_values,
    decode_json,
    decode_msgpack,
)
from afterflow.system.errors import InputError

msgpack = pytest.importorskip("msgpack")
MB = 2**20


def drawn(rng, depth=0):
    """A message of every kind and length of value."""
    lengths = (0, 1, 15, 16, 31, 32, 255, 256)
    match rng.randrange(6 if depth > 2 else 8):
        case 0:
            return rng.choice([None, True, False, math.inf, 0.1])
        case 1:
            return rng.choice([1, -1]) * rng.getrandbits(rng.randrange(64))
        case 2:
            return rng.choice([2**64 - 1, -(2**63), 127, 128, -32, -33, 65535, 65536])
        case 3:
            return rng.choice(["é", "\\", '"', "\n", "[", "x"]) * rng.choice(lengths)
        case 4 | 5:
            return rng.gauss(0, 1e9)
        case 6:
            return [drawn(rng, depth + 1) for _ in range(rng.choice(lengths[:4]))]
    return {f"{i}{'k' * rng.choice(lengths)}": drawn(rng, depth + 1) for i in range(rng.choice(lengths[:4]))}


@pytest.mark.parametrize("slice_size", [1, 2, 7, 2**20])
def test_messages_are_read_as_the_libraries_write_them(monkeypatch, slice_size):
    monkeypatch.setattr(messages, "_SLICE", slice_size)
    rng = random.Random(0)
    for _ in range(300):
        message = drawn(rng)
        assert decode_msgpack(msgpack.packb(message)) == message
        text = json.dumps(message, ensure_ascii=rng.random() < 0.5)
        assert decode_json(text) == decode_json(text.encode()) == message
        count = count_values(message)
        if slice_size == MB:  # a number across slices counts in each of them
            check_json_size(text, count)
        for read, body in ((decode_msgpack, msgpack.packb(message)), (decode_json, text)):
            with pytest.raises(TooLarge, match=f"more than {count - 1} values"):
                read(body, count - 1)


def test_bytes_are_views_of_the_body_and_long_lists_and_texts_have_their_length():
    body = bytearray(msgpack.packb({"raw": b"a" * 70_000, "text": "é" * 40_000, "list": [1] * 70_000}))
    message = decode_msgpack(body)
    assert message["raw"].obj is body and bytes(message["raw"]) == b"a" * 70_000
    assert len(message["text"]) == 40_000 and len(message["list"]) == 70_000


HOSTILE = {
    "json lists": (decode_json, b"[" + b"[]," * 5 * MB),
    "json maps": (decode_json, b"[" + b"{}," * 5 * MB),
    "json numbers": (decode_json, b"[" + b"1," * 8 * MB),
    "json texts": (decode_json, b'"' * 16 * MB),
    "json nested": (decode_json, b'{"a":' * 3 * MB),
    "json in utf-16": (decode_json, ("[" + "[]," * 3 * MB).encode("utf-16")),
    "msgpack lists": (decode_msgpack, b"\xdd\x00\xff\xff\xff" + b"\x90" * 16 * MB),
    "msgpack lists of lists": (decode_msgpack, b"\xdc\xff\xff" + (b"\x9f" + b"\x90" * 15) * MB),
    "msgpack maps": (decode_msgpack, b"\xdf\x00\xff\xff\xff" + b"\xa1a\x80" * 5 * MB),
    "msgpack promises": (decode_msgpack, b"\xdd\xff\xff\xff\xff"),
    "msgpack nested": (decode_msgpack, b"\x91" * 16 * MB),
    "msgpack bytes that are not there": (decode_msgpack, b"\xc6\xff\xff\xff\xff" + b"a"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_become_too_much_is_refused_before_it_does(name):
    read, body = HOSTILE[name]
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as error:
            read(body, 20_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(body) + 6 * MB  # the text of JSON, and what the values before the last allowed one take
    assert len(str(error.value)) < 100


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", b"\x81", b"\x92\x01", b"\x81\x01\x02", b"\xa1\xff", b"\x01\x01", b"\xd4\x01a", b"\xd6\xff\0\0\0\0"],
    ids=["nothing", "no type", "cut", "cut list", "number as key", "no text", "two values", "extension", "time"],
)
def test_what_is_no_message_in_msgpack_is_said(body):
    with pytest.raises(InputError, match="the body is not msgpack"):
        decode_msgpack(body)


@pytest.mark.parametrize("body", [b"", b'"', b'"\\', b"{", b"1" * 5000, b"\xff", b'"\\u12', b"[1,]", b"nan"])
def test_what_is_no_message_in_json_is_said(body):
    with pytest.raises(InputError, match="the body is not JSON"):
        decode_json(body)


def test_a_message_may_be_as_deep_as_is_allowed_and_no_deeper():
    for read, write in ((decode_json, json.dumps), (decode_msgpack, msgpack.packb)):
        message = []
        for _ in range(MAX_DEPTH - 1):
            message = [message]
        assert read(write(message)) == message
        with pytest.raises(TooLarge, match=f"deeper than {MAX_DEPTH}"):
            read(write([message, 1]))
