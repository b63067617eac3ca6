"""A reward service under many clients: lost images, latency, throughput, and what it adds to a reward's own time.

    python bench/serve.py --json bench/results/serve.json

64 clients ask for 10 000 images of 512 px of a reward that waits 10 ms for each; the same reward is then called in the
process, in batches of the same size.
"""

import argparse
import json
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import uvicorn

from afterflow.experiment.provenance import git_commit, hardware
from afterflow.rewards.base import Reward
from afterflow.rewards.remote.protocol import MSGPACK, pack, parse_reply, score_request, unpack
from afterflow.rewards.remote.server import ServiceLimits, build_service

SECONDS = 0.010


def slow(images: np.ndarray, records: list[dict]) -> np.ndarray:
    """A corner of each image, after the time that a network would take."""
    time.sleep(SECONDS * len(images))
    return images[:, 0, 0, 0].astype(np.float64)


def serve() -> None:
    """Say the port, and serve until stopped."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    print(port, flush=True)
    uvicorn.run(
        build_service([Reward("slow", slow)], ServiceLimits(batch=64, wait=0.002)), port=port, log_level="critical"
    )


def measure(clients: int, total: int, size: int, each: int) -> dict:
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        return asked(f"http://127.0.0.1:{int(server.stdout.readline())}", clients, total, size, each)
    finally:
        server.terminate()


def asked(url: str, clients: int, total: int, size: int, each: int) -> dict:
    while True:
        try:
            httpx.get(f"{url}/health")
            break
        except httpx.TransportError:
            time.sleep(0.05)
    rng, records = np.random.default_rng(0), [{"prompt": "a"}] * each
    images = rng.integers(0, 256, (each, size, size, 3), dtype=np.uint8)
    latencies, wrong = [], []

    def ask(client: httpx.Client, number: int) -> None:
        mine = images.copy()
        mine[:, 0, 0, 0] = (number + np.arange(each)) % 256
        start = time.perf_counter()
        body = pack(score_request("slow", list(mine), records))
        reply = client.post(f"{url}/score", content=body, headers={"Content-Type": MSGPACK}, timeout=600)
        values = parse_reply(unpack(reply.content, MSGPACK), each).values
        latencies.append(time.perf_counter() - start)
        if values.tolist() != mine[:, 0, 0, 0].tolist():
            wrong.append(number)

    requests = -(-total // each)
    with (
        httpx.Client(limits=httpx.Limits(max_connections=clients)) as client,
        ThreadPoolExecutor(clients) as pool,
    ):
        start = time.perf_counter()
        for done in [pool.submit(ask, client, number) for number in range(requests)]:
            done.result()
        served = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(0, requests * each, 64):
        slow(images[:1].repeat(64, 0), [])
    alone = (time.perf_counter() - start) * requests * each / (-(-requests * each // 64) * 64)
    return {
        "images": requests * each,
        "lost_or_wrong": len(wrong) * each,
        "images_per_second": requests * each / served,
        "p50": float(np.percentile(latencies, 50)),
        "p99": float(np.percentile(latencies, 99)),
        "seconds": served,
        "seconds_in_the_process": alone,
        "overhead": served / alone - 1,
        "clients": clients,
        "size": size,
        "images_of_a_request": each,
        "command": " ".join(["python", *sys.argv]),
        "git_commit": git_commit(),
        "hardware": hardware(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--each", type=int, default=8, help="images of a request")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", default="-", help="file, or - for standard output")
    options = parser.parse_args()
    if options.serve:
        return serve()
    line = json.dumps(measure(options.clients, options.images, options.size, options.each))
    if options.json != "-":
        Path(options.json).write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
