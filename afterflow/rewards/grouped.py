"""Scores and verdicts of groups of images: G images of each of P prompts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .base import ImagePairs, Judge, RewardModels, checked_answer, own_copies, read_only
from .registry import DEFAULT_REWARD_MODELS, load_reward


@dataclass(frozen=True)
class GroupScores:
    """The scores of one reward for P groups of G images."""

    values: Tensor
    """The scores, (P, G).  NaN means that an image has no score."""
    parts: Mapping[str, Tensor]
    """Named components of the scores, (P, G) each."""
    failures: Sequence[str]
    """The prompt of every image without a score, with the reason."""


def score_groups(
    reward: str, images: np.ndarray, records: Sequence[dict], models: RewardModels = DEFAULT_REWARD_MODELS
) -> GroupScores:
    """Score uint8 images (P, G, H, W, 3), or clips (P, G, F, H, W, 3), of P records.

    A reward that scores images scores a clip by the mean of its frames, which all must have a score.
    """
    scorer, (P, G) = load_reward(reward, models), images.shape[:2]
    frame_axes = () if scorer.clips else images.shape[2:-3]
    frames, flat = math.prod(frame_axes), images.reshape(-1, *images.shape[2 + len(frame_axes) :])
    scored = scorer(flat, _repeat(records, G * frames))
    grouped = lambda values: torch.from_numpy(np.asarray(values, np.float32)).view(P, G, frames).mean(2)
    prompt_of = lambda row: records[row // (G * frames)]["prompt"]
    failures = {row // frames: f"{prompt_of(row)!r}: {reason}" for row, reason in sorted(scored.why.items())}
    parts = {name: grouped(values) for name, values in scored.parts.items()}
    return GroupScores(grouped(scored.values), parts, list(failures.values()))


def judge_groups(
    judge: Judge, images: np.ndarray, records: Sequence[dict], shown: Tensor, generators: Sequence[torch.Generator]
) -> tuple[Tensor, list[str]]:
    """Show a judge pairs of images of the same prompt; return verdicts (P, G, G), and what has none with the reason.

    Args:
        judge: says of each pair which image is better; of clips it is asked frame by frame.
        images: uint8 (P, G, H, W, 3), or clips (P, G, F, H, W, 3).
        records: the P records of the prompts.
        shown: (P, G, G) bool, the pairs to show, as (first, second); the other verdicts are NaN.
        generators: one for each prompt, for what the judge draws.

    Raises ValueError when the judge does not give one number in [0, 1], or a reason, for each pair.
    """
    P, G = images.shape[:2]
    prompt, i, j = shown.nonzero().unbind(1)
    first, second = (prompt * G + i).numpy(), (prompt * G + j).numpy()
    seeds = torch.cat([torch.randint(2**62, (int(n),), generator=g) for g, n in zip(generators, shown.sum((1, 2)))])
    frames = images.reshape(P * G, -1, *images.shape[-3:]).swapaxes(0, 1)
    rows = _repeat(records, G)
    answers = [judge(ImagePairs(read_only(frame), own_copies(rows), first, second, seeds.numpy())) for frame in frames]
    request = f"where {first.shape} pairs were shown"
    scored = [checked_answer(f"the judge {judge}", answer, len(first), request) for answer in answers]
    wins = np.mean([frame.values for frame in scored], 0)
    why = {pair: reason for frame in scored for pair, reason in frame.why.items()}
    answered = np.delete(wins, list(why))
    if not np.all((answered >= 0) & (answered <= 1)):
        raise ValueError(f"the judge {judge} answered outside of [0, 1]: {answered.min()} to {answered.max()}")
    wins[list(why)] = np.nan
    verdicts = torch.full(shown.shape, torch.nan)
    verdicts[prompt, i, j] = torch.from_numpy(wins.astype(np.float32))
    return verdicts, [f"{records[int(prompt[pair])]['prompt']!r}: {reason}" for pair, reason in sorted(why.items())]


def all_pairs(prompts: int, group: int) -> Tensor:
    """Return every pair of a group in both orders, (P, G, G) bool."""
    return ~torch.eye(group, dtype=torch.bool).expand(prompts, group, group)


def _repeat(records: Sequence[dict], times: int) -> list[dict]:
    return [record for record in records for _ in range(times)]
