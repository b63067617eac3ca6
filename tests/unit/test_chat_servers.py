"""What is sent to each kind of chat server, and what is read from its replies: by recorded shapes, and by hand."""

import json
import math
import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import numpy as np
import pytest

from afterflow.rewards.http import MAX_RETRY_SECONDS, retry_after
from afterflow.rewards.vlm.answers import MAX_WORDS, MIN_MASS, ChatAnswer, Unanswered, read_answer
from afterflow.rewards.vlm.client import Chat
from afterflow.rewards.vlm.judge import VLMJudge, connect
from afterflow.rewards.vlm.servers import ChatServer, refused_field, without_refused
from fake_server import behaving, recorded, said, serving

PICTURE = np.zeros((8, 8, 3), np.uint8)
KINDS = {"vllm": "vllm", "sglang": "sglang", "openai": "openai", "openai_newer": "openai"}


@pytest.fixture(autouse=True)
def slept(monkeypatch):
    """The seconds that the client has slept, which no test waits for."""
    seconds, clock = [], [0.0]
    fake = SimpleNamespace(sleep=seconds.append)
    monkeypatch.setattr("afterflow.rewards.vlm.client.time", fake)
    monkeypatch.setattr("afterflow.rewards.vlm.client.running_seconds", lambda: clock[0])
    return seconds


def chat(url, name, **options):
    kind = "openai" if name.startswith("openai") else "ask"  # a server here cannot have OpenAI's address
    return Chat(url, "judge", server=ChatServer(kind, **options))


# The probabilities of the first token


@pytest.mark.parametrize(
    "first, expected",
    [
        ([("yes", -0.01), ("yes", -9.0), ("no", -5.0)], 0.99324),
        ([("yes", -9.0), ("yes", -0.01), ("no", -5.0)], 0.99324),
        ([(" Yes", math.log(0.5)), ("YES", math.log(0.25)), ("\u2581no", math.log(0.25))], 0.75),
        ([("no", 0.0)], 0.0),
        ([("yes", math.log(MIN_MASS)), ("So", math.log(1 - MIN_MASS))], 1.0),
        ([("yes", math.log(0.6)), ("yes", math.log(0.6)), ("no", math.log(0.2))], 0.75),  # one token, named twice
    ],
)
def test_probabilities_of_equal_words_are_added_up(first, expected):
    assert ChatAnswer("", first).probability("yes", "no") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "first", [[("So", -1e-5), ("yes", -11.5)], [("yes", math.log(0.3)), ("no", math.log(0.19))], [("yes", -math.inf)]]
)
def test_a_model_that_says_something_else_gives_no_number(first):
    with pytest.raises(Unanswered, match=f"less than {MIN_MASS}; its likeliest first tokens are '{first[0][0]}'"):
        ChatAnswer("", first).probability("yes", "no")


def test_thousands_of_answers_give_the_conditional_probability_or_none():
    """Against the definition, on random tables of tokens."""
    rng, names = np.random.default_rng(0), ["yes", " yes", "Yes", "no", "NO ", "So", "The", "maybe"]
    for _ in range(2000):
        tokens = [names[i] for i in rng.integers(0, len(names), 6)]
        chances = rng.dirichlet(np.full(6, 0.4))
        mass = {w: sum(p for t, p in zip(tokens, chances) if t.strip().lower() == w) for w in ("yes", "no")}
        answer = ChatAnswer("", [(token, math.log(max(p, 1e-300))) for token, p in zip(tokens, chances)])
        if sum(mass.values()) >= MIN_MASS:
            assert answer.probability("yes", "no") == pytest.approx(mass["yes"] / sum(mass.values()))
        else:
            with pytest.raises(Unanswered):
                answer.probability("yes", "no")


@pytest.mark.parametrize("log_prob", ["-1", None, True, 0.5, math.nan])
def test_what_is_no_log_probability_is_no_answer(log_prob):
    with pytest.raises(Unanswered, match="which is none"):
        read_answer({"choices": [{"message": {"content": "1"}, **tokens(log_prob)}]}, True)


def tokens(log_prob):
    return {"logprobs": {"content": [{"top_logprobs": [{"token": "1", "logprob": log_prob}]}]}}


# Recorded servers


@pytest.mark.parametrize("name", KINDS)
def test_a_recorded_server_is_asked_in_its_own_fields_and_answers(name):
    shapes = recorded(name)
    for answer in ("logprobs", "choice", "tag"):
        server = ChatServer("openai" if name.startswith("openai") else "ask")
        reply = behaving(shapes, "one")
        with serving(reply, addresses=shapes["addresses"]) as (url, seen):
            client = connect(VLMJudge(url, answer=answer, server=server))
            assert client.kind == KINDS[name]
            if answer == "logprobs":
                chance = client.ask_first_token(["?", PICTURE]).probability("1", "2")
                assert chance == pytest.approx(math.exp(-0.105) / (math.exp(-0.105) + math.exp(-2.31)), abs=1e-3)
            else:
                assert client.ask(["?", PICTURE], 4, choices=("1", "2")).text == "1"
            assert set(seen[-1][0]) <= set(shapes["fields"])


@pytest.mark.parametrize(
    "name, has, has_not",
    [
        ("vllm", {"temperature": 0, "max_tokens": 4, "structured_outputs": {"choice": ["1", "2"]}}, ["regex"]),
        ("sglang", {"temperature": 0, "max_tokens": 4, "regex": "(1|2)"}, ["structured_outputs"]),
        ("openai", {"temperature": 0, "max_completion_tokens": 4}, ["max_tokens", "regex", "structured_outputs"]),
        ("openai_newer", {"max_completion_tokens": 4}, ["max_tokens", "temperature", "regex", "structured_outputs"]),
    ],
)
def test_what_is_sent_fits_the_kind(name, has, has_not):
    shapes = recorded(name)
    with serving(behaving(shapes, "one"), addresses=shapes["addresses"]) as (url, seen):
        client = chat(url, name)
        client.check()
        for _ in range(2):
            client.ask(["?"], 4, choices=("1", "2"))
        body = seen[-1][0]
        assert has.items() <= body.items() and not body.keys() & set(has_not)
        assert len(seen) == (3 if name == "openai_newer" else 2)  # what is refused is refused once


@pytest.mark.parametrize("name", KINDS)
def test_a_recorded_server_without_an_answer_is_told_apart(name, slept):
    shapes = recorded(name)
    sentences = {"thinks": "has no text, only what it thought: 'So, let me", "without": "it gave no log-probabilities"}
    if name.startswith("openai"):
        sentences |= {"thinks": "it gave no log-prob", "refuses": "it refuses to answer: \"I'm sorry, I can't help"}
    for reply, sentence in sentences.items():
        with serving(behaving(shapes, reply)) as (url, _), pytest.raises(Unanswered, match=sentence):
            chat(url, name).ask_first_token(["?", PICTURE])
    status, error = shapes["error"]
    words = (error.get("error") or error)["message"]
    with serving(lambda body, n: (status, json.dumps(error))) as (url, seen):
        with pytest.raises(Unanswered, match=rf"status {status}: .*{re.escape(words[:30])}"):
            chat(url, name).ask_first_token(["?"])
        assert len(seen) == 1 and not slept


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_thinking_is_turned_off_by_the_chat_template(name):
    shapes = recorded(name)
    with serving(behaving(shapes, "one"), addresses=shapes["addresses"]) as (url, seen):
        chat(url, name, chat_template_kwargs='{"enable_thinking": false}').ask(["?"], 4)
        assert seen[0][0]["chat_template_kwargs"] == {"enable_thinking": False}


def test_arguments_of_a_chat_template_are_a_json_object_and_not_for_openai():
    for text in ("{", "[]", "enable_thinking=false"):
        with pytest.raises(ValueError, match="a JSON object, such as"):
            ChatServer(chat_template_kwargs=text)
    with pytest.raises(ValueError, match="OpenAI's server takes none"):
        ChatServer("openai", "{}")


@pytest.mark.parametrize(
    "addresses, kind",
    [
        ({"/get_model_info": {"model_path": "x"}}, "sglang"),
        ({"/version": {"version": "0.12.0"}}, "vllm"),
        ({"/version": {"version": "1", "commit": "x"}}, "other"),
        ({}, "other"),
    ],
)
def test_a_server_whose_models_are_someone_elses_is_known_by_its_addresses(addresses, kind):
    models = {"/v1/models": {"data": [{"id": "judge", "owned_by": "our company"}]}}
    with serving(lambda body, n: said("1"), addresses=models | addresses) as (url, seen):
        client = Chat(url, "judge")
        client.check()
        client.ask(["?"], 4, choices=("1", "2"))
        assert client.kind == kind and ("structured_outputs" in seen[0][0]) == (kind == "vllm")


def test_a_server_that_wants_a_key_says_so():
    with serving(lambda body, n: "", addresses={}) as (url, _):
        client = Chat(url, "judge")
        client.client.get = lambda url, seconds: SimpleNamespace(status_code=401, text="who are you?")
        with pytest.raises(
            ValueError, match=r"wants another key \(status 401: 'who are you\?'\); set AFTERFLOW_SERVER_KEY"
        ):
            client.check()


def test_a_field_that_is_refused_is_left_out_and_a_length_renamed():
    body = {"messages": [], "temperature": 0, "seed": 0, "max_tokens": 4, "logprobs": True}
    assert (
        refused_field(body, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead") == "max_tokens"
    )
    assert refused_field(body, '{"type": "extra_forbidden", "loc": ["body", "seed"]}') == "seed"
    assert refused_field(body, "max_tokens is too large: 500") is None
    assert refused_field(body, "logprobs are not supported") is None  # without them there is no answer
    assert without_refused(body, ["temperature", "max_tokens"]) == {
        "messages": [],
        "seed": 0,
        "max_completion_tokens": 4,
        "logprobs": True,
    }
    assert without_refused(body, ["max_tokens", "max_completion_tokens"]) == body
    refuse = lambda body, n: (400, "unsupported: max_tokens, max_completion_tokens")
    with serving(refuse) as (url, _), pytest.raises(Unanswered, match="status 400"):
        Chat(url, "judge").ask(["?"], 4)


# When to come again


def test_retry_after_is_waited_for_in_seconds_or_until_a_date_and_not_for_ever():
    date = lambda seconds: format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)
    assert retry_after("7") == 7 and retry_after("0.5") == 0.5
    assert 17 < retry_after(date(20)) <= 20 and retry_after(date(-20)) == 0
    assert retry_after("99999") == retry_after(date(9999)) == MAX_RETRY_SECONDS
    for nonsense in (None, "", "soon", "-3", "nan", "inf", "Wed, 99 Foo 2026 00:00:00 GMT"):
        assert retry_after(nonsense) == 0


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_failure_that_may_pass_is_waited_out(status, slept):
    busy = lambda body, n: (status, "busy", {"Retry-After": "7"}) if n == 0 else said("1")
    with serving(busy) as (url, seen):
        assert Chat(url, "judge").ask(["?"], 4).text == "1"
        assert len(seen) == 2 and slept == [7.0]


def test_a_servers_words_are_kept_short():
    with (
        serving(lambda body, n: (400, '{"error": {"message": "' + "x" * 9000 + '"}}')) as (url, _),
        pytest.raises(Unanswered) as error,
    ):
        Chat(url, "judge").ask(["?"], 4)
    assert str(error.value).count("x") == MAX_WORDS


def test_an_answer_that_is_cut_is_no_answer_even_if_it_quotes_one():
    quoted = '{"choices": [{"message": {"content": "I could say <answer>tie</answer> or"}, "finish_reason": "length"}]}'
    with serving(lambda body, n: quoted) as (url, _), pytest.raises(Unanswered, match="its answer was cut at"):
        Chat(url, "judge").ask(["?"], 4).final_text()
