"""Servers that are slow, wrong or hostile cost their clients little time and memory, and one sentence."""

import gzip
import time
import tracemalloc

import numpy as np
import pytest

from afterflow.rewards.base import Reward
from afterflow.rewards.http import BadReply, HttpClient, Reply, key_header
from afterflow.rewards.remote.client import RemoteScorer
from afterflow.rewards.remote.protocol import pack
from afterflow.rewards.vlm.answers import Unanswered, parse_final_score, parse_tag
from afterflow.rewards.vlm.client import Chat
from afterflow.system.errors import ConfigError, InputError
from fake_server import said
from raw_server import reply, sending

httpx = pytest.importorskip("httpx")
MB = 2**20
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n"


def slowly(start, byte):
    """A reply that begins and then sends a byte now and again."""

    def behave(connection, path):
        connection.sendall(start)
        while True:
            connection.sendall(byte)
            time.sleep(0.05)

    return behave


def endlessly(start, part):
    def behave(connection, path):
        connection.sendall(start)
        while True:
            connection.sendall(part)

    return behave


def once(data):
    return lambda connection, path: connection.sendall(data)


SLOW = {
    "body": slowly(HEAD + b"\r\n", b"x"),
    "chunks": slowly(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "headers": slowly(HEAD + b"X: ", b"x"),
    "interim replies": slowly(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "nothing": lambda connection, path: time.sleep(3),
}


@pytest.mark.parametrize("name", SLOW)
def test_a_deadline_holds_for_a_whole_reply_however_slowly_its_bytes_come(name):
    with sending(SLOW[name]) as url:
        start = time.monotonic()
        with pytest.raises(httpx.TransportError, match=r"no whole reply within 0.4 s|^$"):
            HttpClient().get(url, 0.4)
        assert 0.3 < time.monotonic() - start < 2


BAD = {
    "large": (once(HEAD + b"\r\n" + b"x" * 2 * MB), "more than 1 MB"),
    "endless": (endlessly(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * MB), "more than 1 MB"),
    "endless chunks": (
        endlessly(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
        "more than 1 MB",
    ),
    "compressed": (once(reply(gzip.compress(bytes(50 * MB)), b"Content-Encoding: gzip")), "is compressed"),
}


@pytest.mark.parametrize("name", BAD)
def test_no_more_of_a_reply_is_in_memory_than_is_allowed(name):
    behave, sentence = BAD[name]
    with sending(behave) as url:
        client = HttpClient()
        tracemalloc.start()
        try:
            with pytest.raises(BadReply, match=sentence):
                client.post(url, b"{}", "application/json", 10, max_megabytes=1)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 8 * MB


def test_what_a_reply_becomes_is_limited_too():
    with pytest.raises(InputError, match="more than 100000 values"):
        Reply(200, {}, b"[" + b"[]," * MB).json()
    assert Reply(200, {"content-type": "text/plain; charset=zip"}, b"\xff[").text == "\ufffd["


def test_redirections_are_not_followed_and_cookies_forgotten():
    seen = []

    def behave(connection, path):
        seen.append(path)
        cookie = b"Set-Cookie: a=" + b"x" * 3000
        connection.sendall(reply(b"", b"Location: /elsewhere", cookie, status=b"302 Found"))
        return "again"

    with sending(behave) as url:
        client = HttpClient()
        assert [client.get(f"{url}/here", 5).status_code for _ in range(2)] == [302, 302]
        assert seen == ["/here", "/here"] and not list(client.client.cookies.jar)


@pytest.mark.parametrize("key", ["schlüssel", "two words", "line\n", "\x7f", "ключ"])
def test_a_key_that_no_header_holds_is_refused_at_the_start(monkeypatch, key):
    monkeypatch.setenv("A_KEY", key)
    with pytest.raises(ConfigError, match="A_KEY: a key is of ASCII letters, digits and signs"):
        key_header("A_KEY")
    with pytest.raises(ConfigError, match="A_KEY"):
        HttpClient("A_KEY")


# Clients of reward services and of chat servers

GOOD = {"version": "1", "values": [1.0], "parts": {}, "why": {}}
WRONG = {
    "no message": b"\xc1",
    "a list": pack([]),
    "too few": pack(GOOD | {"values": []}),
    "too many": pack(GOOD | {"values": [1.0, 2.0]}),
    "texts": pack(GOOD | {"values": ["1"]}),
    "truth": pack(GOOD | {"values": [True]}),
    "parts": pack(GOOD | {"parts": {"a": [1.0, 2.0]}}),
    "name of a part": pack(GOOD | {"parts": {"\x1b[2J": [1.0]}}),
    "long name of a part": pack(GOOD | {"parts": {"a" * 10_000: [1.0]}}),
    "reason": pack(GOOD | {"why": {"0": 3}}),
    "reason about no image": pack(GOOD | {"why": {"1": "x"}}),
    "reason about nothing": pack(GOOD | {"why": {"-1": "x"}}),
    "row of many digits": pack(GOOD | {"why": {"9" * 10_000: "x"}}),
    "version": pack(GOOD | {"version": "\x1b[2J" * 9999}),
    "values": b"\xdd\x00\x10\x00\x00" + b"\x90" * MB,
    "depth": b"\x91" * MB,
    "html": b"<html>" + b"\x1b[2J" * MB,
}


@pytest.mark.parametrize("name", WRONG)
def test_a_reward_service_that_replies_with_nonsense_gives_no_score_and_one_short_sentence(name):
    behave = lambda connection, path: connection.sendall(reply(WRONG[name] if path == "/score" else b"{}")) or "again"
    with sending(behave) as url:
        scorer = RemoteScorer(Reward("bright", None, version="1"), [url], 1, deadline=0.3)
        scored = scorer(np.zeros((1, 2, 2, 3), np.uint8), [{"prompt": "a"}])
    assert np.isnan(scored.values).all() and 0 < len(scored.why[0]) < 3000 and scored.why[0].isprintable()


def test_words_of_a_service_are_shown_without_what_a_terminal_would_obey():
    body = pack(GOOD | {"values": [None], "why": {"0": "\x1b[2Jdark\n" + "x" * 9999}})
    behave = lambda connection, path: connection.sendall(reply(body if path == "/score" else b"{}")) or "again"
    with sending(behave) as url:
        scorer = RemoteScorer(Reward("bright", None, version="1"), [url], 1, deadline=5)
        why = scorer(np.zeros((1, 2, 2, 3), np.uint8), [{"prompt": "a"}]).why[0]
    assert why.startswith("\ufffd[2Jdark\ufffdx") and len(why) == 500


@pytest.mark.parametrize(
    "body, sentence",
    [
        (b'{"choices": [' + b"[]," * MB, "it is no answer: the body holds more than"),
        (said("1", {"1": -1}).replace("-1", "-1" + "0" * 400).encode(), "an answer of another form|which is none"),
        (said("<answer>" * 200_000).encode(), "no verdict"),
        (said("final score:" + " " * 200_000).encode(), "no score"),
        (b"\x1b[2J", "it is not JSON"),
    ],
    ids=["values", "a number", "tags", "spaces", "no JSON"],
)
def test_a_chat_server_that_replies_with_nonsense_gives_no_answer_in_good_time(body, sentence):
    with sending(once(reply(body))) as url, pytest.raises(Unanswered, match=sentence) as error:
        start = time.monotonic()
        answer = Chat(url, "judge", attempts=1).ask(["?"], 1, with_tokens=b'logprobs": {' in body)
        parse_tag(answer.text) if "<answer>" in answer.text else parse_final_score(answer.text)
    assert time.monotonic() - start < 5 and len(str(error.value)) < 800 and str(error.value).isprintable()
