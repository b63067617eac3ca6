"""What a chat server replies, and what can be read from it: a text, or the probabilities of its first token."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...system.errors import InputError
from ..base import NoAnswer
from ..messages import TooLarge, decode_json

MIN_MASS = 0.5
"""Least probability of the named first tokens together, below which the model says something else."""
MAX_WORDS = 500
"""Characters of a server's own words that a message repeats."""
MAX_RATING_TEXT = 4000
"""Characters at the end of an answer in which ratings are looked for."""
MAX_NAMED = 10
"""Words that a message names, of those that an answer may begin with."""
SPACE_MARKS = str.maketrans("\u2581\u0120\u010a", "   ")
"""How tokenizers write a leading space or a line's end, where a server shows their tokens as they are."""


class Unanswered(NoAnswer):
    """No answer could be had, or none that can be read; the message says why."""


@dataclass(frozen=True)
class ChatAnswer:
    """The answer of a server."""

    text: str
    """The text of its message."""
    first: Sequence[tuple[str, float]] = ()
    """Candidates for the first token with their log-probabilities, where the question asks for them.  A text may be
    there several times: as several tokens."""
    cut: bool = False
    """Whether the answer ended because no more tokens were allowed."""

    def chances(self, words: Sequence[str]) -> dict[str, float]:
        """Return the probability of each word among the words, whatever its case and the space before it.

        Unanswered is raised where the words have less than `MIN_MASS` together: the model was saying something else.
        """
        mass = dict.fromkeys(words, 0.0)
        for token, log_prob in dict.fromkeys(self.first):
            if (word := fold_token(token)) in mass:
                mass[word] += math.exp(log_prob)
        total = sum(mass.values())
        if not total >= MIN_MASS:
            seen = ", ".join(f"{token!r} {math.exp(p):.2g}" for token, p in sorted(self.first, key=lambda c: -c[1])[:5])
            named = ", ".join([*words[:MAX_NAMED], *(["..."] if len(words) > MAX_NAMED else [])])
            raise Unanswered(
                f"it does not begin with one of {named}: they have a probability of {total:.2g} together, "
                f"less than {MIN_MASS:g}; its likeliest first tokens are {seen}"
            )
        return {word: part / total for word, part in mass.items()}

    def probability(self, yes: str, no: str) -> float:
        """Return the probability of one first token against another; raise Unanswered where it says neither."""
        return self.chances((yes, no))[yes]

    def final_text(self) -> str:
        """Return the text after the model has thought; raise Unanswered where it was cut before its end."""
        if self.cut or ("<think>" in self.text and "</think>" not in self.text):
            raise Unanswered(
                f"its answer was cut at {shorten(self.text[-60:])}; allow more tokens, or turn thinking off "
                "(chat_template_kwargs)"
            )
        return self.text.rpartition("</think>")[2]


def fold_token(token: str) -> str:
    """Return a token without the space around it, in lower case."""
    return token.translate(SPACE_MARKS).strip().casefold()


def shorten(text: str) -> str:
    """Return a server's words as a literal of at most `MAX_WORDS` characters, so that they fit in a log's line."""
    return repr(text if len(text) <= MAX_WORDS else text[:MAX_WORDS] + "…")


def error_words(text: str) -> str:
    """Return what a server says about an error, shortened: the message in its JSON, or the whole body."""
    try:
        reply = decode_json(text)
    except InputError:
        return shorten(text)
    for name in ("error", "message", "detail"):
        if isinstance(reply, Mapping) and reply.get(name):
            reply = reply[name]
    return shorten(reply if isinstance(reply, str) else json.dumps(reply))


def decode_reply(text: str) -> Any:
    """Return the JSON in a reply; raise Unanswered for a stream, for one that breaks off, and for what is no JSON."""
    try:
        return decode_json(text)
    except TooLarge as error:
        raise Unanswered(f"it is no answer: {error}") from error
    except InputError as error:
        start = text.lstrip()
        if start.startswith(("data:", "event:", ":")):
            raise Unanswered(f"its reply is a stream, and a whole answer was asked for: {shorten(text)}") from error
        if start.startswith('{"') and not start.rstrip().endswith("}"):
            raise Unanswered(f"its reply breaks off after {len(text)} characters: {shorten(text)}") from error
        raise Unanswered(f"it is not JSON: {shorten(text)}") from error


def read_answer(reply: Any, with_tokens: bool) -> ChatAnswer:
    """Return the answer in a reply of /chat/completions; raise Unanswered where it lacks what was asked for."""
    if isinstance(reply, Mapping) and reply.get("error"):
        raise Unanswered(f"it replies with an error: {error_words(json.dumps(reply))}")
    try:
        choice = reply["choices"][0]
        message = choice["message"]
        text = message_text(message, choice.get("finish_reason"))
        first = read_tokens(choice.get("logprobs")) if with_tokens else ()
        return ChatAnswer(text, first, cut=choice.get("finish_reason") == "length")
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError) as error:
        why = f"{type(error).__name__}: {error}"
        raise Unanswered(f"an answer of another form ({why}): {shorten(json.dumps(reply))}") from error


def message_text(message: Mapping, finish: str | None) -> str:
    """Return the text of a message; raise Unanswered where it has none, and say what it has instead."""
    content = message["content"] if message.get("refusal") is None else None
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part["text"]) for part in content if part.get("type") == "text")
    if content is not None:
        raise TypeError(f"content is a {type(content).__name__}")
    if message.get("refusal"):
        raise Unanswered(f"it refuses to answer: {shorten(str(message['refusal']))}")
    if finish == "content_filter":
        raise Unanswered("its content filter holds the answer back")
    thought = next((message[name] for name in ("reasoning_content", "reasoning") if message.get(name)), None)
    if thought is not None:
        raise Unanswered(
            f"its message has no text, only what it thought: {shorten(str(thought))}; turn thinking off "
            "(chat_template_kwargs), or allow more tokens"
        )
    raise Unanswered(f"its message has no text (content is null, finish_reason {finish!r})")


def read_tokens(logprobs: Any) -> tuple[tuple[str, float], ...]:
    """Return the candidates for the first token with their log-probabilities; raise Unanswered where none came."""
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    if not content:
        raise Unanswered(
            "it gave no log-probabilities; take a server that does, or a reward or answer that is read as text"
        )
    # What was sampled is among the likeliest as a rule, and some servers send it alone.
    rows = [*(content[0].get("top_logprobs") or ()), *([content[0]] if "token" in content[0] else [])]
    candidates = [(str(row["token"]), row["logprob"]) for row in rows]
    for token, log_prob in candidates:
        number = isinstance(log_prob, (int, float)) and not isinstance(log_prob, bool)
        if not number or math.isnan(log_prob) or log_prob > 0.01:
            raise Unanswered(f"its log-probability of {token!r} is {log_prob}, which is none")
    if not candidates:
        raise Unanswered("its log-probabilities name no token")
    return tuple(dict.fromkeys((token, float(log_prob)) for token, log_prob in candidates))


def parse_choice(answer: ChatAnswer) -> float:
    """Return 1 for the answer 1 and 0 for 2; raise Unanswered for any other."""
    text = answer.text.rpartition("</think>")[2].strip()
    if text not in ("1", "2"):
        raise Unanswered(f"it answered {shorten(text[:60])} instead of 1 or 2")
    return float(text == "1")


def parse_tag(text: str) -> float:
    """Return the verdict of the last tag, because a model may quote others while it thinks.

    Unanswered is raised where the tag is not there, or says more than one thing.
    """
    before, _, _ = text.lower().rpartition("</answer>")
    verdict = before.rpartition("<answer>")[2].strip() if "<answer>" in before else ""
    verdicts = {r"\bimage 1 is better\b": 1.0, r"\bimage 2 is better\b": 0.0, r"\btie\b": 0.5}
    values = [value for words, value in verdicts.items() if re.search(words, verdict)]
    if len(values) != 1:
        raise Unanswered(f"no verdict at the end of {text[-60:]!r}")
    return values[0]


def parse_ratings(text: str, names: Sequence[str], highest: float) -> list[float]:
    """Return the numbers that the last JSON object with these names has under them.

    Unanswered is raised where there is no such object, or a number in it is not from 0 to `highest`.
    """
    ending, decoder, ratings = text[-MAX_RATING_TEXT:], json.JSONDecoder(), None
    for start in (match.start() for match in re.finditer(r"\{", ending)):
        try:
            value, _ = decoder.raw_decode(ending, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and value.keys() >= set(names):
            ratings = [value[name] for name in names]
    if ratings is None:
        raise Unanswered(f"no JSON object with {' and '.join(names)} at the end of {text[-60:]!r}")
    for name, value in zip(names, ratings):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= highest:
            raise Unanswered(f"{name} = {shorten(str(value))} is no number from 0 to {highest:g}")
    return [float(value) for value in ratings]


def parse_final_score(text: str) -> float:
    """Return the number after the last `Final Score:`; raise Unanswered where there is none from 1 to 5."""
    numbers = re.findall(r"final score:\s*+\**+\s*+([0-9]++(?:\.[0-9]++)?)\s*+(?:/\s*+([0-9.]++))?", text, re.I)
    score, out_of = numbers[-1] if numbers else ("", "")
    if not score or not 1 <= float(score) <= 5 or out_of.rstrip(".") not in ("", "5", "5.0"):
        raise Unanswered(f"no score from 1 to 5 at the end of {text[-60:]!r}")
    return float(score)
