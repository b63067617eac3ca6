"""Attacks on a reward service and on its clients, over loopback alone and bounded in time and memory.

    python bench/attack_service.py --json bench/results/attack_service.json

The service runs in a process of its own; a third process asks for its health ten times a second.  Sections: hostile
bodies, rewards that fail, clients that leave, idle connections where few files may be open, hostile replies to clients,
and all attacks on the service by turns for --seconds.  Every section says what it expects; `as_designed` is the sum.
"""

import argparse
import json
import os
import random
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import msgpack
import numpy as np
from hostile_messages import MB, hostile_bodies, hostile_replies, picture, request

from afterflow.rewards.base import Reward
from afterflow.rewards.http import REPLY_MEMORY_MEGABYTES
from afterflow.rewards.remote.client import RemoteScorer
from afterflow.rewards.remote.limits import ServiceLimits
from afterflow.rewards.remote.protocol import MSGPACK
from afterflow.system.ended import terminations_raised

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from raw_server import sending

SECRET = "/home/someone/hunter2"
LIMITS = ServiceLimits(images=64, pixels=1024 * 1024, megabytes=16, seconds=5.0, connections=400)
DECLARED_MB = LIMITS.total_bytes / MB
LEAKS = (SECRET, "hunter2", "Traceback", 'File "', "0x7f")
UNHANDLED = ("Exception in ASGI", "never retrieved", "exception calling callback", "Unhandled")


# The service


class Own(Exception):
    """A class of a reward's own."""


def bright(images: np.ndarray, records: list[dict]) -> np.ndarray:
    """The mean of each image, or what its record asks for instead."""
    match next((record["does"] for record in records if "does" in record), None):
        case "hang":
            time.sleep(LIMITS.seconds + 2)
        case "exit":
            sys.exit(SECRET)
        case "own":
            raise Own(SECRET)
        case "command":
            raise subprocess.TimeoutExpired(["ffmpeg", "--token", SECRET], 3)
        case "arguments":
            argparse.ArgumentParser(prog=SECRET).parse_args(["--no-such-option"])
        case "few":
            return np.zeros(len(images) + 1)
        case "infinite":
            return np.full(len(images), np.inf)
    return images.mean((1, 2, 3))


def serve(files: int) -> None:
    """Serve until stopped, with so many open files."""
    from afterflow.rewards.remote.connections import allowed_connections, bind, run_service
    from afterflow.rewards.remote.server import build_service
    from afterflow.system.messages import show_messages

    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    show_messages()
    limits = ServiceLimits(**vars(LIMITS) | {"connections": allowed_connections(LIMITS.connections)})
    rewards = [Reward("bright", bright), Reward("other", bright)]
    listener = bind("127.0.0.1", 0)
    run_service(build_service(rewards, limits), listener, limits)


class Service:
    """A service in a process of its own, its health as a third process sees it, and its memory."""

    def __init__(self, log: Path, files: int) -> None:
        self.log = log
        with log.open("w") as output:
            command = [sys.executable, "-u", __file__, "--serve", str(files)]
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 60
        while "ready: listening on " not in log.read_text():
            assert self.process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        self.url = log.read_text().partition("ready: listening on ")[2].split()[0]
        self.port = int(self.url.rpartition(":")[2])

    def megabytes(self, name: str = "VmRSS") -> float:
        return megabytes(self.process.pid, name)

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def unhandled(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if any(word in line for word in UNHANDLED)]


def megabytes(pid: int, name: str) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition(f"{name}:")[2].split()[0]) / 1024


@contextmanager
def service(files: int = 1024) -> Iterator[Service]:
    with tempfile.TemporaryDirectory() as folder:
        served = Service(Path(folder) / "log", files)
        try:
            yield served
        finally:
            served.process.terminate()
            served.process.wait(30)


@contextmanager
def watched(served: Service) -> Iterator[dict]:
    """Measure the service meanwhile: the longest wait for its health, and the peak of its memory."""
    served.forget_peak()
    before, figures = served.megabytes(), {}
    command = [sys.executable, __file__, "--watch", served.url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        watcher.stdout.readline()
        try:
            yield figures
        finally:
            health = json.loads(watcher.communicate("stop\n", timeout=30)[0])
    grown = served.megabytes("VmHWM") - before
    figures |= {"health": health, "grown_mb": round(grown, 1), "declared_mb": DECLARED_MB}
    figures["unhandled"] = served.unhandled()
    figures["calm"] = health["longest"] < 1 and not health["failed"] and grown < 2 * DECLARED_MB
    figures["calm"] = figures["calm"] and not figures["unhandled"] and served.process.poll() is None


def watch(url: str) -> None:
    """Ask for the health of a service, each time over a new connection, until something comes on stdin."""
    waits, failed, stop = [], [], threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
    print("watching", flush=True)
    port = int(url.rpartition(":")[2])
    while not stop.wait(0.1):
        start = time.monotonic()
        try:
            if b'"status"' not in exchange(
                port, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            ):
                failed.append("another answer")
        except OSError as error:
            failed.append(type(error).__name__)
        waits.append(time.monotonic() - start)
    waits = waits or [0.0]
    longest, p99 = round(max(waits), 3), round(float(np.percentile(waits, 99)), 3)
    print(json.dumps({"requests": len(waits), "longest": longest, "p99": p99, "failed": failed}))


def exchange(port: int, data: bytes, seconds: float = 10.0) -> bytes:
    """Return what comes back for some bytes until the connection is closed."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), seconds) as connection:
        connection.settimeout(seconds)
        with suppress(BrokenPipeError, ConnectionResetError):  # the answer may be there all the same
            connection.sendall(data)
        while part := connection.recv(65536):
            answer += part
    return answer


# Hostile bodies


def post(url: str, body: bytes, kind: str, seconds: float = 30.0) -> tuple[int, str]:
    """Status and text of a reply; 0 where the connection ended without one."""
    try:
        reply = httpx.post(f"{url}/score", content=body, headers={"Content-Type": kind}, timeout=seconds)
        return reply.status_code, reply.content.decode("latin-1")
    except httpx.TransportError as error:
        return 0, type(error).__name__


def is_clean(status: int, text: str) -> bool:
    return status in (200, 403, 408, 413, 415, 422, 503, 504) and not any(leak in text for leak in LEAKS)


def honest(url: str) -> bool:
    status, text = post(url, msgpack.packb(request([picture()])), MSGPACK)
    return status == 200 and msgpack.unpackb(text.encode("latin-1"))["values"] == [60.0]


def attack_bodies() -> dict:
    """100 hostile bodies, four at a time."""
    with service() as served, watched(served) as figures, ThreadPoolExecutor(4) as pool:
        replies = pool.map(lambda body: (body[0], *post(served.url, body[2], body[1])), hostile_bodies())
        bad, statuses = [], Counter()
        for name, status, text in replies:
            statuses[str(status)] += 1
            if not is_clean(status, text):
                bad.append(f"{name}: {status} {text[:100]}")
        scores = honest(served.url)
    return figures | {"count": 100, "statuses": statuses, "bad": bad, "ok": figures["calm"] and not bad and scores}


# Rewards and clients


def attack_rewards() -> dict:
    """Rewards that hang, exit, raise and answer nonsense, each beside honest requests to both rewards."""
    bad = []
    with service() as served, watched(served) as figures, ThreadPoolExecutor(8) as pool:
        for does in ("exit", "own", "command", "arguments", "few", "infinite", "hang", "exit"):
            body = msgpack.packb(request([picture()], [{"prompt": "a", "does": does}]))
            wrong = pool.submit(post, served.url, body, MSGPACK)
            other = msgpack.packb(request([picture()], reward="other"))
            good = [pool.submit(post, served.url, other, MSGPACK) for _ in range(3)]
            if does != "hang":
                good += [pool.submit(post, served.url, msgpack.packb(request([picture()])), MSGPACK) for _ in range(3)]
            bad += [f"{does}: another got {each.result()}" for each in good if each.result()[0] != 200]
            status, text = wrong.result()
            if status not in (200, 500, 504) or any(leak in text for leak in LEAKS):
                bad.append(f"{does}: {status} {text[:100]}")
            if does == "hang" and httpx.get(f"{served.url}/health").json()["rewards"]["bright"] != "hanging":
                bad.append("health does not tell that a reward hangs")
        scores = honest(served.url)
    return figures | {"count": 8, "bad": bad, "ok": figures["calm"] and not bad and scores}


def raw_request(body: bytes) -> bytes:
    head = f"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MSGPACK}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


def attack_clients(served: Service, count: int = 200) -> list[str]:
    """200 clients of 4 images each, of which every second leaves: at once, within its body, or before its answer."""
    rng, bad = random.Random(1), []
    body = raw_request(msgpack.packb(request([picture(64, 60)] * 4)))

    def client(number: int) -> None:
        time.sleep(rng.random())
        with socket.create_connection(("127.0.0.1", served.port), 20) as connection:
            connection.settimeout(20)
            if number % 2:
                connection.sendall(body[: (0, len(body) // 2, len(body))[number // 2 % 3]])
                return time.sleep(0.02 * (number % 5))
            connection.sendall(body)
            answer = b""
            while part := connection.recv(65536):
                answer += part
        values = msgpack.unpackb(answer.partition(b"\r\n\r\n")[2])["values"] if b" 200 " in answer[:20] else answer
        if values != [60.0] * 4:
            bad.append(f"client {number}: {values!r}"[:200])

    def bounded(number: int) -> None:
        try:
            client(number)
        except Exception as error:  # a thread that dies would be missed by nobody
            if not (number % 2 and isinstance(error, OSError)):
                bad.append(f"client {number}: {type(error).__name__}")

    threads = [threading.Thread(target=bounded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return bad


def attack_leaving() -> dict:
    """Section: clients that leave."""
    with service() as served, watched(served) as figures:
        bad = attack_clients(served)
        deadline = time.monotonic() + 20
        while (
            waiting := httpx.get(f"{served.url}/health").json()["waiting"]["bright"]
        ) and time.monotonic() < deadline:
            time.sleep(0.1)
    ok = figures["calm"] and not bad and not waiting
    return figures | {"count": 200, "left": 100, "bad": bad, "waiting_afterwards": waiting, "ok": ok}


def attack_idle(seconds: float = 15.0) -> dict:
    """150 connections that say nothing, or a byte now and then, to a service that may open 128 files."""
    with service(files=128) as served, watched(served) as figures:
        idle, closed, scored, end = [], 0, [], time.monotonic() + seconds
        while time.monotonic() < end:
            while len(idle) < 150:
                idle.append(socket.create_connection(("127.0.0.1", served.port), 10))
            scored.append(honest(served.url))
            for connection in list(idle):
                try:
                    connection.setblocking(False)
                    connection.send(b"G")
                    gone = connection.recv(1, socket.MSG_PEEK) == b""
                except BlockingIOError:
                    gone = False
                except OSError:
                    gone = True
                if gone:
                    connection.close()
                    idle.remove(connection)
                    closed += 1
            time.sleep(0.5)
        for connection in idle:
            connection.close()
    return figures | {
        "count": 150,
        "files": 128,
        "closed": closed,
        "ok": figures["calm"] and all(scored) and closed > 0,
    }


# Hostile replies


def attack_replies() -> dict:
    """60 hostile replies to a client of reward services and to a client of chat servers, in a process of their own."""
    replies, failures = hostile_replies(), []
    number = [0]

    def behave(connection: socket.socket, path: str) -> None:
        if path == "/health":
            return connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        replies[number[0]][1](connection)

    rows = []
    with (
        sending(behave) as url,
        subprocess.Popen(
            [sys.executable, __file__, "--client", url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as client,
    ):
        assert client.stdin is not None and client.stdout is not None
        for number[0] in range(len(replies)):
            client.stdin.write("next\n")
            client.stdin.flush()
            rows.append(json.loads(client.stdout.readline()) | {"name": replies[number[0]][0]})
        client.stdin.close()
    for row in rows:
        if row["error"] or row["seconds"] > 5 or row["grown_mb"] > 2 * REPLY_MEMORY_MEGABYTES or not row["printable"]:
            failures.append(row)
    figures = {
        "grown_mb": max(row["grown_mb"] for row in rows),
        "declared_mb": REPLY_MEMORY_MEGABYTES,
        "longest": max(row["seconds"] for row in rows),
    }
    return figures | {"count": len(rows), "bad": failures, "ok": not failures and len(rows) == 60}


def client(url: str) -> None:
    """Ask a hostile server for a score, and for an answer, each time a line comes on stdin; print what it cost."""
    from afterflow.rewards.vlm.answers import Unanswered
    from afterflow.rewards.vlm.client import Chat

    scorer = RemoteScorer(Reward("bright", None, version="1"), [url], 1, deadline=1.0)
    image = np.zeros((1, 8, 8, 3), np.uint8)
    status = Path("/proc/self/clear_refs")
    for _ in sys.stdin:
        status.write_text("5")
        before, start, error, words = megabytes(os.getpid(), "VmRSS"), time.monotonic(), "", ""
        scorer.rests_until, scorer.failures = dict.fromkeys(scorer.urls, 0.0), dict.fromkeys(scorer.urls, 0)
        try:
            words = "".join(scorer(image, [{"prompt": "a"}]).why.values())
            Chat(url, "judge", timeout=1.0, attempts=1).ask(["?"], 1)
        except Unanswered as unanswered:
            words += str(unanswered)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"[:200]
        grown = megabytes(os.getpid(), "VmHWM") - before
        row = {"seconds": round(time.monotonic() - start, 2), "grown_mb": round(grown, 1), "error": error}
        print(json.dumps(row | {"printable": words.isprintable() and len(words) < 10_000}), flush=True)


# All by turns


def attack_for(seconds: float) -> dict:
    """Bodies, clients that leave, failing rewards and idle connections by turns, and whether the memory comes back."""
    rng, bodies, bad, count = random.Random(2), hostile_bodies(), [], 0
    with service() as served:
        fresh = served.megabytes()
        with ThreadPoolExecutor(4) as pool:  # what it needs once is there before its memory is compared
            for _ in range(3):
                list(pool.map(lambda body: post(served.url, body[2], body[1]), bodies))
                attack_clients(served)
        time.sleep(5)
        start, end, idle = served.megabytes(), time.monotonic() + seconds, []
        with watched(served) as figures, ThreadPoolExecutor(4) as pool:
            while time.monotonic() < end:
                chosen = rng.sample(bodies, 8)
                for (name, _, _), (status, text) in zip(
                    chosen, pool.map(lambda b: post(served.url, b[2], b[1]), chosen)
                ):
                    count += 1
                    bad += [] if is_clean(status, text) else [f"{name}: {status} {text[:100]}"]
                does = rng.choice(("exit", "own", "command", "few", "infinite"))
                post(served.url, msgpack.packb(request([picture()], [{"prompt": "a", "does": does}])), MSGPACK)
                idle = [*idle[-100:], *(socket.create_connection(("127.0.0.1", served.port), 10) for _ in range(5))]
                bad += attack_clients(served, 20)
                count += 26
        for connection in idle:
            connection.close()
        time.sleep(10)
        rest, scores = served.megabytes(), honest(served.url)
    back = rest / start - 1
    ok = figures["calm"] and not bad and scores and back <= 0.05
    memory = {
        "fresh_mb": round(fresh, 1),
        "start_mb": round(start, 1),
        "end_mb": round(rest, 1),
        "grown": round(back, 4),
    }
    return figures | {"seconds": seconds, "count": count, "bad": bad[:20], "memory": memory, "ok": ok}


def sections(seconds: float) -> dict[str, Callable[[], dict]]:
    """Name of each attack on the service and its clients, and the function that makes it."""
    return {
        "bodies": attack_bodies,
        "rewards": attack_rewards,
        "leaving": attack_leaving,
        "idle": attack_idle,
        "replies": attack_replies,
        "abuse": lambda: attack_for(seconds),
    }


def main() -> None:
    roles = {"--serve": lambda files: serve(int(files)), "--watch": watch, "--client": client}
    if len(sys.argv) == 3 and sys.argv[1] in roles:
        return roles[sys.argv[1]](sys.argv[2])
    from harness import make_parser, provenance, write_json  # it imports torch, which those processes do without

    parser = make_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="length of the last section")
    parser.add_argument("--only", nargs="*", help="names of sections")
    options = parser.parse_args()
    results: dict[str, Any] = {"as_designed": False}
    chosen = [name for name in sections(options.seconds) if not options.only or name in options.only]
    try:
        with terminations_raised():
            for name in chosen:
                results[name] = outcome(sections(options.seconds)[name])
                print(name, "as designed" if results[name]["ok"] else json.dumps(results[name]), flush=True)
                results["as_designed"] = name == chosen[-1] and all(results[each]["ok"] for each in chosen)
    except KeyboardInterrupt as signal:
        print(f"ended by {signal or 'Ctrl-C'} after {len(results) - 1} of {len(chosen)} sections", flush=True)
    write_json(results | provenance("python bench/attack_service.py"), options.json, indent=1, show=False)
    sys.exit(not results["as_designed"])


def outcome(attack: Callable[[], dict]) -> dict:
    """Make an attack; one that cannot be made is not as designed, and says why."""
    try:
        return attack()
    except Exception as error:
        traceback.print_exc()
        return {"ok": False, "error": f"{type(error).__name__}: {error}"[:500]}


if __name__ == "__main__":
    main()
