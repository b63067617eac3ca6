"""Rewards and judges asked about groups of images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .base import Judge, RewardModels, Scored
from .registry import DEFAULT_REWARD_MODELS, load_reward


@dataclass(frozen=True)
class GroupScores:
    """What a reward says of P groups of G images."""

    values: Tensor
    """(P, G), NaN where there is none."""
    parts: Mapping[str, Tensor]
    """(P, G) each."""
    failures: Sequence[str]
    """Prompt and reason of every image without a score."""


def score_groups(
    reward: str, images: np.ndarray, records: Sequence[dict], models: RewardModels = DEFAULT_REWARD_MODELS
) -> GroupScores:
    """uint8 (P, G, H, W, 3), or clips (P, G, F, H, W, 3), of P records.

    What scores images scores a clip by the mean of its frames, which all must have a score.
    """
    known, (P, G) = load_reward(reward, models), images.shape[:2]
    frames = () if known.clips else images.shape[2:-3]
    each, flat = math.prod(frames), images.reshape(-1, *images.shape[2 + len(frames) :])
    scored = known(flat, repeated(records, G * each))
    grouped = lambda values: torch.from_numpy(np.asarray(values, np.float32)).view(P, G, each).mean(2)
    failures = {i // each: f"{records[i // (G * each)]['prompt']!r}: {why}" for i, why in sorted(scored.why.items())}
    parts = {name: grouped(values) for name, values in scored.parts.items()}
    return GroupScores(grouped(scored.values), parts, list(failures.values()))


def judge_groups(
    judge: Judge, images: np.ndarray, records: Sequence[dict], shown: Tensor, generators: Sequence[torch.Generator]
) -> tuple[Tensor, list[str]]:
    """uint8 (P, G, H, W, 3) of P records, and which pairs to show, (P, G, G) bool → verdicts (P, G, G), NaN elsewhere.

    Beside them prompt and reason of every pair without a verdict, NaN too.  Of clips, (P, G, F, H, W, 3), it is asked
    frame by frame.  ValueError when the judge does not give one number in [0, 1], or a reason, for each pair.
    """
    P, G = images.shape[:2]
    prompt, i, j = shown.nonzero().unbind(1)
    first, second = (prompt * G + i).numpy(), (prompt * G + j).numpy()
    seeds = torch.cat([torch.randint(2**62, (int(n),), generator=g) for g, n in zip(generators, shown.sum((1, 2)))])
    frames = images.reshape(P * G, -1, *images.shape[-3:]).swapaxes(0, 1)
    answers = [judge(frame, repeated(records, G), first, second, seeds.numpy()) for frame in frames]
    scored = [answer if isinstance(answer, Scored) else Scored(answer) for answer in answers]
    said = np.mean([each.values for each in scored], 0)
    why = {row: reason for each in scored for row, reason in each.why.items()}
    if said.shape != first.shape:
        raise ValueError(f"the judge {judge} answered with shape {said.shape} where {first.shape} pairs were shown")
    known = np.delete(said, list(why))
    if not np.all((known >= 0) & (known <= 1)):
        raise ValueError(f"the judge {judge} answered outside of [0, 1]: {known.min()} to {known.max()}")
    said[list(why)] = np.nan
    judged = torch.full(shown.shape, torch.nan)
    judged[prompt, i, j] = torch.from_numpy(said.astype(np.float32))
    return judged, [f"{records[int(prompt[row])]['prompt']!r}: {reason}" for row, reason in sorted(why.items())]


def all_pairs(prompts: int, group: int) -> Tensor:
    """(P, G, G) bool: every pair, twice."""
    return ~torch.eye(group, dtype=torch.bool).expand(prompts, group, group)


def repeated(records: Sequence[dict], times: int) -> list[dict]:
    return [record for record in records for _ in range(times)]
