"""Requests that nobody should send to a reward service, and what it does about them.

    pip install schemathesis
    python bench/fuzz.py --json bench/results/fuzz.json

A service in a process of its own gets half of its requests from schemathesis, from a schema and around it, and half
by hand: cut and mutated bodies, wrong tokens, pictures that claim to be huge, deep nesting, wrong types.  Every answer
must be one of the service's own (no 500, no traceback, no hang), and afterwards the service must still be alive, no
larger than it was by much, and score a picture as it did before.
"""

import argparse
import base64
import json
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
from hypothesis import HealthCheck, given, settings

from afterflow.train.log import git_commit, hardware

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
FINE = (200, 401, 404, 405, 413, 422, 503)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--json", default="-", help="file, or - for standard output")
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "afterflow", "serve-rewards", REWARD, "--port", str(port), "--megabytes", "8"]
    env = os.environ | {"AFTERFLOW_REWARDS_KEY": KEY}
    with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as process:
        try:
            line = json.dumps(fuzz(f"http://127.0.0.1:{port}", process, options.requests))
        finally:
            process.terminate()
    if options.json != "-":
        Path(options.json).write_text(line + "\n")
    print(line)


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
        "command": " ".join(["python", *sys.argv]),
        "git_commit": git_commit(),
        "hardware": hardware(),
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


def by_hand(client: httpx.Client, rng: random.Random) -> httpx.Response:
    """One request, mostly nearly right."""
    picture = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (8, 8, 3), np.uint8)
    asked = {"reward": REWARD, "records": [{"prompt": "x"}], "images": [{"raw": picture.tobytes(), "shape": [8, 8, 3]}]}
    kind, headers = rng.choice(KINDS), {"content-type": "application/msgpack"}
    if kind == "token":
        headers["Authorization"] = rng.choice(
            ["", "Bearer", "Bearer fuz", "Bearer f\x75zz", "Basic fuzz", "Bearer " + "x" * 9000]
        )
    elif kind == "cut":
        body = msgpack.packb(asked)
        return client.post("/score", content=body[: rng.randrange(len(body))], headers=headers)
    elif kind == "flipped":
        body = bytearray(msgpack.packb(asked))
        for _ in range(rng.randrange(1, 9)):
            body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        return client.post("/score", content=bytes(body), headers=headers)
    elif kind == "noise":
        headers["content-type"] = rng.choice(
            ["application/msgpack", "application/json", "text/plain", "application/x-python-pickle"]
        )
        return client.post("/score", content=rng.randbytes(rng.randrange(3000)), headers=headers)
    elif kind == "deep":
        depth = rng.choice([50, 2000, 100_000])
        return client.post("/score", content="[" * depth + "]" * depth, headers={"content-type": "application/json"})
    elif kind == "bomb":
        asked["images"] = [{"png": claims(rng.choice([60_000, 2**31 - 1]))}]
    elif kind == "zeros":
        side = rng.choice([2000, 6000])
        asked["images"] = [{"png": solid(side)}] * rng.choice([1, 40])
        asked["records"] = [{"prompt": "x"}] * len(asked["images"])
    elif kind == "shape":
        asked["images"][0]["shape"] = rng.choice(
            [[], [8], [-8, -8, 3], [2**40, 8, 3], [True, 64, 3], ["8", 8, 3], [8, 8, 4], [1, 8, 8, 3], None]
        )
    elif kind == "type":
        field = rng.choice(["reward", "records", "images"])
        asked[field] = rng.choice([None, 1, "x", {}, [], [None], [[]], {"prompt": 1}, float("nan"), b"\xff", [{}]])
    elif kind == "many":
        asked["images"], asked["records"] = asked["images"] * 300, asked["records"] * rng.choice([300, 299])
    elif kind == "fat":
        return client.post("/score", content=b"\x00" * (9 * 2**20), headers=headers)
    elif kind == "elsewhere":
        return client.request(
            rng.choice(["GET", "PUT", "DELETE", "TRACE"]),
            rng.choice(["/score", "/../etc/passwd", "/docs", "/openapi.json", "/%00"]),
        )
    if kind == "text":
        told = asked | {
            "images": [
                {"raw": rng.choice([base64.b64encode(picture.tobytes()).decode(), "§", "=" * 99]), "shape": [8, 8, 3]}
            ]
        }
        return client.post("/score", json=told)
    return client.post("/score", content=msgpack.packb(asked), headers=headers)


KINDS = (
    "token",
    "cut",
    "flipped",
    "noise",
    "deep",
    "bomb",
    "zeros",
    "shape",
    "type",
    "many",
    "elsewhere",
    "text",
    "fat",
    "fine",
)


def claims(side: int) -> bytes:
    """A PNG of a few bytes that says it is side x side."""
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def solid(side: int) -> bytes:
    """A real PNG of one colour: small, and large once decoded."""
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * (side * (side + 1))))
        + chunk(b"IEND", b"")
    )


def honest(client: httpx.Client) -> object:
    """What it says of a picture that it should score."""
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    asked = {
        "reward": REWARD,
        "records": [{"prompt": "x"}],
        "images": [{"raw": picture.tobytes(), "shape": [16, 16, 3]}],
    }
    reply = client.post("/score", content=msgpack.packb(asked), headers={"content-type": "application/msgpack"})
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
