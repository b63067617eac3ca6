"""Questions with images to an OpenAI-compatible server, such as vLLM's or SGLang's."""

import base64
import io
import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from PIL import Image

SERVER_KEY = "AFTERFLOW_SERVER_KEY"
"""The environment variable with the server's key, if it wants one; it is written nowhere."""
REST = 30.0
"""Seconds for which a server that does not answer is left alone."""
TRANSIENT = (429, 502, 503, 504)
"""Answers after which the same question may succeed."""
T = TypeVar("T")


class Unanswered(Exception):
    """No answer could be had, or none that can be read; the message says why."""


@dataclass(frozen=True)
class ChatAnswer:
    """What the server said."""

    text: str
    """Its message."""
    first: Mapping[str, float] = field(default_factory=dict)
    """Candidates of the first token → log-probability, where they were asked for."""

    def chance(self, yes: str, no: str) -> float:
        """Probability of the one against the other as the first token; Unanswered where it thought of neither."""
        of = lambda word: sum(math.exp(p) for token, p in self.first.items() if token.strip().lower() == word)
        odds = of(yes), of(no)
        if not any(odds):
            raise Unanswered(f"neither {yes!r} nor {no!r} is among its first tokens {list(self.first)[:5]}")
        return odds[0] / sum(odds)


class Chat:
    """A client of one model, for several threads.  Transient failures are tried again, everything else is not."""

    def __init__(self, url: str, model: str, timeout: float = 60.0, attempts: int = 5, threads: int = 16) -> None:
        import httpx

        self.url, self.model, self.attempts = url.rstrip("/"), model, attempts
        key = os.environ.get(SERVER_KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=threads)
        self.client = httpx.Client(timeout=timeout, headers=headers, limits=limits, follow_redirects=False)
        self.pool = ThreadPoolExecutor(threads)
        self.patience, self.silent, self.rests_until = threads, 0, 0.0

    def check(self) -> None:
        """ValueError where the server is not there, or does not know the model."""
        try:
            found = self._send(lambda: self.client.get(f"{self.url}/models"))["data"]
            known = [each["id"] for each in found]
        except Unanswered as error:
            raise ValueError(f"the server {self.url} does not answer ({error}); start it, or name another") from error
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self.url}/models is no list of models; the address ends in /v1 as a rule") from error
        if self.model not in known:
            raise ValueError(f"the server {self.url} has no model {self.model!r}, only {', '.join(map(str, known))}")

    def ask(self, parts: Sequence[Any], **options: Any) -> ChatAnswer:
        """Texts and images, uint8 (H, W, 3), in this order, at temperature 0; Unanswered where nothing came of it."""
        content = [text(part) if isinstance(part, str) else picture(part) for part in parts]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "seed": 0,
            **options,
        }
        found = self._send(lambda: self.client.post(f"{self.url}/chat/completions", json=body))
        try:
            choice = found["choices"][0]
            tokens = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs", [])
            return ChatAnswer(
                str(choice["message"]["content"]), {each["token"]: float(each["logprob"]) for each in tokens}
            )
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise Unanswered(f"an answer of another form ({type(error).__name__}: {error})") from error

    def _send(self, call: Callable[[], Any]) -> Any:
        """The JSON of a reply, after several attempts where that may help."""
        import httpx

        if time.monotonic() < self.rests_until:
            raise Unanswered(
                f"the server left {self.patience} questions in a row unanswered, and is left alone a while"
            )
        for attempt in range(self.attempts):
            last = attempt + 1 == self.attempts
            try:
                reply = call()
            except httpx.TransportError as error:  # no connection, a broken one, or a time-out
                if last:
                    self.silent += 1
                    if self.silent >= self.patience:
                        self.silent, self.rests_until = 0, time.monotonic() + REST
                    raise Unanswered(f"{type(error).__name__}: {error}") from error
            else:
                self.silent = 0
                if reply.status_code == 200:
                    try:
                        return reply.json()
                    except ValueError as error:
                        raise Unanswered(f"it is not JSON: {reply.text[:80]!r}") from error
                if last or reply.status_code not in TRANSIENT:
                    raise Unanswered(f"status {reply.status_code}: {reply.text[:80]!r}")
            # With jitter, so that many workers do not come back at once.
            time.sleep(min(30.0, 0.25 * 2**attempt) * random.uniform(0.5, 1.5))
        raise AssertionError

    def each(self, questions: Sequence[Callable[[], T]]) -> list[T | Unanswered]:
        """All of them at a time; an Unanswered in the place of one that failed."""

        def one(question: Callable[[], T]) -> T | Unanswered:
            try:
                return question()
            except Unanswered as error:
                return error

        return list(self.pool.map(one, questions))


def text(said: str) -> dict:
    return {"type": "text", "text": said}


def picture(image: np.ndarray) -> dict:
    """As PNG: JPEG would change what is judged."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}
