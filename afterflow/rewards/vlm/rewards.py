"""Vision-language models behind a server as rewards of one image."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from ...system.errors import ConfigError, InputError
from ..base import ErrorReason, OrderCanary, Reward, RewardModels, Scored, Scorer, check_address, network_reward
from ..canaries import BEAUTIFUL, CAPTIONED, POINTED
from .answers import ChatAnswer, Unanswered, parse_final_score
from .client import Chat

RATINGS = {"excellent": 5, "good": 4, "fair": 3, "poor": 2, "bad": 1}


def open_chat(models: RewardModels, reward: str) -> Chat:
    """Return a client of the server named for a reward, URL#MODEL; raise ConfigError where there is none."""
    url, _, model = models.weights.get(reward, "").partition("#")
    if not url.startswith(("http://", "https://")) or not model:
        raise ConfigError(f"it asks a server: --reward-models.weights {reward} http://HOST:8000/v1#MODEL")
    check_address(f"reward_models.weights: {reward}", url)
    chat = Chat(url, model, threads=models.batch, server=models.chat)
    chat.check()
    return chat


def unanswered(error: Unanswered) -> ErrorReason:
    """Return why there is no answer, as a reason that repeats the server's words."""
    return ErrorReason.of(error, str(error))


def vlm_reward(
    name: str, low: float, high: float, canary: OrderCanary, scale: float = 1.0
) -> Callable[[Callable[[Chat, np.ndarray, str], float]], Reward]:
    """Make a reward of the decorated function, which asks about an image and its prompt; no answer is no score.

    Args:
        name: name of the reward.
        low: lowest score.
        high: highest score.
        canary: pictures in a known order.
        scale: factor of its scores.
    """

    def declare(rate: Callable[[Chat, np.ndarray, str], float]) -> Reward:
        def load(models: RewardModels) -> Scorer:
            chat = open_chat(models, name)

            def score(images: np.ndarray, records: Sequence[dict]) -> Scored:
                rows = zip(images, records)
                answers = chat.ask_all([partial(rate, chat, image, record["prompt"]) for image, record in rows])
                why = {row: unanswered(error) for row, error in enumerate(answers) if isinstance(error, Unanswered)}
                return Scored(np.array([np.nan if i in why else value for i, value in enumerate(answers)]), why=why)

            return score

        fields = {"scale": scale, "canary": canary, "extra": "judge", "libraries": ("httpx",)}
        return network_reward(name, low, high, **fields)(load)

    return declare


@vlm_reward("vlm_alignment", 0, 1, CAPTIONED)
def vlm_alignment(chat: Chat, image: np.ndarray, prompt: str) -> float:
    """Return P(yes) against P(no) to whether the image shows the prompt, by any model with log-probabilities."""
    question = f"Does this image show exactly what the caption says? Caption: {prompt}\nAnswer yes or no."
    return chat.ask_first_token([image, question]).probability("yes", "no")


@vlm_reward("vlm_quality", 1, 5, BEAUTIFUL, scale=1 / 5)
def vlm_quality(chat: Chat, image: np.ndarray, prompt: str) -> float:
    """Return the mean rating over what a model would call the image's quality, as DeQA (arXiv:2501.11561) does."""
    question = f"How would you rate the quality of this image? Answer with one of {', '.join(RATINGS)}."
    return mean_rating(chat.ask_first_token([image, question]))


def mean_rating(answer: ChatAnswer) -> float:
    """Return the mean of the first token's ratings, from 1 to 5, by their probabilities; Unanswered without any."""
    return sum(RATINGS[word] * p for word, p in answer.chances(tuple(RATINGS)).items())


@vlm_reward("unified_reward", 1, 5, CAPTIONED, scale=1 / 5)
def unified_reward(chat: Chat, image: np.ndarray, prompt: str) -> float:
    """Return UnifiedReward's rating (arXiv:2503.05236), from 1 to 5; what cannot be read has no score, not 0."""
    task = (
        "You are given a caption and an image made from it. Rate how well the image shows the caption and how good "
        f"it looks, from 1 to 5, decimals allowed. Caption: {prompt}\nEnd with: Final Score: X"
    )
    return parse_final_score(chat.ask([image, task], max_tokens=1024).final_text())


def check_points(record: dict) -> None:
    """Raise InputError where the record does not say what to look for."""
    points = record.get("points")
    if not isinstance(points, list) or not points or not all(map(is_point, points)):
        raise InputError("it has no points, a list of [dimension, what the picture must show], both of them texts")


def is_point(value: object) -> bool:
    """Return whether a value is a dimension and what the picture must show for it, two texts."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) and part for part in value)


@network_reward("vlm_points", 0, 1, needs=check_points, extra="judge", libraries=("httpx",), canary=POINTED)
def vlm_points(models: RewardModels) -> Scorer:
    """Score the share of UniGenBench's test points that a picture meets (arXiv:2508.20751), a question for each point.

    Parts are the dimensions' first words, as the benchmark has them.  An unanswered point leaves the picture without a
    score; the benchmark's script drops such rows, which rewards pictures that cannot be read.
    """
    chat = open_chat(models, "vlm_points")

    def score(images: np.ndarray, records: Sequence[dict]) -> Scored:
        points = [(i, dimension, check) for i, record in enumerate(records) for dimension, check in record["points"]]
        questions = [partial(shows_point, chat, images[i], records[i]["prompt"], check) for i, _, check in points]
        answers = list(zip(points, chat.ask_all(questions)))
        why = {i: unanswered(error) for (i, _, _), error in answers if isinstance(error, Unanswered)}
        met: list[list[float]] = [[] for _ in records]
        met_by_part: dict[str, list[list[float]]] = {}
        for (i, dimension, _), answer in answers:
            is_met = np.nan if isinstance(answer, Unanswered) else float(answer > 0.5)
            met[i].append(is_met)
            met_by_part.setdefault(dimension.partition(" - ")[0], [[] for _ in records])[i].append(is_met)
        mean = lambda rows: np.array([np.mean(row) if row else np.nan for row in rows])
        return Scored(mean(met), {name: mean(rows) for name, rows in met_by_part.items()}, why)

    return score


def shows_point(chat: Chat, image: np.ndarray, prompt: str, check: str) -> float:
    """Return how sure the model is that the picture shows one thing of its caption."""
    question = (
        f"This image was made for the caption: {prompt}\nLook at one thing of it alone: {check}\n"
        "Does the image show that? Answer yes or no."
    )
    return chat.ask_first_token([image, question]).probability("yes", "no")
