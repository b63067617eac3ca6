"""The connections of a reward service: how many there may be, and how long one may wait for a request."""

import asyncio
import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ...system.ended import TERMINATIONS, handlers
from ...system.errors import ConfigError
from ...system.freed_memory import return_large_blocks
from .limits import ServiceLimits

_log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 30
"""How long a connection may stay open between two requests; clients of ours leave earlier."""
SHUTDOWN_SECONDS = 10
"""How long requests may take to end when the service is stopped."""
ACCEPTED_AT_ONCE = 16
"""Connections that the event loop accepts before it looks at those it has."""
BACKLOG = 1024
"""Connections that the system holds until they are accepted."""


def bind(host: str, port: int) -> socket.socket:
    """Return a socket of an address; raise ConfigError where it is taken, or is none of this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        why = error.strerror if isinstance(error, OSError) else "a port is a number below 65536"
        raise ConfigError(f"--port {port} on {host}: {why}; name another") from None
    return listener


def run_service(app: Any, listener: socket.socket, limits: ServiceLimits) -> None:
    """Serve until the process is stopped."""
    return_large_blocks()
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=connection_class(allowed_connections(limits.connections), limits.header_seconds),
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        backlog=ACCEPTED_AT_ONCE,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    Service(config).run([listener])


class Service(uvicorn.Server):
    """A server that says where it listens when it is ready, and that a closing terminal stops as Ctrl-C does."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on Ctrl-C, SIGTERM and SIGHUP, after the requests that are being answered."""
        with handlers(dict.fromkeys((signal.SIGINT, *TERMINATIONS), self.handle_exit)):
            yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)
            host, port = listener.getsockname()[:2]
            _log.info("ready: listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)


def allowed_connections(wanted: int) -> int:
    """Return how many connections there may be: half of the files that this process may open, or fewer."""
    try:
        import resource
    except ImportError:  # Windows, where sockets are no files
        return wanted
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if files == resource.RLIM_INFINITY else min(wanted, files // 2)
    if allowed < wanted:
        _log.warning("%d connections at most instead of %d, for %d open files (ulimit -n)", allowed, wanted, files)
    return allowed


def connection_class(most: int, header_seconds: float) -> type[H11Protocol]:
    """Return the class of a server's connections, of which there may be so many."""
    return type("Connection", (BoundedConnection,), {"most": most, "header_seconds": header_seconds, "waiting": {}})


class BoundedConnection(H11Protocol):
    """A connection that closes where its request does not come in time, or where others need its room."""

    most: int
    """Largest number of connections.  Beyond it the one closes that has waited longest for a request."""
    header_seconds: float
    """Longest time from the start to the end of a request's headers."""
    waiting: dict["BoundedConnection", asyncio.TimerHandle | None]
    """Connections that wait for a request, those that have waited longest first, and what ends their wait."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Begin to wait; close another connection where there are too many."""
        super().connection_made(transport)
        self.wait(self.header_seconds)
        if len(self.connections) > self.most:
            longest = next(iter(self.waiting))
            longest.end_wait()
            longest.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read what has come; the first byte of headers starts the time for the others."""
        super().data_received(data)
        if not self.is_waiting():
            self.end_wait()
        elif self.waiting.get(self) is None:
            self.wait(self.header_seconds)

    def on_response_complete(self) -> None:
        """Wait for the next request, whose first byte may take as long as a connection is kept alive."""
        super().on_response_complete()
        if self.is_waiting():
            self.wait(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.end_wait()
        super().connection_lost(exc)

    def is_waiting(self) -> bool:
        """Whether there is no request to be answered."""
        return self.cycle is None or self.cycle.response_complete

    def wait(self, seconds: float | None) -> None:
        """Wait for a request, for some seconds or without a time of our own."""
        self.end_wait()
        if not self.transport.is_closing():
            self.waiting[self] = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)

    def end_wait(self) -> None:
        """Wait no longer."""
        timer = self.waiting.pop(self, None)
        if timer is not None:
            timer.cancel()
