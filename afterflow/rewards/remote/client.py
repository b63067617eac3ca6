"""A reward that runs elsewhere: one or several reward services, with what to do when they do not answer."""

import json
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..base import Reward, Scored, concatenate_scored
from ..vlm.client import TRANSIENT
from .protocol import MSGPACK, REWARDS_KEY, pack, parse_reply, score_request, unpack

REST = 30.0
"""Seconds for which a service that failed `PATIENCE` times in a row is left alone."""
PATIENCE = 3


class Failed(Exception):
    """No scores could be had of any service."""


class Remote:
    """Scores of one reward, asked of several services in turn.

    A batch that one of them fails on goes to the next, until the deadline; then its images have no score, and a reason.
    """

    def __init__(self, reward: Reward, urls: Sequence[str], batch: int, deadline: float = 120.0) -> None:
        import httpx

        self.reward, self.urls, self.batch, self.deadline = reward, [url.rstrip("/") for url in urls], batch, deadline
        key = os.environ.get(REWARDS_KEY)
        self.client = httpx.Client(headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=deadline)
        self.pool, self.lock, self.turn = ThreadPoolExecutor(2 * len(urls)), threading.Lock(), 0
        self.failures, self.rests_until = dict.fromkeys(self.urls, 0), dict.fromkeys(self.urls, 0.0)

    def check(self) -> None:
        """ValueError where a service is not there, or serves another reward or version."""
        import httpx

        for url in self.urls:
            try:
                reply = self.client.get(f"{url}/rewards", timeout=10.0)
                if reply.status_code == 401:
                    raise ValueError(f"the service {url} wants a key; set {REWARDS_KEY}")
                known = {each["name"]: each["version"] for each in reply.json()}
            except httpx.TransportError as error:
                start = f"start it: afterflow serve-rewards {self.reward.name}"
                raise ValueError(f"the service {url} does not answer ({error}); {start}") from None
            except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
                raise ValueError(f"{url} is no reward service") from error
            found = known.get(self.reward.name)
            if found is None:
                raise ValueError(f"the service {url} has {', '.join(known)}, not {self.reward.name}")
            if found != self.reward.version:
                raise ValueError(
                    f"the service {url} has version {found} of {self.reward.name}, and this is {self.reward.version}; "
                    "run the same afterflow on both sides"
                )

    def __call__(self, images: np.ndarray, records: Sequence[dict]) -> Scored:
        parts = [slice(i, i + self.batch) for i in range(0, len(images), self.batch)]
        return concatenate_scored(list(self.pool.map(lambda part: self._part(images[part], records[part]), parts)))

    def _part(self, images: np.ndarray, records: Sequence[dict]) -> Scored:
        """Of a batch; one that no service could score has a reason instead."""
        try:
            return self._ask(images, records)
        except Failed as error:
            return Scored(np.full(len(images), np.nan), why=dict.fromkeys(range(len(images)), str(error)))

    def _ask(self, images: np.ndarray, records: Sequence[dict]) -> Scored:
        import httpx

        most = self.deadline / (1 + len(self.urls))  # one that hangs must leave time for another
        body, why = pack(score_request(self.reward.name, list(images), records)), ""
        ends = time.monotonic() + self.deadline
        while (left := ends - time.monotonic()) > 0:
            url = self._next()
            if url is None:
                time.sleep(min(0.2, left))
                continue
            try:
                reply = self.client.post(
                    f"{url}/score", content=body, headers={"Content-Type": MSGPACK}, timeout=min(left, most)
                )
                if reply.status_code == 200:
                    found = unpack(reply.content, MSGPACK)
                    scored = parse_reply(found, len(images))
                    if found.get("version") != self.reward.version:
                        raise Failed(f"{url} now has version {found.get('version')} of {self.reward.name}")
                    self._went(url, well=True)
                    return scored
                why = f"{url}: status {reply.status_code}: {said(reply)}"
                if reply.status_code not in (*TRANSIENT, 500):
                    raise Failed(why)  # the request is at fault, and no other service will like it
            except httpx.TransportError as error:
                why = f"{url}: {type(error).__name__}: {error}"
            except ValueError as error:
                why = f"{url}: {error}"
            self._went(url, well=False)
        raise Failed(f"no score within {self.deadline:g} s; {why or 'every service rests after failures'}")

    def _next(self) -> str | None:
        """The next that does not rest."""
        with self.lock:
            for _ in self.urls:
                self.turn = (self.turn + 1) % len(self.urls)
                if self.rests_until[self.urls[self.turn]] <= time.monotonic():
                    return self.urls[self.turn]
        return None

    def _went(self, url: str, well: bool) -> None:
        with self.lock:
            self.failures[url] = 0 if well else self.failures[url] + 1
            if self.failures[url] >= PATIENCE:
                self.failures[url], self.rests_until[url] = 0, time.monotonic() + REST
        if not well:
            time.sleep(0.1)


def said(reply: Any) -> str:
    try:
        return str(reply.json()["error"])[:200]
    except (ValueError, KeyError, TypeError):
        return reply.text[:80]
