"""An OpenAI-compatible server of one model that behaves as it is told, or as a recorded kind of server does."""

import base64
import io
import json
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image


def words(body):
    """The texts of a question, and its images as uint8 (H, W, 3)."""
    content = body["messages"][0]["content"]
    texts = [part["text"] for part in content if part["type"] == "text"]
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    decode = lambda url: np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))
    return texts, [decode(url) for url in urls]


def said(text, first=()):
    """A well-formed reply; first: token → log-probability."""
    top = [{"token": token, "logprob": p} for token, p in dict(first).items()]
    choice = {"message": {"content": text}, "logprobs": {"content": [{"top_logprobs": top}]} if top else None}
    return json.dumps({"choices": [choice]})


def recorded(kind):
    """The shapes of requests and replies of a kind of server."""
    return json.loads((Path(__file__).parents[1] / "data" / "chat_servers" / f"{kind}.json").read_text())


def behaving(shapes, reply):
    """An answer of a recorded server: what it refuses is refused in its words, and the rest gets one of its replies."""

    def answer(body, n):
        for name in body:
            if name in shapes["refused"]:
                status, text = shapes["refused"][name]
                return status, json.dumps(text)
            if name not in shapes["fields"]:
                assert "unknown" in shapes, f"it would ignore {name}"
                status, text = shapes["unknown"]
                return status, json.dumps(text).replace("{name}", name)
        return json.dumps(shapes["replies"][reply])

    return answer


@contextmanager
def serving(answer, model="judge", delay=0.0, addresses=None):
    """answer(body, n) → the reply to the n-th question: a text, (status, text) or (status, text, headers).

    Yields the address and what came.  `addresses` are what it says of itself, by path.
    """
    seen, lock = [], threading.Lock()
    addresses = {"/v1/models": {"data": [{"id": model}]}} if addresses is None else addresses

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def reply(self, status, text, headers=()):
            body = text.encode()
            self.send_response(status)
            for name, value in dict(headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.reply(200 if self.path in addresses else 404, json.dumps(addresses.get(self.path, {})))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                seen.append((body, self.headers.get("Authorization")))
                n = len(seen) - 1
            time.sleep(delay)
            found = answer(body, n)
            if found is None:  # hang up in the middle
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices"')
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.reply(*(found if isinstance(found, tuple) else (200, found)))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
