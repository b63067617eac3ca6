"""Questions with images to an OpenAI-compatible server, such as vLLM's or SGLang's."""

import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ...system.errors import AfterflowError, ConfigError
from ..png import encode_png

SERVER_KEY = "AFTERFLOW_SERVER_KEY"
"""The environment variable with the server's key, if it wants one; it is written nowhere."""
REST_SECONDS = 30.0
"""How long a server that does not answer is left alone."""
TRANSIENT = (429, 502, 503, 504)
"""The statuses after which the same question may succeed."""
FIRST_TOKEN = {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}
"""The options of a question whose answer is read from the probabilities of its first token."""
_T = TypeVar("_T")


class Unanswered(AfterflowError):
    """No answer could be had, or none that can be read; the message says why."""


@dataclass(frozen=True)
class ChatAnswer:
    """The answer of a server."""

    text: str
    """The text of its message."""
    first: Mapping[str, float] = field(default_factory=dict)
    """Log-probabilities of candidates for the first token, where the question asks for them."""

    def probability(self, yes: str, no: str) -> float:
        """Return the probability of one first token against another; raise Unanswered where neither is a candidate."""
        of = lambda word: sum(math.exp(p) for token, p in self.first.items() if token.strip().lower() == word)
        odds = of(yes), of(no)
        if not any(odds):
            raise Unanswered(f"neither {yes!r} nor {no!r} is among its first tokens {list(self.first)[:5]}")
        return odds[0] / sum(odds)


class Chat:
    """A client of one model, for several threads.  Transient failures are tried again, other failures are not."""

    def __init__(self, url: str, model: str, timeout: float = 60.0, attempts: int = 5, threads: int = 16) -> None:
        """Connect nothing yet.

        Args:
            url: address of the server, which ends in /v1 as a rule.
            model: name under which the server has the model.
            timeout: seconds for an answer.
            attempts: how often a question is asked whose failure may pass.
            threads: number of questions at a time.
        """
        import httpx

        self.url, self.model, self.attempts = url.rstrip("/"), model, attempts
        limits = httpx.Limits(max_connections=threads)
        headers = key_header(SERVER_KEY)
        self.client = httpx.Client(timeout=timeout, headers=headers, limits=limits, follow_redirects=False)
        self.pool = ThreadPoolExecutor(threads)
        self.patience, self.silent, self.rests_until = threads, 0, 0.0

    def check(self) -> None:
        """Raise ConfigError where the server is not there, or does not have the model."""
        try:
            models = [item["id"] for item in self._send(lambda: self.client.get(f"{self.url}/models"))["data"]]
        except Unanswered as error:
            raise ConfigError(f"the server {self.url} does not answer ({error}); start it, or name another") from error
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{self.url}/models is no list of models; the address ends in /v1 as a rule") from error
        if self.model not in models:
            raise ConfigError(f"the server {self.url} has no model {self.model!r}, only {', '.join(map(str, models))}")

    def ask(self, parts: Sequence[Any], **options: Any) -> ChatAnswer:
        """Ask with texts and uint8 images (H, W, 3), in this order, at temperature 0; raise Unanswered on failure."""
        content = [_content(part) for part in parts]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "seed": 0,
            **options,
        }
        reply = self._send(lambda: self.client.post(f"{self.url}/chat/completions", json=body))
        try:
            choice = reply["choices"][0]
            tokens = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs", [])
            first = {token["token"]: float(token["logprob"]) for token in tokens}
            return ChatAnswer(str(choice["message"]["content"]), first)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise Unanswered(f"an answer of another form ({type(error).__name__}: {error})") from error

    def ask_all(self, questions: Sequence[Callable[[], _T]]) -> list[_T | Unanswered]:
        """Ask questions at the same time; return their answers in order, and the error of one that failed."""

        def answer(question: Callable[[], _T]) -> _T | Unanswered:
            try:
                return question()
            except Unanswered as error:
                return error

        return list(self.pool.map(answer, questions))

    def _send(self, call: Callable[[], Any]) -> Any:
        """Return the JSON of a reply, after several attempts where that may help."""
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
                    self._count_silence()
                    raise Unanswered(f"{type(error).__name__}: {error}") from error
            else:
                self.silent = 0
                if reply.status_code == 200:
                    return _json(reply)
                if last or reply.status_code not in TRANSIENT:
                    raise Unanswered(f"status {reply.status_code}: {reply.text[:80]!r}")
            # With jitter, so that many workers do not come back at once.
            time.sleep(min(30.0, 0.25 * 2**attempt) * random.uniform(0.5, 1.5))
        raise AssertionError

    def _count_silence(self) -> None:
        """Leave the server alone after as many questions without an answer as there are threads."""
        self.silent += 1
        if self.silent >= self.patience:
            self.silent, self.rests_until = 0, time.monotonic() + REST_SECONDS


def key_header(variable: str) -> dict[str, str]:
    """Return the HTTP header with the key from an environment variable; none where it is not set."""
    key = os.environ.get(variable)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _json(reply: Any) -> Any:
    try:
        return reply.json()
    except ValueError as error:
        raise Unanswered(f"it is not JSON: {reply.text[:80]!r}") from error


def _content(part: Any) -> dict:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encode_png(part)}"}}
