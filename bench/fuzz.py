"""Requests that nobody should send to a reward service, and what it does about them.

    pip install schemathesis
    python bench/fuzz.py --json bench/results/fuzz.json

A service in a process of its own gets half of its requests from schemathesis, from a schema and around it, and half
by hand: cut and mutated bodies, wrong tokens, pictures that claim to be huge, deep nesting, wrong types.  Every answer
must be one of the service's own (no 500, no traceback, no hang), and afterwards the service must still be alive, no
larger than it was by much, and score a picture as it did before.
"""

import base64
import os
import random
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import msgpack
import numpy as np
import schemathesis
from harness import make_parser, provenance, write_json
from hypothesis import HealthCheck, given, settings

KEY = "fuzz"
REWARD = "jpeg_compressibility"
IMAGE = {
    "type": "object",
    "properties": {
        "raw": {"type": "string", "format": "byte"},
        "png": {"type": "string", "format": "byte"},
        "shape": {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 4},
    },
}
BODY = {
    "type": "object",
    "required": ["reward", "records", "images"],
    "properties": {
        "reward": {"enum": [REWARD, "nobody"]},
        "records": {"type": "array", "items": {"type": "object", "properties": {"prompt": {"type": "string"}}}},
        "images": {"type": "array", "items": IMAGE},
    },
}
SCHEMA = {
    "openapi": "3.0.0",
    "info": {"title": "a reward service", "version": "1"},
    "paths": {
        "/score": {
            "post": {
                "requestBody": {"required": True, "content": {"application/json": {"schema": BODY}}},
                "responses": {"200": {"description": "scores"}},
            }
        }
    },
}
FINE = (200, 401, 404, 405, 413, 415, 422, 503)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--requests", type=int, default=5000)
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "afterflow", "serve-rewards", REWARD, "--port", str(port), "--megabytes", "8"]
    env = os.environ | {"AFTERFLOW_REWARDS_KEY": KEY}
    with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as process:
        try:
            result = fuzz(f"http://127.0.0.1:{port}", process, options.requests)
        finally:
            process.terminate()
    write_json(result, options.json)


def fuzz(url: str, process: subprocess.Popen, requests: int) -> dict:
    client = httpx.Client(base_url=url, timeout=30, headers={"Authorization": f"Bearer {KEY}"})
    wait(client, process)
    before, memory = honest(client), resident(process)
    answers: dict[str, Counter] = {"schemathesis": Counter(), "by hand": Counter()}
    bad: list[str] = []

    def judged(kind: str, status: int, text: str) -> None:
        answers[kind][status] += 1
        if status not in FINE or "Traceback" in text or 'File "' in text or process.poll() is not None:
            bad.append(f"{kind}: {status} {text[:200]}")

    drawn_from_schema(url, requests // 2, lambda status, text: judged("schemathesis", status, text))
    rng = random.Random(0)
    for _ in range(requests - answers["schemathesis"].total()):
        reply = by_hand(client, rng)
        judged("by hand", reply.status_code, reply.text)
    return {
        "requests": requests,
        "answers": {kind: dict(sorted(count.items())) for kind, count in answers.items()},
        "bad": bad,
        "alive": process.poll() is None and client.get("/health").status_code == 200,
        "same_score": honest(client) == before,
        "megabytes": [memory, resident(process)],
        **provenance(),
    }


def drawn_from_schema(url: str, count: int, judged: Callable[[int, str], None]) -> None:
    operation = schemathesis.openapi.from_dict(SCHEMA)["/score"]["POST"]
    modes = [operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode]
    for strategy in modes:

        @settings(
            max_examples=count // len(modes), database=None, deadline=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=strategy)
        def send(case) -> None:
            reply = case.call(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=30)
            judged(reply.status_code, reply.content.decode(errors="replace"))

        send()


def score_request(picture: np.ndarray) -> dict:
    image = {"raw": picture.tobytes(), "shape": list(picture.shape)}
    return {"reward": REWARD, "records": [{"prompt": "x"}], "images": [image]}


def by_hand(client: httpx.Client, rng: random.Random) -> httpx.Response:
    """One request, mostly nearly right."""
    picture = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (8, 8, 3), np.uint8)
    request = score_request(picture)
    kind, kinds = rng.choice((*BAD_FIELDS, *BODIES, "token", "text", "elsewhere", "fine")), {"content-type": MSGPACK}
    if kind == "elsewhere":
        paths = ["/score", "/../etc/passwd", "/docs", "/openapi.json", "/%00"]
        return client.request(rng.choice(["GET", "PUT", "DELETE", "TRACE"]), rng.choice(paths))
    if kind == "text":
        raw = rng.choice([base64.b64encode(picture.tobytes()).decode(), "§", "=" * 99])
        return client.post("/score", json=request | {"images": [{"raw": raw, "shape": [8, 8, 3]}]})
    if kind == "token":
        kinds["Authorization"] = rng.choice(TOKENS)
    if kind in BAD_FIELDS:
        request |= BAD_FIELDS[kind](request, rng)
    body = msgpack.packb(request)
    if kind in BODIES:
        body, kinds["content-type"] = BODIES[kind](body, rng)
    return client.post("/score", content=body, headers=kinds)


MSGPACK, JSON = "application/msgpack", "application/json"
TOKENS = ("", "Bearer", "Bearer fuz", "Bearer fuzzz", "Basic fuzz", "Bearer " + "x" * 9000)
SHAPES = ([], [8], [-8, -8, 3], [2**40, 8, 3], [True, 64, 3], ["8", 8, 3], [8, 8, 4], [1, 8, 8, 3], None)
OTHERS = (None, 1, "x", {}, [], [None], [[]], {"prompt": 1}, float("nan"), b"\xff", [{}])


def zeros(request: dict, rng: random.Random) -> dict:
    side, count = rng.choice([2000, 6000]), rng.choice([1, 40])
    return {"images": [{"png": solid(side)}] * count, "records": request["records"] * count}


# Fields that replace those of a good request.
BAD_FIELDS: dict[str, Callable[[dict, random.Random], dict]] = {
    "bomb": lambda request, rng: {"images": [{"png": claims(rng.choice([60_000, 2**31 - 1]))}]},
    "zeros": zeros,
    "shape": lambda request, rng: {"images": [request["images"][0] | {"shape": rng.choice(SHAPES)}]},
    "type": lambda request, rng: {rng.choice(["reward", "records", "images"]): rng.choice(OTHERS)},
    "many": lambda request, rng: {
        "images": request["images"] * 300,
        "records": request["records"] * rng.choice([300, 299]),
    },
}


def flipped(body: bytes, rng: random.Random) -> tuple[bytes, str]:
    bits = bytearray(body)
    for _ in range(rng.randrange(1, 9)):
        bits[rng.randrange(len(bits))] ^= 1 << rng.randrange(8)
    return bytes(bits), MSGPACK


def noise(body: bytes, rng: random.Random) -> tuple[bytes, str]:
    kind = rng.choice([MSGPACK, JSON, "text/plain", "application/x-python-pickle"])
    return rng.randbytes(rng.randrange(3000)), kind


def deep(body: bytes, rng: random.Random) -> tuple[bytes, str]:
    depth = rng.choice([50, 2000, 100_000])
    return b"[" * depth + b"]" * depth, JSON


# Bodies that replace that of a good request, and their content types.
BODIES: dict[str, Callable[[bytes, random.Random], tuple[bytes, str]]] = {
    "cut": lambda body, rng: (body[: rng.randrange(len(body))], MSGPACK),
    "flipped": flipped,
    "noise": noise,
    "deep": deep,
    "fat": lambda body, rng: (b"\x00" * (9 * 2**20), MSGPACK),
}


def claims(side: int) -> bytes:
    """A PNG of a few bytes that says it is side x side."""
    return png(side, 2, b"\0" * 99)


def solid(side: int) -> bytes:
    """A real PNG of one colour: small, and large once decoded."""
    return png(side, 0, b"\0" * (side * (side + 1)))


def png(side: int, colour: int, rows: bytes) -> bytes:
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = struct.pack(">IIBBBBB", side, side, 8, colour, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def honest(client: httpx.Client) -> object:
    """What it says of a picture that it should score."""
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    reply = client.post("/score", content=msgpack.packb(score_request(picture)), headers={"content-type": MSGPACK})
    reply.raise_for_status()
    return msgpack.unpackb(reply.content)["values"]


def wait(client: httpx.Client, process: subprocess.Popen) -> None:
    for _ in range(600):
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None:
            break
        time.sleep(0.2)
    raise SystemExit("the service did not start")


def resident(process: subprocess.Popen) -> int:
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


if __name__ == "__main__":
    main()
