"""Vision-language models as judges of two images, and as rewards of one."""

import json
import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from ..base import RewardModels, Scored, Scorer, network_reward
from .client import Chat, ChatAnswer, Unanswered


def server_of(models: RewardModels, reward: str) -> Chat:
    """The server named for a reward, URL#MODEL; ValueError where there is none."""
    url, _, model = models.weights.get(reward, "").partition("#")
    if not url.startswith(("http://", "https://")) or not model:
        raise ValueError(f"it asks a server: --reward-models.weights {reward} http://HOST:8000/v1#MODEL")
    chat = Chat(url, model, threads=models.batch)
    chat.check()
    return chat


def rated(chat: Chat, ask: Callable[[np.ndarray, str], float]) -> Scorer:
    """A reward that asks about each image and its prompt; without an answer there is no score."""

    def score(images: np.ndarray, records: Sequence[dict]) -> Scored:
        said = chat.each([lambda i=i: ask(images[i], records[i]["prompt"]) for i in range(len(images))])
        why = {row: str(each) for row, each in enumerate(said) if isinstance(each, Unanswered)}
        return Scored(np.array([np.nan if isinstance(each, Unanswered) else each for each in said]), why=why)

    return score


@network_reward("vlm_alignment", 0, 1, extra="judge", libraries=("httpx",))
def vlm_alignment(models: RewardModels) -> Scorer:
    """P(yes) against P(no) to whether the image shows the prompt, by any model with log-probabilities."""
    chat = server_of(models, "vlm_alignment")

    def ask(image: np.ndarray, prompt: str) -> float:
        question = f"Does this image show exactly what the caption says? Caption: {prompt}\nAnswer yes or no."
        return chat.ask([image, question], max_tokens=1, logprobs=True, top_logprobs=20).chance("yes", "no")

    return rated(chat, ask)


def needs_points(record: dict) -> None:
    """ValueError where the record does not say what to look for."""
    points = record.get("points")
    if not isinstance(points, list) or not points or not all(isinstance(p, list) and len(p) == 2 for p in points):
        raise ValueError("it has no points, a list of [dimension, what the picture must show]")


@network_reward("vlm_points", 0, 1, needs=needs_points, extra="judge", libraries=("httpx",))
def vlm_points(models: RewardModels) -> Scorer:
    """UniGenBench's share of test points that a picture meets (arXiv:2508.20751), each a question of its own.

    Parts are the dimensions' first words, as the benchmark has them.  An unanswered point leaves the picture without a
    score; the benchmark's script drops such rows, which rewards pictures that cannot be read.
    """
    chat = server_of(models, "vlm_points")

    def score(images: np.ndarray, records: Sequence[dict]) -> Scored:
        asked = [(i, dimension, check) for i, record in enumerate(records) for dimension, check in record["points"]]
        calls = [lambda i=i, check=check: meets(chat, images[i], records[i]["prompt"], check) for i, _, check in asked]
        said = list(zip(asked, chat.each(calls)))
        why = {i: str(each) for (i, _, _), each in said if isinstance(each, Unanswered)}
        met: dict[str, list[list[float]]] = {}
        every: list[list[float]] = [[] for _ in records]
        for (i, dimension, _), each in said:
            if not isinstance(each, Unanswered):
                every[i].append(float(each > 0.5))
                met.setdefault(dimension.partition(" - ")[0], [[] for _ in records])[i].append(float(each > 0.5))
        mean = lambda rows: np.array([np.mean(row) if row else np.nan for row in rows])
        return Scored(mean(every), {name: mean(rows) for name, rows in met.items()}, why)

    return score


def meets(chat: Chat, image: np.ndarray, prompt: str, check: str) -> float:
    """How sure the model is that the picture shows one thing of its caption."""
    question = (
        f"This image was made for the caption: {prompt}\nLook at one thing of it alone: {check}\n"
        "Does the image show that? Answer yes or no."
    )
    return chat.ask([image, question], max_tokens=1, logprobs=True, top_logprobs=20).chance("yes", "no")


RATINGS = {"excellent": 5, "good": 4, "fair": 3, "poor": 2, "bad": 1}


@network_reward("vlm_quality", 1, 5, scale=1 / 5, extra="judge", libraries=("httpx",))
def vlm_quality(models: RewardModels) -> Scorer:
    """DeQA's reading of any model (arXiv:2501.11561): the mean rating over what it would call the image's quality."""
    chat = server_of(models, "vlm_quality")

    def ask(image: np.ndarray, prompt: str) -> float:
        parts = [image, f"How would you rate the quality of this image? Answer with one of {', '.join(RATINGS)}."]
        found = chat.ask(parts, max_tokens=1, logprobs=True, top_logprobs=20)
        return rating(found)

    return rated(chat, ask)


def rating(found: ChatAnswer) -> float:
    """From 1 to 5: the first token's ratings, each by its probability among them."""
    chance = {word: 0.0 for word in RATINGS}
    for token, p in found.first.items():
        if token.strip().lower() in chance:
            chance[token.strip().lower()] += math.exp(p)
    if not any(chance.values()):
        raise Unanswered(f"no rating is among its first tokens {json.dumps(list(found.first)[:5])}")
    return sum(RATINGS[word] * p for word, p in chance.items()) / sum(chance.values())


@network_reward("unified_reward", 1, 5, scale=1 / 5, extra="judge", libraries=("httpx",))
def unified_reward(models: RewardModels) -> Scorer:
    """UnifiedReward (arXiv:2503.05236), from 1 to 5 in our words; what cannot be read has no score, not 0."""
    chat = server_of(models, "unified_reward")

    def ask(image: np.ndarray, prompt: str) -> float:
        task = (
            "You are given a caption and an image made from it. Rate how well the image shows the caption and how good "
            f"it looks, from 1 to 5, decimals allowed. Caption: {prompt}\nEnd with: Final Score: X"
        )
        return final_score(chat.ask([image, task], max_tokens=1024).text)

    return rated(chat, ask)


def final_score(said: str) -> float:
    """The number after the last `Final Score:`; Unanswered where there is none from 1 to 5."""
    found = re.findall(r"final score:\s*\**\s*([0-9]+(?:\.[0-9]+)?)", said, re.I)
    if not found or not 1 <= float(found[-1]) <= 5:
        raise Unanswered(f"no score from 1 to 5 at the end of {said[-60:]!r}")
    return float(found[-1])
