"""Kinds of chat servers, and what each of them takes besides the messages of a question."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from ...system.errors import ConfigError

ServerKind = Literal["vllm", "sglang", "openai", "other"]
OPENAI_HOSTS = ("api.openai.com", "openai.azure.com")
LENGTH_NAMES = ("max_tokens", "max_completion_tokens")
"""The two names of the longest answer; which of them a server takes depends on the model."""
DISPENSABLE = ("temperature", "seed", "structured_outputs", "regex", "response_format")
"""Fields without which a question has the same meaning, and which are left out where a server refuses them."""
REFUSAL = re.compile(r"support|unknown|unrecogni[sz]ed|unexpected|extra|not permitted|not allowed|deprecated", re.I)


@dataclass(frozen=True)
class ChatServer:
    """What a chat server is, so that it is sent what it knows and nothing else."""

    kind: Literal["ask", "vllm", "sglang", "openai", "other"] = "ask"
    """Kind of the server.  With ask it is found out by asking once, and what says nothing of itself is other."""
    chat_template_kwargs: str = ""
    """Arguments of the model's chat template as a JSON object, such as {"enable_thinking": false} for a model that
    would think before it answers."""

    def __post_init__(self) -> None:
        self.template_arguments()
        if self.chat_template_kwargs and self.kind == "openai":
            raise ConfigError("server.chat_template_kwargs: OpenAI's server takes none; leave it out")

    def template_arguments(self) -> dict[str, Any]:
        """Return the arguments of the chat template; raise ConfigError where they are no JSON object."""
        try:
            arguments = json.loads(self.chat_template_kwargs or "{}")
        except ValueError as error:
            arguments = error
        if not isinstance(arguments, dict):
            raise ConfigError(
                f"server.chat_template_kwargs = {self.chat_template_kwargs!r}: a JSON object, such as "
                "'{\"enable_thinking\": false}'"
            )
        return arguments


def kind_of_models(url: str, owners: Sequence[str]) -> ServerKind | None:
    """Return the kind of the server at an address whose models have these owners; None where neither says it."""
    host = urlsplit(url).hostname or ""
    if any(host == name or host.endswith(f".{name}") for name in OPENAI_HOSTS):
        return "openai"
    for kind in ("vllm", "sglang"):
        if kind in owners:
            return kind
    return None


def request_fields(
    kind: ServerKind,
    max_tokens: int,
    with_tokens: bool,
    choices: Sequence[str],
    template: Mapping[str, Any],
    schema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what a question has besides its model and messages.

    Args:
        kind: what the server is.
        max_tokens: longest answer.
        with_tokens: whether the probabilities of the first token are asked for.
        choices: the only answers that are allowed, where a server of this kind can hold the model to them.
        template: arguments of the model's chat template.
        schema: form of an answer in JSON, as JSON Schema, where a server of this kind can hold the model to it.
    """
    length = "max_completion_tokens" if kind == "openai" else "max_tokens"
    fields: dict[str, Any] = {"temperature": 0, "seed": 0, length: max_tokens}
    if with_tokens:
        fields |= {"logprobs": True, "top_logprobs": 20}
    if choices and kind == "vllm":
        fields["structured_outputs"] = {"choice": list(choices)}
    if choices and kind == "sglang":
        fields["regex"] = f"({'|'.join(map(re.escape, choices))})"
    if schema and kind != "other":
        form = {"name": "answer", "schema": dict(schema), "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": form}
    if template:
        fields["chat_template_kwargs"] = dict(template)
    return fields


def refused_field(body: Mapping[str, Any], words: str) -> str | None:
    """Return the field of a request that a server says it does not take, if the question can do without it."""
    if not REFUSAL.search(words):
        return None
    names = [name for name in (*LENGTH_NAMES, *DISPENSABLE) if name in body]
    return next((name for name in names if re.search(rf"\b{name}\b", words)), None)


def without_refused(fields: Mapping[str, Any], refused: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a request without those that the server refuses; its length gets its other name."""
    other = dict(zip(LENGTH_NAMES, LENGTH_NAMES[::-1]))
    dropped = {name for name in refused if name not in other}
    renamed = {name: other[name] for name in refused if name in other and other[name] not in refused}
    return {renamed.get(name, name): value for name, value in fields.items() if name not in dropped}
