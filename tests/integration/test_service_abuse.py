"""A reward service among hostile requests, connections and rewards; docs/security.md names these tests."""

import argparse
import asyncio
import base64
import json
import logging
import math
import re
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from afterflow.cli.main import main
from afterflow.rewards.base import Reward, Scored
from afterflow.rewards.remote.activity import MAX_CHARACTERS, MAX_RECORDS, Activity, BoundedLog
from afterflow.rewards.remote.batches import BatchQueue
from afterflow.rewards.remote.connections import connection_class
from afterflow.rewards.remote.limits import Busy, MemoryBudget, ServiceLimits, Share
from afterflow.rewards.remote.protocol import JSON, MSGPACK, REWARDS_KEY, encode_image, pack
from afterflow.rewards.remote.server import RequestScorer, build_service
from afterflow.system.errors import ConfigError, InputError
from served import served

httpx = pytest.importorskip("httpx")
msgpack = pytest.importorskip("msgpack")
get = partial(httpx.get, verify=False)  # reading the certificates of the web takes longer than a request
SECRET = "/home/someone/secret --token hunter2"
IMAGE = np.full((8, 8, 3), 60, np.uint8)


def brightness(images, records):
    return images.mean((1, 2, 3))


def post(url, content, kind=MSGPACK, **headers):
    body = content if isinstance(content, bytes) else pack(content)
    return httpx.post(f"{url}/score", content=body, headers={"Content-Type": kind, **headers}, timeout=20, verify=False)


def request(reward="bright", count=1, **record):
    return {
        "reward": reward,
        "records": [{"prompt": "a", **record}] * count,
        "images": [encode_image(IMAGE)] * count,
    }


def values(reply):
    assert reply.status_code == 200, reply.text
    return msgpack.unpackb(reply.content)["values"]


@pytest.fixture(scope="module")
def url():
    with served(build_service([Reward("bright", brightness)], ServiceLimits(megabytes=1, pixels=64 * 64))) as url:
        yield url


# Who may ask


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost.evil.example:80"}, 403),
        ({"Host": "[::2]:80"}, 403),
        ({"Host": "10.0.0.1"}, 403),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": ""}, 415),
        ({"Content-Type": "text/plain; application/json"}, 415),
        ({"Content-Type": "Application/MsgPack; x=y"}, 200),
    ],
)
def test_a_web_page_cannot_ask_a_service_without_a_key(url, headers, status):
    assert post(url, request(), **headers).status_code == status
    if "Content-Type" not in headers:
        assert get(f"{url}/health", headers=headers).status_code == status


def test_a_key_must_fit_into_a_header(monkeypatch, capsys):
    for key in ("schlüssel", "a b", "a\n", ""):
        with pytest.raises(ConfigError, match=f"{REWARDS_KEY}: a key is of ASCII"):
            build_service([Reward("bright", brightness)], key=key)
    monkeypatch.setenv(REWARDS_KEY, "schlüssel")
    assert main(["serve-rewards", "jpeg_compressibility", "--port", "0"]) == 2
    assert f"{REWARDS_KEY}: a key is of ASCII" in capsys.readouterr().err
    with served(build_service([Reward("bright", brightness)], key="secret")) as url:
        for wrong in ("Bearer schlüssel", "Bearer", "bearer secret", "Basic secret", "Bearer secre"):
            assert post(url, request(), Authorization=wrong.encode()).status_code == 401
        assert post(url, request(), Authorization="Bearer secret", Host="elsewhere").status_code == 200


def test_an_address_that_is_taken_is_said_in_one_sentence(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve-rewards", "jpeg_compressibility", "--port", str(taken.getsockname()[1])]) == 2
    assert "Address already in use; name another" in capsys.readouterr().err


# What a request may cost


def test_images_are_counted_by_their_headers_before_the_first_is_decoded(url):
    raw = {"raw": b"", "shape": [64, 64, 3]}  # 200 of them would be 2.4 MB
    content = {"reward": "bright", "records": [{"prompt": "a"}] * 200, "images": [raw] * 200}
    assert "at most 1 MB of decoded images" in json_of(post(url, content))["error"]


def json_of(reply):
    assert reply.status_code >= 400
    return json.loads(reply.content)


@pytest.mark.parametrize(
    "record, sentence",
    [
        ({"prompt": "x" * 70_000}, r"records\[0\] has more than 65536 characters"),
        ({"prompt": "x", "also": [{"y" * 33_000: "z" * 33_000}]}, r"records\[0\] has more than 65536 characters"),
        ({"prompt": "x", "also": [b"x"]}, r"records\[0\] holds bytes"),
        ({"prompt": "x", "also": [[]] * 9000}, "more than 5242 values"),
    ],
)
def test_records_are_short_and_as_json_has_them(url, record, sentence):
    assert re.search(sentence, json_of(post(url, request() | {"records": [record]}))["error"])


def test_requests_share_one_budget_of_memory():
    budget = MemoryBudget(10)
    with Share(budget) as one:
        one.take(6)
        with Share(budget) as other:
            with pytest.raises(Busy, match="come again"):
                other.take(5)
            other.take(4)
            with one:  # a thread still reads its images
                pass
            assert budget.used == 10
        assert budget.used == 6
    assert budget.used == 0


def test_a_request_that_never_fits_is_told_so_and_one_that_does_not_fit_now_comes_again():
    scorer = RequestScorer({}, ServiceLimits(megabytes=1))
    scorer.budget.take(3 * 2**20)
    with pytest.raises(InputError, match="more memory than the 4 MB of all requests"):
        scorer.take(Share(scorer.budget), 5 * 2**20)
    with pytest.raises(Busy):
        scorer.take(Share(scorer.budget), 2 * 2**20)


@pytest.mark.parametrize("kind", [JSON, MSGPACK])
def test_the_memory_of_a_request_is_given_back_however_it_ends(kind, monkeypatch):
    budgets, original = [], MemoryBudget.__init__
    monkeypatch.setattr(MemoryBudget, "__init__", lambda self, total: (original(self, total), budgets.append(self))[0])
    encode = pack if kind == MSGPACK else lambda content: json.dumps(content).encode()
    with served(build_service([Reward("bright", brightness)], ServiceLimits(megabytes=1))) as url:
        bodies = [encode([]), b"\xc1", b"x" * 2**21, encode({"reward": "bright"})]
        assert [post(url, body, kind).status_code for body in bodies] == [422, 422, 413, 422]
        assert kind == JSON or post(url, request()).status_code == 200
        assert budgets[0].used == 0


def test_a_body_that_drips_is_ended(monkeypatch):
    monkeypatch.setattr("afterflow.rewards.remote.server.BODY_SECONDS", 0.3)
    with served(build_service([Reward("bright", brightness)])) as url, connected(url) as client:
        client.sendall(b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n")
        client.sendall(b"Content-Type: application/json\r\n\r\n[")
        assert client.recv(9999).startswith(b"HTTP/1.1 408")


# Connections


def connected(url):
    client = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
    client.settimeout(10)
    return client


def test_idle_connections_make_room():
    app = build_service([Reward("bright", brightness)])
    with served(app, connection_class(8, 60.0)) as url:
        idle = [connected(url) for _ in range(30)]
        assert get(f"{url}/health").status_code == 200
        assert [client.recv(9) for client in idle[:23]] == [b""] * 23  # the others and the request for health are 8
        idle[-1].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle[-1].recv(99).startswith(b"HTTP/1.1 200")
        for client in idle:
            client.close()


def test_headers_have_a_time():
    app = build_service([Reward("bright", brightness)])
    with served(app, connection_class(8, 0.5)) as url, connected(url) as client, connected(url) as silent:
        start = time.monotonic()
        with pytest.raises(OSError):
            for _ in range(100):
                client.sendall(b"G")
                time.sleep(0.05)
        assert silent.recv(9) == b""
        assert 0.3 < time.monotonic() - start < 3


def test_a_connection_that_is_kept_alive_has_the_same_time_for_its_next_headers():
    with (
        served(build_service([Reward("bright", brightness)]), connection_class(8, 0.5)) as url,
        connected(url) as client,
    ):
        for wait in (0.0, 0.8):  # longer than headers may take, but nothing has begun
            time.sleep(wait)
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            reply = client.recv(9999)
            while not reply.endswith(b"}}"):
                reply += client.recv(9999)
            assert reply.startswith(b"HTTP/1.1 200")
        client.sendall(b"GET")
        assert client.recv(9) == b""


def test_a_connection_whose_request_is_scored_is_not_closed_for_others():
    begun, hold = threading.Event(), threading.Event()
    slow = lambda images, records: (begun.set(), hold.wait(10), brightness(images, records))[2]
    with (
        served(build_service([Reward("bright", slow)]), connection_class(4, 5.0)) as url,
        ThreadPoolExecutor(1) as pool,
    ):
        reply = pool.submit(post, url, request())
        assert begun.wait(10)
        idle = [connected(url) for _ in range(10)]
        assert idle[0].recv(9) == b""  # the oldest that is idle makes room, though the scored one is older
        hold.set()
        assert values(reply.result()) == [60]
        for client in idle:
            client.close()


@pytest.mark.parametrize("status, limits", [(504, ServiceLimits(seconds=0.1)), (503, ServiceLimits(waiting=1))])
def test_a_refused_client_is_told_to_close_its_connection(status, limits):
    slow = lambda images, records: (time.sleep(0.3), brightness(images, records))[1]
    with served(build_service([Reward("bright", slow)], limits)) as url:
        reply = post(url, request(count=2))
        assert reply.status_code == status and reply.headers["connection"] == "close"


def test_more_requests_than_connections_are_refused_and_health_answers():
    hold = threading.Event()
    waits = lambda images, records: (hold.wait(10), brightness(images, records))[1]
    app = build_service([Reward("bright", waits)], ServiceLimits(connections=18))
    with served(app) as url, ThreadPoolExecutor(3) as pool:
        first = [pool.submit(post, url, request()) for _ in range(2)]
        wait_until(lambda: get(f"{url}/health").json()["waiting"] == {"bright": 2})
        assert post(url, request()).status_code == 503
        assert get(f"{url}/health").status_code == 200
        hold.set()
        assert [values(each.result()) for each in first] == [[60], [60]]


def test_clients_that_leave_take_their_images_along():
    hold, scored = threading.Event(), []

    def waits(images, records):
        hold.wait(10)
        scored.append(len(images))
        return brightness(images, records)

    with served(build_service([Reward("bright", waits)], ServiceLimits(batch=1))) as url:
        clients = [connected(url) for _ in range(20)]
        body = pack(request())
        for client in clients:
            client.sendall(b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/msgpack\r\n")
            client.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: get(f"{url}/health").json()["waiting"]["bright"] == 20)
        for client in clients[1:]:
            client.close()
        wait_until(lambda: get(f"{url}/health").json()["waiting"]["bright"] == 1)
        hold.set()
        assert clients[0].recv(9999).startswith(b"HTTP/1.1 200")
        clients[0].close()
    assert sum(scored) == 1


def test_a_request_that_ends_before_its_turn_is_kept_by_nobody():
    async def leave():
        queue = BatchQueue(Reward("bright", brightness), ServiceLimits(), Activity())  # nobody takes from it
        request = asyncio.create_task(queue.submit([IMAGE], [{"prompt": "a"}], Share(MemoryBudget(1))))
        await asyncio.sleep(0)
        assert queue.waiting == len(queue.pending) == 1
        request.cancel()
        await asyncio.wait([request])
        assert queue.waiting == len(queue.pending) == 0
        queue.thread.end()

    asyncio.run(leave())


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Rewards


class Leaky(Exception):
    """A class of the reward's own, whose name does not end as errors' do."""


def raising(error):
    def score(images, records):
        if any(record.get("bad") for record in records):
            raise error
        return brightness(images, records)

    return Reward("bright", score)


def parses_arguments(images, records):
    if any(record.get("bad") for record in records):
        argparse.ArgumentParser(prog=SECRET).parse_args(["--no-such"])
    return brightness(images, records)


def unprintable():
    class Silent(Exception):
        def __str__(self):
            raise Leaky(SECRET)

    return Silent()


REWARDS = {
    "its own class": (raising(Leaky(SECRET)), "Exception"),
    "a command line": (raising(subprocess.TimeoutExpired(["ffmpeg", SECRET], 3)), "Exception"),
    "a file": (raising(FileNotFoundError(2, "no such file", SECRET)), "FileNotFoundError"),
    "SystemExit": (raising(SystemExit(SECRET)), "SystemExit"),
    "KeyboardInterrupt": (raising(KeyboardInterrupt(SECRET)), "KeyboardInterrupt"),
    "arguments": (Reward("bright", parses_arguments), "SystemExit"),
    "no text": (raising(unprintable()), "Exception"),
    "memory": (raising(MemoryError(SECRET)), "MemoryError"),
}


@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_that_fails_fails_its_own_request_in_words_of_ours(name):
    reward, kind = REWARDS[name]
    with served(build_service([reward], ServiceLimits(batch=4, wait=30.0))) as url, ThreadPoolExecutor(4) as pool:
        good = [pool.submit(post, url, request()) for _ in range(3)]  # scored together with the bad one, as it is full
        bad = post(url, request(bad=True))
        text = bad.content.decode("latin-1")
        assert kind in text and "hunter2" not in text and "Leaky" not in text and "Traceback" not in text
        assert [values(each.result()) for each in good] == [[60]] * 3
        post(url, request(count=4, bad=True))
        assert get(f"{url}/health").json()["rewards"] == {"bright": "failing"}
        assert values(post(url, request(count=4))) == [60] * 4
        assert get(f"{url}/health").json()["status"] == "ok"


def test_a_reward_that_hangs_is_left_behind_and_health_tells_it():
    hold = threading.Event()

    def hangs(images, records):
        if any(record.get("bad") for record in records):
            hold.wait(30)
        return brightness(images, records)

    rewards = [Reward("bright", hangs), Reward("other", brightness)]
    health = lambda: get(f"{url}/health")
    # What shall be scored needs a limit that a busy machine keeps; only what hangs may reach it.
    with served(build_service(rewards, ServiceLimits(seconds=3.0))) as url, ThreadPoolExecutor(4) as pool:
        for n in range(2):
            bad = pool.submit(post, url, request(bad=True))
            time.sleep(1.5)
            assert values(post(url, request("other"))) == [60]
            if n == 0:
                assert values(post(url, request())) == [60]  # comes while the first hangs, and has its turn after it
            reply = bad.result()
            assert (reply.status_code, json_of(reply)["error"]) == (504, "no score within 3 s")
            wait_until(lambda: health().json()["rewards"] == {"bright": "hanging", "other": "ok"})
        wait_until(lambda: post(url, request()).status_code == 503)
        assert health().status_code == 200 and health().json()["status"] == "degraded"
        assert values(post(url, request("other"))) == [60]
        hold.set()
        wait_until(lambda: health().json()["rewards"]["bright"] != "hanging")
        assert values(post(url, request())) == [60]
        assert health().json()["status"] == "ok"


def test_health_is_503_where_no_reward_answers_any_more():
    hold = threading.Event()
    hangs = Reward("bright", lambda images, records: (hold.wait(30), brightness(images, records))[1])
    with served(build_service([hangs], ServiceLimits(seconds=0.1, batch=1))) as url:
        assert [post(url, request()).status_code for _ in range(2)] == [504, 504]
        wait_until(lambda: get(f"{url}/health").status_code == 503)
        hold.set()
        wait_until(lambda: get(f"{url}/health").status_code == 200)


@pytest.mark.parametrize("kind", [JSON, MSGPACK])
def test_what_is_no_finite_number_is_null_in_both_content_types(kind):
    odd = lambda images, records: Scored(
        np.array([1.0, math.inf, math.nan]), {"part": np.array([-math.inf, math.nan, 2.0])}
    )
    with served(build_service([Reward("odd", odd)])) as url:
        content = request("odd", 3)
        if kind == JSON:
            raw = {"raw": base64.b64encode(IMAGE.tobytes()).decode(), "shape": [8, 8, 3]}
            content = json.dumps(content | {"images": [raw] * 3}).encode()
        reply = post(url, content, kind)
        message = reply.json() if kind == JSON else msgpack.unpackb(reply.content)
    assert message["values"] == [1.0, None, None] and message["parts"] == {"part": [None, None, 2.0]}
    assert message["why"] == dict.fromkeys(["1", "2"], "it is not a finite number")


# The log


def test_the_log_has_short_lines_without_control_characters_and_not_many_of_them():
    log, lines = logging.getLogger("test_the_log"), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(logging.Formatter().format(record))
    log.addHandler(handler)
    log.addFilter(BoundedLog())
    try:
        raise ValueError("y" * 10_000)
    except ValueError:
        log.exception("%s", "\x1b[2J\n" + "x" * 10_000 + "\nend\x07")
    assert lines[0].count("x") <= MAX_CHARACTERS >= lines[0].count("y")
    assert "\\nend\\x07" in lines[0] and all(letter.isprintable() or letter == "\n" for letter in lines[0])
    for _ in range(1000):
        log.warning("again")
    assert len(lines) == MAX_RECORDS and "left out" in lines[-1]


def test_the_service_counts_what_it_did_in_a_line():
    activity = Activity()
    assert activity.line() == ""
    for what, times in (("images of bright", 3), ("status 200", 1), ("images of bright", 2)):
        activity.count(what, times)
    assert activity.line() == "images of bright: 5, status 200: 1" and activity.line() == ""
