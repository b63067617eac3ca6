"""Soft-TIFA, the measure of GenEval 2 (arXiv:2512.16853), by a vision-language model behind a server.

    s_i = P(expected answer | picture, question i)     of each atom of the prompt: object, attribute, count, relation
    AM  = mean of s_i                                  estimates how many atoms are right
    GM  = (s_1 s_2 ... s_n)^(1/n)                      estimates whether the whole prompt is

The form of the file, the two means and their purpose are those of its README.  Its code was not read, and its judge,
Qwen3-VL, was not run here.  Second-hand or ours are therefore: the words after a question, that s_i is a share among
the answers of its kind (yes and no, or numbers), and that the answer's first token decides.  So figures need not be
those of the paper.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from ...system.errors import InputError
from ..base import ErrorReason, Reward, RewardModels, Scored, network_reward, remember_last_batch
from ..canaries import QUESTIONED
from .answers import ChatAnswer, Unanswered
from .client import Chat
from .rewards import open_chat

NAME = "soft_tifa"
"""What --reward-models.weights calls the server, which both rewards ask."""
COUNTS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
"""The numbers that a question may expect, in words; digits mean the same."""
NUMBER_TOKENS = (*COUNTS, *map(str, range(100)), "no", "none", "many", "several")
"""First tokens of an answer to a question for a number.  An unexpected one is a wrong answer, and not none."""
OPPOSITE = {"yes": "no", "no": "yes"}
ROUNDING = 1e-6
"""Probability that is left beside the named tokens at least, since theirs are rounded."""

Atoms = list[list[float | Unanswered]]
"""For each picture the probabilities of its expected answers, or why there is none."""
Mean = Callable[[Sequence[float]], float]
"""A mean of probabilities."""


def read_expected(answer: str) -> tuple[str, ...]:
    """Return the words that mean an expected answer: yes, no, or a number and its digits.  InputError for others."""
    word = answer.strip().casefold()
    if word in OPPOSITE:
        return (word,)
    if word.isascii() and word.isdecimal() and int(word) < len(COUNTS):
        word = COUNTS[int(word)]
    if word not in COUNTS:
        raise InputError(f"{answer!r} is expected, and an answer is yes, no or a number up to {COUNTS[-1]}")
    return word, str(COUNTS.index(word))


def check_questions(record: dict) -> None:
    """Raise InputError where a record lacks questions with expected answers, as GenEval 2 writes them."""
    pairs, skills = record.get("vqa_list"), record.get("skills", [])
    if not isinstance(pairs, list) or not pairs:
        raise InputError("it has no vqa_list, a list of [question, expected answer]")
    for number, pair in enumerate(pairs, 1):
        texts = [text for text in pair if isinstance(text, str) and text.strip()] if isinstance(pair, list) else []
        if len(texts) != 2 or len(pair) != 2:
            raise InputError(f"entry {number} of vqa_list is no [question, expected answer] of two texts")
        try:
            read_expected(pair[1])
        except InputError as error:
            raise InputError(f"entry {number} of vqa_list: {error}") from None
    if not isinstance(skills, list) or not all(isinstance(skill, str) for skill in skills):
        raise InputError("skills is no list of texts")
    if skills and len(skills) != len(pairs):
        raise InputError(f"skills has {len(skills)} entries and vqa_list {len(pairs)}; write one for each question")


def ask_atom(chat: Chat, image: np.ndarray, question: str, expected: str) -> float:
    """Return the probability of the expected answer to a question about a picture; raise Unanswered without one."""
    words = read_expected(expected)
    if words[0] in OPPOSITE:
        answer = chat.ask_first_token([image, f"{question}\nAnswer yes or no."])
        return expected_share(answer, words, tuple(OPPOSITE))
    answer = chat.ask_first_token([image, f"{question}\nAnswer with a number alone, in a word, such as three."])
    return expected_share(answer, words, NUMBER_TOKENS)


def expected_share(answer: ChatAnswer, words: Sequence[str], kind: Sequence[str]) -> float:
    """Return the probability of the expected words among all words of their kind.

    A server names its likeliest first tokens alone.  A word that is not among them has at most the probability of the
    last of them, and of all that is not named; it gets the smaller, because 0 would make a product of 0.
    Unanswered is raised where the answer is of another kind.
    """
    chances = answer.chances(kind)
    share = sum(chances[word] for word in words)
    if share > 0:
        return share
    named = [math.exp(log_prob) for _, log_prob in answer.first]
    return min(min(named), max(1 - sum(named), ROUNDING))


@cache
def atom_asker(models: RewardModels) -> Callable[[np.ndarray, Sequence[dict]], Atoms]:
    """Return the function that asks all questions about pictures, once for both rewards."""
    chat = open_chat(models, NAME)

    @remember_last_batch
    def ask(images: np.ndarray, records: Sequence[dict]) -> Atoms:
        atoms = [(row, *pair) for row, record in enumerate(records) for pair in record["vqa_list"]]
        answers = chat.ask_all([partial(ask_atom, chat, images[row], *pair) for row, *pair in atoms])
        rows: Atoms = [[] for _ in records]
        for (row, *_), answer in zip(atoms, answers):
            rows[row].append(answer)
        return rows

    return ask


@dataclass(frozen=True)
class SoftTifa:
    """Scores pictures by a mean over their atoms."""

    ask: Callable[[np.ndarray, Sequence[dict]], Atoms]
    """Asks all questions about pictures."""
    mean: Mean
    """The mean over a picture's atoms."""
    by_skill: bool
    """Whether the means of each skill, of an atom as the file names it, are parts of the score."""

    def __call__(self, images: np.ndarray, records: Sequence[dict]) -> Scored:
        """Score uint8 images (B, H, W, 3); a picture with an atom that is not answered has no score, and no 0."""
        values, why, parts = np.full(len(records), np.nan), {}, {}
        for row, (atoms, record) in enumerate(zip(self.ask(images, records), records)):
            chances = [atom for atom in atoms if not isinstance(atom, Unanswered)]
            if len(chances) < len(atoms):
                why[row] = first_failure(atoms, record)
                continue
            values[row] = self.mean(chances)
            of_skill: dict[str, list[float]] = {}
            for skill, chance in zip(record.get("skills", ()) if self.by_skill else (), chances):
                of_skill.setdefault(skill, []).append(chance)
            for skill, of_atoms in of_skill.items():
                parts.setdefault(skill, np.full(len(records), np.nan))[row] = arithmetic_mean(of_atoms)
        return Scored(values, parts, why)


def first_failure(atoms: Sequence[float | Unanswered], record: dict) -> ErrorReason:
    """Return which question about a picture had no answer first, and why."""
    question, error = next((q, atom) for (q, _), atom in zip(record["vqa_list"], atoms) if isinstance(atom, Unanswered))
    return ErrorReason.of(error, f"{question!r}: {error}")


def arithmetic_mean(chances: Sequence[float]) -> float:
    """Return the arithmetic mean of probabilities."""
    return float(np.mean(chances))


def geometric_mean(chances: Sequence[float]) -> float:
    """Return the geometric mean of probabilities, 0 where one of them is."""
    return math.prod(chances) ** (1 / len(chances))


def soft_tifa(kind: str, mean: Mean, by_skill: bool) -> Reward:
    """Return the reward of one of the two means."""
    fields = {
        "needs": check_questions,
        "canary": QUESTIONED,
        "extra": "judge",
        "libraries": ("httpx",),
        "weights": (NAME,),
    }
    load = lambda models: SoftTifa(atom_asker(models), mean, by_skill)
    return network_reward(f"{NAME}_{kind}", 0, 1, **fields)(load)


SOFT_TIFA_AM = soft_tifa("am", arithmetic_mean, by_skill=True)
SOFT_TIFA_GM = soft_tifa("gm", geometric_mean, by_skill=False)
