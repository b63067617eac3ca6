"""A reward service in a thread of the test."""

import threading
import time
from contextlib import contextmanager

import pytest

uvicorn = pytest.importorskip("uvicorn")


@contextmanager
def served(app, http="h11", **options):
    """Yield the address of a service; `http` is the class of its connections."""
    server = uvicorn.Server(uvicorn.Config(app, http=http, port=0, log_level="critical", **options))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
