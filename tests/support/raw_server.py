"""A server that sends what it is given, byte for byte, and a client that does."""

import re
import socket
import threading
from contextlib import contextmanager


@contextmanager
def sending(behave):
    """Yield the address of a server that reads a request and calls behave(connection, path) for each."""
    listener = socket.create_server(("127.0.0.1", 0))
    stopped = threading.Event()

    def answer(connection):
        with connection:
            connection.settimeout(20)
            try:
                while not stopped.is_set():
                    head = b""
                    while b"\r\n\r\n" not in head:
                        part = connection.recv(65536)
                        if not part:
                            return
                        head += part
                    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
                    missing = int(length[1]) - len(head.partition(b"\r\n\r\n")[2]) if length else 0
                    while missing > 0:  # what is not read would reset the connection
                        missing -= len(connection.recv(65536))
                    if behave(connection, head.split(b" ")[1].decode()) != "again":
                        return
            except OSError:  # the client has left
                pass

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stopped.set()
        listener.close()


def reply(body, *headers, status=b"200 OK"):
    """A reply as bytes."""
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers, b"", body]
    return b"\r\n".join(lines)
