"""What stands before a reward service: who may ask, how many at a time, and how a refused connection ends."""

import asyncio
import hmac
import ipaddress
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi.responses import JSONResponse

from .activity import Activity
from .limits import ServiceLimits

_log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CLOSING = (401, 403, 408, 413, 415, 500, 503, 504)
"""Statuses after which the connection is closed: its body may not have been read, or its client asks too much."""
LINGER_SECONDS = 1.0
"""How long the rest of a refused body is read and dropped, so that its client gets to read why."""
RESERVED = 16
"""Connections that remain for other questions where requests for scores take all the others."""


class Gate:
    """Lets a request in, or refuses it; an exception behind it becomes an answer that does not say what it was."""

    def __init__(self, app: Any, key: str | None, limits: ServiceLimits, activity: Activity) -> None:
        self.app, self.key, self.limits, self.activity = app, key, limits, activity
        self.scoring = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        exchange = Exchange(receive, send)
        scores = scope["path"] == "/score"
        self.scoring += scores
        try:
            async with asyncio.timeout(self.limits.seconds + 2 * LINGER_SECONDS):  # a client may not read its answer
                await self.answer(scope, exchange)
        except TimeoutError:
            _log.warning("a client did not read its answer")
        finally:
            self.scoring -= scores
            if exchange.status:
                self.activity.count(f"status {exchange.status}")

    async def answer(self, scope: Message, exchange: "Exchange") -> None:
        """Refuse a request or pass it on."""
        refusal = self.refusal(scope, dict(scope["headers"]))
        app = self.app if refusal is None else JSONResponse({"error": refusal[1]}, refusal[0])
        try:
            await app(scope, exchange.receive, exchange.send)
        except Exception:
            _log.exception("a request failed")
            if not exchange.status:
                failed = JSONResponse({"error": "the service failed; its log says why"}, 500)
                await failed(scope, exchange.receive, exchange.send)

    def refusal(self, scope: Message, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        """Return the status and the reason of a refusal; None where the request is let in.

        Without a key a request must not come from a web page, not even of one whose name was made to point here.
        """
        if self.key is not None:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, f"Bearer {self.key}".encode()):
                return 401, "a key is needed: Authorization: Bearer KEY"
        elif b"origin" in headers:
            return 403, "a service without a key answers to no web page"
        elif not is_this_machine(headers.get(b"host", b"").decode("latin-1")):
            return 403, "a service without a key answers at 127.0.0.1 or localhost alone"
        if scope["path"] == "/score" and self.scoring > max(1, self.limits.connections - RESERVED):
            return 503, "too many requests at a time; come again"
        return None


class Exchange:
    """The two directions of one request: whether its body has been read, and the status of its answer."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.status, self.is_read = 0, False

    async def receive(self) -> Message:
        """Return the next part of the request."""
        message = await self._receive()
        self.is_read = self.is_read or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer; one that refuses the request closes the connection."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status in CLOSING:
                await self.drop_body()
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
        await self._send(message)

    async def drop_body(self) -> None:
        """Read the rest of the body for a short while."""
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while not self.is_read:
                    await self.receive()
        except TimeoutError:
            pass


def is_this_machine(host: str) -> bool:
    """Whether a Host header names this machine, with or without a port."""
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    try:
        return name.lower() == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def content_type(header: str | None) -> str:
    """Return the content type that a header names, without its parameters."""
    return (header or "").partition(";")[0].strip().lower()
