"""A reward that runs elsewhere: one or several reward services, with what to do when they do not answer."""

import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np

from ...system.errors import ConfigError, InputError
from ...system.running_time import running_seconds
from ..base import NoAnswer, Reward, Scored, concatenate_scored
from ..http import CONNECT_SECONDS, REST_SECONDS, TRANSIENT, HttpClient, retry_after
from ..vlm.answers import error_words, shorten
from .protocol import MSGPACK, REWARDS_KEY, pack, parse_reply, score_request, unpack

MAX_FAILURES = 3
"""Failures in a row after which a service is left alone for a while."""

RESTART_SECONDS = 5.0
"""How long a service that cannot be reached may take to come back, before images go without scores."""


class ServiceFailed(NoAnswer):
    """No service gave scores; the message says why."""


class RemoteScorer:
    """Scores of one reward, by several services in turn.

    A batch that one of them fails on goes to the next, until the deadline; then its images have no score, and a reason.
    Where no service has been reached for `RESTART_SECONDS`, they have none at once.
    """

    def __init__(self, reward: Reward, urls: Sequence[str], batch: int, deadline: float = 120.0) -> None:
        self.reward, self.urls, self.batch, self.deadline = reward, [url.rstrip("/") for url in urls], batch, deadline
        self.client = HttpClient(REWARDS_KEY)
        self.pool, self.lock, self.turn = ThreadPoolExecutor(2 * len(urls)), threading.Lock(), 0
        self.failures, self.rests_until = dict.fromkeys(self.urls, 0), dict.fromkeys(self.urls, 0.0)
        self.unreached_since: dict[str, float] = {}

    def check(self) -> None:
        """Raise ConfigError where a service is not there, or serves another reward or version."""
        name, expected = self.reward.name, self.reward.version
        for url in self.urls:
            versions = self._versions(url)
            if name not in versions:
                raise ConfigError(f"the service {url} has {shorten(', '.join(versions))[1:-1]}, not {name}")
            if versions[name] != expected:
                raise ConfigError(
                    f"the service {url} has version {shorten(versions[name])[1:-1]} of {name}, and this is {expected}; "
                    "run the same afterflow on both sides"
                )

    def _versions(self, url: str) -> dict[str, str]:
        """Return the version of every reward that a service has."""
        try:
            reply = self.client.get(f"{url}/rewards", 10.0)
            if reply.status_code == 401:
                raise ConfigError(f"the service {url} wants a key; set {REWARDS_KEY}")
            if reply.status_code != 200:
                raise ConfigError(f"{url} answers with status {reply.status_code}: {error_words(reply.text)}")
            return {str(item["name"]): str(item["version"]) for item in reply.json()}
        except httpx.TransportError as error:
            start = f"start it: afterflow serve-rewards {self.reward.name}"
            raise ConfigError(f"the service {url} does not answer ({error}); {start}") from None
        except (KeyError, TypeError, InputError) as error:
            raise ConfigError(f"{url} is no reward service") from error

    def __call__(self, images: np.ndarray, records: Sequence[dict]) -> Scored:
        """Score B images, in batches that are sent at the same time."""
        parts = [slice(i, i + self.batch) for i in range(0, len(images), self.batch)]
        return concatenate_scored(list(self.pool.map(lambda part: self._score(images[part], records[part]), parts)))

    def _score(self, images: np.ndarray, records: Sequence[dict]) -> Scored:
        """Score a batch; one that no service could score has a reason instead."""
        try:
            return self._ask_services(pack(score_request(self.reward.name, list(images), records)), len(images))
        except ServiceFailed as error:
            return Scored(np.full(len(images), np.nan), why=dict.fromkeys(range(len(images)), str(error)))

    def _ask_services(self, body: bytes, count: int) -> Scored:
        """Send a request to one service after another, until the deadline."""
        longest = self.deadline / (1 + len(self.urls))  # one that hangs must leave time for another
        why, deadline = "", running_seconds() + self.deadline
        while (remaining := deadline - running_seconds()) > 0:
            url = self._next_service()
            if self._is_dead() and (why or url is None):
                raise ServiceFailed(f"no service is reached; {why or ', '.join(self.urls) + ' rest after failures'}")
            if url is None:
                time.sleep(min(0.2, remaining))
                continue
            try:
                self._reach(url)
                reply = self.client.post(f"{url}/score", body, MSGPACK, min(remaining, longest))
                if reply.status_code == 200:
                    scored = self._parse(url, reply.body, count)
                    self._record(url, success=True)
                    return scored
                why = f"{url}: status {reply.status_code}: {error_words(reply.text)}"
                if reply.status_code not in TRANSIENT:
                    raise ServiceFailed(why)  # the request is at fault, and no other service will like it
                self._rest(url, retry_after(reply.headers.get("retry-after")))
            except httpx.TransportError as error:
                why = f"{url}: {type(error).__name__}: {error}"
            except ValueError as error:
                why = f"{url}: {error}"
            self._record(url, success=False)
        raise ServiceFailed(f"no score within {self.deadline:g} s; {why or 'every service rests after failures'}")

    def _parse(self, url: str, content: bytes, count: int) -> Scored:
        """Return the scores of a reply; raise ServiceFailed where the service has been replaced by another version."""
        reply = unpack(content, MSGPACK)
        scored = parse_reply(reply, count)
        if reply.get("version") != self.reward.version:
            version = shorten(str(reply.get("version")))[1:-1]
            raise ServiceFailed(f"{url} now has version {version} of {self.reward.name}")
        return scored

    def _reach(self, url: str) -> None:
        """Raise httpx.TransportError at once where a service does not answer that it is well, before a long wait."""
        try:
            self.client.get(f"{url}/health", CONNECT_SECONDS)
        except httpx.TransportError:
            self.unreached_since.setdefault(url, running_seconds())
            raise
        self.unreached_since.pop(url, None)

    def _is_dead(self) -> bool:
        """Return whether no service has been reached for longer than a restart takes."""
        long_ago = running_seconds() - RESTART_SECONDS
        return all(self.unreached_since.get(url, math.inf) <= long_ago for url in self.urls)

    def _rest(self, url: str, seconds: float) -> None:
        """Leave a service alone for some seconds, as it asks."""
        if seconds:
            with self.lock:
                self.rests_until[url] = running_seconds() + seconds

    def _next_service(self) -> str | None:
        """Return the next service that does not rest."""
        with self.lock:
            for _ in self.urls:
                self.turn = (self.turn + 1) % len(self.urls)
                if self.rests_until[self.urls[self.turn]] <= running_seconds():
                    return self.urls[self.turn]
        return None

    def _record(self, url: str, success: bool) -> None:
        """Count failures in a row; after `MAX_FAILURES` the service rests."""
        with self.lock:
            self.failures[url] = 0 if success else self.failures[url] + 1
            if self.failures[url] >= MAX_FAILURES:
                self.failures[url], self.rests_until[url] = 0, running_seconds() + REST_SECONDS
        if not success:
            time.sleep(0.1)
