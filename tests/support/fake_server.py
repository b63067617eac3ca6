"""An OpenAI-compatible server of one model that behaves as it is told."""

import base64
import io
import json
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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


@contextmanager
def serving(answer, model="judge", delay=0.0):
    """answer(body, n) → the reply to the n-th question, a text or (status, text); yields the address and what came."""
    seen, lock = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def reply(self, status, text):
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.reply(200, json.dumps({"data": [{"id": model}]}) if self.path == "/v1/models" else "{}")

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
