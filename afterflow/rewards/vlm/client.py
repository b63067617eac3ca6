"""Questions with images to an OpenAI-compatible server, such as vLLM's or SGLang's."""

import json
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from ...system.errors import ConfigError
from ...system.running_time import running_seconds
from ..http import CONNECT_SECONDS, REST_SECONDS, TRANSIENT, BadReply, HttpClient, Reply, retry_after
from ..png import encode_png
from .answers import ChatAnswer, Unanswered, decode_reply, error_words, read_answer, shorten
from .servers import ChatServer, ServerKind, kind_of_models, refused_field, request_fields, without_refused

SERVER_KEY = "AFTERFLOW_SERVER_KEY"
"""The environment variable with the server's key, if it wants one; it is written nowhere."""
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Chat:
    """A client of one model, for several threads.  Transient failures are tried again, other failures are not."""

    def __init__(
        self,
        url: str,
        model: str,
        timeout: float = 60.0,
        attempts: int = 5,
        threads: int = 16,
        server: ChatServer | None = None,
    ) -> None:
        """Connect nothing yet.

        Args:
            url: address of the server, which ends in /v1 as a rule.
            model: name under which the server has the model.
            timeout: seconds for an answer.
            attempts: how often a question is asked whose failure may pass.
            threads: number of questions at a time.
            server: what the server is; `check` finds it out where that is open.
        """
        self.url, self.model, self.attempts, self.timeout = url.rstrip("/"), model, attempts, timeout
        self.client = HttpClient(SERVER_KEY, threads)
        self.pool = ThreadPoolExecutor(threads)
        self.patience, self.silent, self.rests_until = threads, 0, 0.0
        server = server or ChatServer()
        self.kind: ServerKind = "other" if server.kind == "ask" else server.kind
        self.template, self.must_ask = server.template_arguments(), server.kind == "ask"
        self.refused: list[str] = []

    def check(self) -> None:
        """Raise ConfigError where the server is not there, or does not have the model; find out what it is."""
        try:
            reply = self._send(lambda: self.client.get(f"{self.url}/models", self.timeout))
            if reply.status_code in (401, 403):
                raise ConfigError(
                    f"the server {self.url} wants another key (status {reply.status_code}: "
                    f"{error_words(reply.text)}); set {SERVER_KEY}"
                )
            listed = {} if reply.status_code == 404 else decode_reply(_body(reply))
            models = {item["id"]: str(item.get("owned_by")) for item in listed["data"]}
        except Unanswered as error:
            raise ConfigError(f"the server {self.url} does not answer ({error}); start it, or name another") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{self.url}/models is no list of models; the address ends in /v1 as a rule") from error
        if self.model not in models:
            names = ", ".join([*map(str, models)][:10]) or "none"
            raise ConfigError(f"the server {self.url} has no model {self.model!r}, only {shorten(names)[1:-1]}")
        if self.must_ask:
            self.kind, self.must_ask = self._find_kind(list(models.values())), False
        if self.kind == "openai" and self.template:
            raise ConfigError(f"the server {self.url} is OpenAI's, which takes no chat_template_kwargs; leave it out")

    def ask(
        self,
        parts: Sequence[Any],
        max_tokens: int,
        with_tokens: bool = False,
        choices: Sequence[str] = (),
        schema: Mapping[str, Any] | None = None,
    ) -> ChatAnswer:
        """Ask about texts and uint8 images (H, W, 3), in this order, at temperature 0; raise Unanswered on failure.

        Args:
            parts: texts and images.
            max_tokens: longest answer, in tokens.
            with_tokens: whether the probabilities of the first token are wanted.
            choices: the only answers that are allowed, which only some servers can see to.
            schema: form of an answer in JSON, as JSON Schema, which only some servers can see to.
        """
        messages = [{"role": "user", "content": [_content(part) for part in parts]}]
        fields = request_fields(self.kind, max_tokens, with_tokens, choices, self.template, schema)
        return read_answer(self._post({"model": self.model, "messages": messages}, fields), with_tokens)

    def ask_first_token(self, parts: Sequence[Any]) -> ChatAnswer:
        """Ask what is answered by the probabilities of the first token.

        No grammar holds the model to its answers: most servers give the probabilities before a grammar's mask, and
        after it a model that says something else could not be told from one that answers.
        """
        return self.ask(parts, max_tokens=1, with_tokens=True)

    def ask_all(self, questions: Sequence[Callable[[], _T]]) -> list[_T | Unanswered]:
        """Ask questions at the same time; return their answers in order, and the error of one that failed."""

        def answer(question: Callable[[], _T]) -> _T | Unanswered:
            try:
                return question()
            except Unanswered as error:
                return error

        return list(self.pool.map(answer, questions))

    def _find_kind(self, owners: Sequence[str]) -> ServerKind:
        """Return what the server is: by its address or its models' owner, or by an address that only its kind has."""
        kind = kind_of_models(self.url, owners)
        root = self.url.removesuffix("/v1")
        if kind is None and "model_path" in self._peek(f"{root}/get_model_info"):
            kind = "sglang"
        if kind is None and set(self._peek(f"{root}/version")) == {"version"}:
            kind = "vllm"
        _log.info("the server %s is %s", self.url, kind or "of no kind that we know")
        return kind or "other"

    def _peek(self, url: str) -> Mapping[str, Any]:
        """Return the object at an address of the server; nothing where there is none."""
        import httpx

        try:
            reply = self.client.get(url, CONNECT_SECONDS)
            content = reply.json() if reply.status_code == 200 else {}
        except (httpx.TransportError, ValueError):
            return {}
        return content if isinstance(content, Mapping) else {}

    def _post(self, question: Mapping[str, Any], fields: Mapping[str, Any]) -> Any:
        """Return the reply to a question; ask again without a field that the server refuses, if it is dispensable."""
        while True:
            refused = tuple(self.refused)
            body = {**question, **without_refused(fields, refused)}
            reply = self._send(partial(self._ask, json.dumps(body).encode()))
            name = refused_field(body, reply.text) if reply.status_code in (400, 422) else None
            if name is None or name in refused:
                return decode_reply(_body(reply))
            if name not in self.refused:  # another thread may have met the same
                self.refused.append(name)
                _log.warning("%s takes no %s, and is asked without: %s", self.url, name, error_words(reply.text))

    def _ask(self, body: bytes) -> Reply:
        return self.client.post(f"{self.url}/chat/completions", body, "application/json", self.timeout)

    def _send(self, call: Callable[[], Reply]) -> Reply:
        """Return a reply, after several attempts where that may help."""
        import httpx

        if running_seconds() < self.rests_until:
            raise Unanswered(
                f"the server left {self.patience} questions in a row unanswered, and is left alone a while"
            )
        for attempt in range(self.attempts):
            last, wait = attempt + 1 == self.attempts, 0.0
            try:
                reply = call()
            except httpx.TransportError as error:  # no connection, a broken one, or a time-out
                if last:
                    self._count_silence()
                    raise Unanswered(self._silence(error)) from error
            except BadReply as error:
                raise Unanswered(str(error)) from error
            else:
                self.silent = 0
                if last or reply.status_code not in TRANSIENT or "insufficient_quota" in reply.text:
                    return reply
                wait = retry_after(reply.headers.get("retry-after"))
            # With jitter, so that many workers do not come back at once.
            time.sleep(max(wait, min(30.0, 0.25 * 2**attempt) * random.uniform(0.5, 1.5)))
        raise AssertionError

    def _silence(self, error: Exception) -> str:
        """Return why no reply came."""
        import httpx

        what = f"{type(error).__name__}: {error}"
        if isinstance(error, (httpx.RemoteProtocolError, httpx.ReadError)):
            return f"its reply broke off before its end ({what})"
        if isinstance(error, (httpx.ReadTimeout, httpx.WriteTimeout)):
            return f"no reply within {self.timeout:g} s ({type(error).__name__})"
        return what

    def _count_silence(self) -> None:
        """Leave the server alone after as many questions without an answer as there are threads."""
        self.silent += 1
        if self.silent >= self.patience:
            self.silent, self.rests_until = 0, running_seconds() + REST_SECONDS


def _body(reply: Reply) -> str:
    """Return the text of a reply; raise Unanswered for one of another status than 200."""
    if reply.status_code != 200:
        raise Unanswered(f"status {reply.status_code}: {error_words(reply.text)}")
    return reply.text


def _content(part: Any) -> dict:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encode_png(part)}"}}
