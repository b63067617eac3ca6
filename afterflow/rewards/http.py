"""Requests to servers that may be slow, wrong or hostile: reward services, chat servers and sidecars.

Deadlines hold for a whole reply, however slowly its bytes come.  No more of a reply than is allowed is ever in memory.
"""

import asyncio
import email.utils
import math
import os
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from ..system.errors import ConfigError, InputError
from .messages import MAX_VALUES, decode_json

REST_SECONDS = 30.0
"""How long a server that does not answer is left alone."""
CONNECT_SECONDS = 5.0
"""Longest time to reach a server; one that takes longer is not there."""
MAX_RETRY_SECONDS = 60.0
"""Longest time that a server's Retry-After is waited for."""
TRANSIENT = (408, 429, 500, 502, 503, 504)
"""The statuses after which the same question may succeed."""
MAX_REPLY_MEGABYTES = 4
"""Largest reply that is read; scores, answers and lists of models are far smaller."""
REPLY_MEMORY_MEGABYTES = 32
"""Memory that such a reply takes: itself, its text in up to four bytes a character, and what is read from it."""
_SLICE = 2**20


class BadReply(InputError):
    """A reply that is not read to its end: it is too large, or compressed, which hides how large it is."""


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    status_code: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """Return the body as text, whatever its encoding says: a reply that is not UTF-8 shows it."""
        return self.body.decode("utf-8", "replace")

    def json(self, max_values: int = MAX_VALUES) -> Any:
        """Return the message in the body; raise InputError where it is no JSON, or becomes too much."""
        return decode_json(self.body, max_values)


class HttpClient:
    """A client of servers for several threads, whose requests run in one thread of their own, where they can be ended.

    Redirections are not followed, cookies are forgotten, and compression is not asked for.
    """

    def __init__(self, key_variable: str | None = None, connections: int = 100) -> None:
        import httpx

        headers = {"Accept-Encoding": "identity", **(key_header(key_variable) if key_variable else {})}
        limits = httpx.Limits(max_connections=connections)
        self.client = httpx.AsyncClient(headers=headers, limits=limits, follow_redirects=False)

    def get(self, url: str, seconds: float) -> Reply:
        """Return the reply to GET; errors as those of `send`."""
        return self.send("GET", url, seconds)

    def post(
        self, url: str, body: bytes, kind: str, seconds: float, max_megabytes: float = MAX_REPLY_MEGABYTES
    ) -> Reply:
        """Return the reply to POST; errors as those of `send`.

        Args:
            url: address.
            body: content of the request.
            kind: its content type.
            seconds: time for the whole reply.
            max_megabytes: largest reply.
        """
        return self.send("POST", url, seconds, body, {"Content-Type": kind}, max_megabytes)

    def send(
        self,
        method: str,
        url: str,
        seconds: float,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        max_megabytes: float = MAX_REPLY_MEGABYTES,
    ) -> Reply:
        """Return the reply to a request; raise httpx.TransportError where none came in time, and BadReply.

        Args:
            method: GET or POST.
            url: address.
            seconds: time for all of it, from reaching the server to the last byte of its reply.
            body: content of the request.
            headers: headers besides those of every request.
            max_megabytes: largest reply.
        """
        reply = self._send(method, url, seconds, body, dict(headers or {}), int(max_megabytes * 2**20))
        return asyncio.run_coroutine_threadsafe(reply, background_loop(os.getpid())).result()

    async def _send(
        self, method: str, url: str, seconds: float, body: bytes, headers: dict[str, str], max_bytes: int
    ) -> Reply:
        import httpx

        if body:
            headers["Content-Length"] = str(len(body))
        content = slices(body) if body else None
        patience = httpx.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS))
        try:
            async with (
                asyncio.timeout(seconds),
                self.client.stream(method, url, content=content, headers=headers, timeout=patience) as reply,
            ):
                return Reply(reply.status_code, reply.headers, await read_within(reply, max_bytes))
        except TimeoutError:
            raise httpx.ReadTimeout(f"no whole reply within {seconds:g} s") from None
        finally:
            self.client.cookies.clear()


async def read_within(reply: Any, max_bytes: int) -> bytes:
    """Return the body of a reply; raise BadReply where it is compressed, or larger than is allowed."""
    encoding = reply.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise BadReply(f"its reply is compressed ({encoding[:20]!r}), which was not asked for")
    parts = bytearray()
    async for part in reply.aiter_raw():
        parts += part
        if len(parts) > max_bytes:
            raise BadReply(f"its reply has more than {max_bytes / 2**20:g} MB")
    return bytes(parts)


async def slices(body: bytes) -> AsyncIterator[bytes]:
    """Yield a body in parts, so that it is never copied as a whole."""
    for start in range(0, len(body), _SLICE):
        yield body[start : start + _SLICE]


@cache
def background_loop(process: int) -> asyncio.AbstractEventLoop:
    """Return the event loop where the requests of a process run, in a thread that ends with it."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="afterflow requests", daemon=True).start()
    return loop


def read_key(variable: str) -> str | None:
    """Return the key in an environment variable; None where there is none.

    ConfigError is raised for a key that no HTTP header can hold: what is not ASCII has no encoding there.
    """
    key = os.environ.get(variable) or None
    if key is not None:
        check_key(variable, key)
    return key


def check_key(name: str, key: str) -> None:
    """Raise ConfigError for a key that no HTTP header can hold."""
    if not (key and key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"{name}: a key is of ASCII letters, digits and signs, without spaces and line ends")


def key_header(variable: str) -> dict[str, str]:
    """Return the HTTP header with the key from an environment variable; none where it is not set."""
    key = read_key(variable)
    return {"Authorization": f"Bearer {key}"} if key else {}


def retry_after(header: str | None) -> float:
    """Return the seconds that a Retry-After header asks for, in seconds or as a date: 0 to `MAX_RETRY_SECONDS`.

    A header that is missing or cannot be read asks for none.
    """
    try:
        seconds = float(header or 0)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header or "").timestamp() - datetime.now().timestamp()
        except (ValueError, OverflowError, OSError):
            return 0.0
    return min(max(seconds, 0.0), MAX_RETRY_SECONDS) if math.isfinite(seconds) else 0.0
