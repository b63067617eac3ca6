"""A reward service under many clients: lost images, latency, throughput, and what it adds to a reward's own time.

    python bench/serve.py --json bench/results/serve.json

64 clients ask for 10 000 images of 512 px of a reward that waits 10 ms for each; the same reward is then called in the
process, in batches of the same size.
"""

import argparse
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import uvicorn
from harness import make_parser, provenance, write_json

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


def measure(clients: int, total: int, size: int, images_per_request: int) -> dict:
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        return send_requests(
            f"http://127.0.0.1:{int(server.stdout.readline())}", clients, total, size, images_per_request
        )
    finally:
        server.terminate()


def wait_for_service(url: str) -> None:
    while True:
        try:
            httpx.get(f"{url}/health")
            return
        except httpx.TransportError:
            time.sleep(0.05)


def send_requests(url: str, clients: int, total: int, size: int, images_per_request: int) -> dict:
    wait_for_service(url)
    count, requests = images_per_request, -(-total // images_per_request)
    rng, records = np.random.default_rng(0), [{"prompt": "a"}] * count
    images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    latencies, failed = [], []

    def ask(client: httpx.Client, number: int) -> None:
        batch = images.copy()
        batch[:, 0, 0, 0] = (number + np.arange(count)) % 256
        start = time.perf_counter()
        body = pack(score_request("slow", list(batch), records))
        reply = client.post(f"{url}/score", content=body, headers={"Content-Type": MSGPACK}, timeout=600)
        values = parse_reply(unpack(reply.content, MSGPACK), count).values
        latencies.append(time.perf_counter() - start)
        if values.tolist() != batch[:, 0, 0, 0].tolist():
            failed.append(number)

    with (
        httpx.Client(limits=httpx.Limits(max_connections=clients)) as client,
        ThreadPoolExecutor(clients) as pool,
    ):
        start = time.perf_counter()
        for reply in [pool.submit(ask, client, number) for number in range(requests)]:
            reply.result()
        served = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(0, requests * count, 64):
        slow(images[:1].repeat(64, 0), [])
    alone = (time.perf_counter() - start) * requests * count / (-(-requests * count // 64) * 64)
    return {
        "images": requests * count,
        "lost_or_wrong": len(failed) * count,
        "images_per_second": requests * count / served,
        "p50": float(np.percentile(latencies, 50)),
        "p99": float(np.percentile(latencies, 99)),
        "seconds": served,
        "seconds_in_the_process": alone,
        "overhead": served / alone - 1,
        "clients": clients,
        "size": size,
        "images_of_a_request": count,
        **provenance(),
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--each", type=int, default=8, help="images of a request")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve()
    write_json(measure(options.clients, options.images, options.size, options.each), options.json)


if __name__ == "__main__":
    main()
