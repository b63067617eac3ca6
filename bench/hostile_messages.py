"""Messages that attack a reward service, and servers that attack its clients: what bench/attack_service.py sends."""

import base64
import json
import random
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator

import msgpack

from afterflow.rewards.http import MAX_REPLY_MEGABYTES
from afterflow.rewards.remote.protocol import JSON, MSGPACK

MB = 2**20


def picture(side: int = 8, level: int = 60) -> dict:
    return {"raw": bytes([level]) * (side * side * 3), "shape": [side, side, 3]}


def request(images: list, records: list | None = None, reward: str = "bright", **fields) -> dict:
    return {"reward": reward, "records": records or [{"prompt": "a"}] * len(images), "images": images, **fields}


def png(width: int, height: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    others = b"".join(chunk(data[:4], data[4:]) for data in chunks)
    return b"\x89PNG\r\n\x1a\n" + header + others + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def solid(side: int, colour: int = 2) -> bytes:
    """A real PNG of zeros, small as a file and large once decoded."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    return png(side, side, colour, b"\0" * (side * (side * channels + 1)))


def in_json(message: dict) -> bytes:
    encode = lambda data: base64.b64encode(data).decode()
    return json.dumps(message, default=encode).encode()


def counted(lists: int, byte: bytes = b"\x90") -> bytes:
    return b"\xdd" + lists.to_bytes(4) + byte * lists


Body = tuple[str, str, bytes]
"""Name, content type and content of a request."""


def hostile_bodies() -> list[Body]:
    """100 requests that should cost little and be refused, or be scored."""
    bodies = [*large_bodies(), *bodies_with_images(), *odd_bodies()]
    rng, whole = random.Random(0), msgpack.packb(request([picture()]))
    while len(bodies) < 100:
        body = bytearray(whole)
        for _ in range(rng.randrange(1, 9)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        changed = bytes(body[: rng.randrange(1, len(body))] if rng.random() < 0.3 else body)
        bodies.append(("mutated", MSGPACK, changed))
    assert len(bodies) == 100, len(bodies)
    return bodies


def large_bodies() -> Iterator[Body]:
    """Bodies that are much larger once they are parsed, of several sizes."""
    pack = msgpack.packb
    for size in (1, 4, 15):
        yield f"{size} M empty lists", MSGPACK, counted(size * MB)
        yield f"{size} M empty maps", MSGPACK, counted(size * MB, b"\x80")
        yield f"{size} MB of nested lists", MSGPACK, b"\x91" * size * MB
        yield f"{size} MB of nested maps", MSGPACK, b"\x81\xa1a" * (size * MB // 3)
        yield f"{size} MB of lists of lists", MSGPACK, b"\xdc\xff\xff" + (b"\x9f" + b"\x90" * 15) * (size * MB // 16)
        yield f"{size} MB of maps of one", MSGPACK, counted(size * MB // 4, b"\x81\xa1a\x01")
        yield f"{size} MB of numbers", MSGPACK, counted(size * MB // 9, b"\xcb" + b"\1" * 8)
        yield f"{size} MB of short texts", MSGPACK, counted(size * MB // 2, b"\xa1a")
        yield f"{size} MB of [] in JSON", JSON, b"[" + b"[]," * (size * MB // 3) + b"1]"
        yield f"{size} MB of {{}} in JSON", JSON, b"[" + b"{}," * (size * MB // 3) + b"1]"
        yield f"{size} MB of numbers in JSON", JSON, b"[" + b"1," * (size * MB // 2) + b"1]"
        yield f"{size} MB of [ in JSON", JSON, b"[" * size * MB
        yield f"{size} MB of quotes in JSON", JSON, b'"' * size * MB
        yield f"{size} MB of escapes in JSON", JSON, b'"' + b'\\"' * (size * MB // 2 - 1) + b'"'
        yield f"{size} MB of spaces", JSON, b" " * size * MB
        yield f"{size} MB of digits", JSON, b"1" * size * MB
        yield f"{size} MB text with one wide letter", JSON, ('["\U0001f600' + "a" * (size * MB - 10) + '"]').encode()
        yield f"{size} MB in UTF-16", JSON, ("[" + "[]," * (size * MB // 6)).encode("utf-16")
        yield f"{size} MB prompt", MSGPACK, pack(request([picture()], [{"prompt": "x" * (size * MB - 2000)}]))
        yield (
            f"{size} MB record",
            MSGPACK,
            pack(request([picture()], [{"prompt": "x", "y": [[]] * (size * MB - 2000)}])),
        )
        yield (
            f"{size} MB of bytes in a record",
            MSGPACK,
            pack(request([picture()], [{"prompt": "", "y": bytes(size * MB - 2000)}])),
        )
        yield f"{size} MB of a name", MSGPACK, pack(request([picture()], reward="b" * (size * MB - 2000)))


def bodies_with_images() -> Iterator[Body]:
    """PNGs that claim to be large, or are large once they are decoded."""
    pack = msgpack.packb
    for side in (1000, 1024, 2000, 30_000, 2**31 - 1):
        yield f"PNG that claims {side}", MSGPACK, pack(request([{"png": png(side, side, 2, b"\0" * 99)}]))
    for colour in (0, 2, 4, 6):
        yield f"64 PNGs of zeros, colour {colour}", MSGPACK, pack(request([{"png": solid(1000, colour)}] * 64))
        yield f"5 PNGs of zeros, colour {colour}", JSON, in_json(request([{"png": solid(1000, colour)}] * 5))
    text = b"zTXta\0\0" + zlib.compress(bytes(50 * MB))
    profile = b"iCCPa\0\0" + zlib.compress(bytes(50 * MB))
    for name, chunk in (("text", text), ("profile", profile)):
        yield f"PNG with a {name} of 50 MB", MSGPACK, pack(request([{"png": png(8, 8, 2, b"\0" * 200, chunk)}]))


def odd_bodies() -> Iterator[Body]:
    """Bodies whose shapes, lengths or content types are not right."""
    pack = msgpack.packb
    yield "raw of 64 images that are not there", MSGPACK, pack(request([{"raw": b"", "shape": [1024, 1024, 3]}] * 64))
    yield "5 MB of raw for a small shape", MSGPACK, pack(request([{"raw": bytes(5 * MB), "shape": [8, 8, 3]}]))
    yield "shape of large numbers", MSGPACK, pack(request([{"raw": b"", "shape": [2**63, 2**63, 3]}]))
    yield "shape of many sides", MSGPACK, pack(request([{"raw": b"", "shape": [1] * 40_000}]))
    yield "65 images", MSGPACK, pack(request([picture()] * 65))
    yield "promises", MSGPACK, b"\xdd\xff\xff\xff\xff"
    yield "promised bytes", MSGPACK, b"\xc6\xff\xff\xff\xff"
    yield "extension", MSGPACK, b"\xc9\xff\xff\xff\xff\1"
    yield "pickle", "application/x-python-pickle", b"\x80\x04cos\nsystem\n(S'echo'\ntR."
    yield "form", "application/x-www-form-urlencoded", b"reward=bright"
    yield "20 MB", MSGPACK, bytes(20 * MB)
    yield "20 MB in JSON", JSON, b" " * 20 * MB


Behaviour = tuple[str, Callable[[socket.socket], None]]
"""Name of a server, and what it does with a connection; what it sends is bounded by the client's leaving."""
OK = b"HTTP/1.1 200 OK\r\nContent-Length: "
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def hostile_replies() -> list[Behaviour]:
    """60 servers whose replies no client may suffer from."""
    replies = [*endless_replies(), *large_replies(), *untrue_replies(), *broken_replies()]
    assert len(dict(replies)) == len(replies) == 60, len(replies)
    return replies


def once(name: str, data: bytes) -> Behaviour:
    return name, lambda connection: connection.sendall(data)


def with_body(name: str, content: bytes, extra: bytes = b"") -> Behaviour:
    return once(name, OK + b"%d\r\n" % len(content) + extra + b"\r\n" + content)


def forever(name: str, start: bytes, part: bytes, pause: float = 0.0) -> Behaviour:
    def behave(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(part)
            time.sleep(pause)

    return name, behave


def endless_replies() -> Iterator[Behaviour]:
    """Replies that have no end, fast and slow."""
    for pause in (0.0, 0.01, 0.2):
        yield forever(f"endless body, {pause} s", OK + b"100000000000\r\n\r\n", b"x" * (MB if not pause else 1), pause)
        yield forever(
            f"endless chunks, {pause} s", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", pause
        )
        yield forever(f"endless header, {pause} s", b"HTTP/1.1 200 OK\r\nX: ", b"x", pause)
        yield forever(f"endless headers, {pause} s", b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", pause)
        yield forever(f"endless interim replies, {pause} s", b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", pause)
        yield forever(f"endless body without length, {pause} s", b"HTTP/1.1 200 OK\r\n\r\n", b"x", pause)
    yield "silence", lambda connection: time.sleep(10)


def large_replies() -> Iterator[Behaviour]:
    """Replies that are large, or become large once they are unpacked."""
    for coding in (b"gzip", b"deflate", b"br", b"zstd", b"gzip, gzip"):
        packed = zlib.compressobj(wbits=31)
        bomb = packed.compress(bytes(50 * MB)) + packed.flush()
        yield with_body(f"{coding.decode()} of 50 MB", bomb, b"Content-Encoding: " + coding + b"\r\n")
    full = MAX_REPLY_MEGABYTES * MB
    for size in (full - 100, full + 100):
        yield with_body(f"{size} bytes of lists", counted(size - 5))
        yield with_body(f"{size} bytes of maps", counted(size - 5, b"\x80"))
        yield with_body(f"{size} bytes of nesting", b"\x91" * size)
        yield with_body(f"{size} bytes of JSON lists", b"[" + b"[]," * (size // 3))
        yield with_body(f"{size} bytes with a wide letter", b'["' + "\U0001f600".encode() + b"a" * (size - 8) + b'"]')
        yield with_body(f"{size} bytes of zeros", bytes(size))


def untrue_replies() -> Iterator[Behaviour]:
    """Replies of the right form that say what cannot be."""
    good = {"version": "1", "values": [1.0], "parts": {}, "why": {}}
    full = MAX_REPLY_MEGABYTES * MB
    for name, changes in {
        "no values": {"values": None},
        "many values": {"values": [1.0] * 90_000},
        "texts": {"values": ["1"]},
        "infinite": {"values": [float("inf")]},
        "nan": {"values": [float("nan")]},
        "many parts": {"parts": {str(n): [1.0] for n in range(30_000)}},
        "terminal codes": {"why": {"0": "\x1b]0;x\x07\x1b[2J"}, "values": [None]},
        "long reason": {"why": {"0": "x" * (full - 200)}, "values": [None]},
        "row": {"why": {"9" * 5000: "x"}},
        "version": {"version": "2" * 100_000},
    }.items():
        yield with_body(name, msgpack.packb(good | changes))


def broken_replies() -> Iterator[Behaviour]:
    """Replies that are no HTTP, or go elsewhere, or break off."""
    yield once("redirect", b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")
    yield once("no HTTP", b"\0" * 1000)
    yield once("nothing", b"")
    yield once("negative length", OK + b"-1\r\n\r\nx")
    yield once("two lengths", OK + b"3\r\nContent-Length: 4\r\n\r\nabcd")
    yield once("cut", OK + b"1000\r\n\r\nabc")
    yield once("error with a long text", b"HTTP/1.1 422 No\r\nContent-Length: 3000000\r\n\r\n" + b"\x1b[2J" * 750_000)
    yield once("come again in a century", b"HTTP/1.1 503 No\r\nRetry-After: 3155760000\r\nContent-Length: 0\r\n\r\n")
    yield once("come again at no time", b"HTTP/1.1 503 No\r\nRetry-After: nan\r\nContent-Length: 0\r\n\r\n")
    yield once(
        "60 kB of cookies", b"HTTP/1.1 200 OK\r\nSet-Cookie: " + b"a" * 60_000 + b"=1\r\nContent-Length: 0\r\n\r\n"
    )
    yield once("a chunk larger than any memory", CHUNKED + b"F" * 17 + b"\r\nx")
    yield once("a chunk of no size", CHUNKED + b"-1\r\nx\r\n")
    yield once("a status that is none", b"HTTP/1.1 99999 X\r\nContent-Length: 0\r\n\r\n")
    yield once("a NUL in a header", b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\n{}")
