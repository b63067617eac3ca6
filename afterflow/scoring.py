"""From finished latents to what rewards and judges say about them: the border between images and tensors."""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .algorithms.base import WIN_RATE, OnPolicy, Scores
from .models.base import Model
from .preferences import pairs
from .rewards import CLIPS, REWARDS
from .rewards.base import Judge
from .train.clock import Clock
from .train.explore import Score


def scorer(model: Model, algorithm: OnPolicy, judge: Judge | None) -> Score:
    """What `explore` calls with finished latents."""
    return partial(score, model, algorithm, judge)


def score(
    model: Model,
    algorithm: OnPolicy,
    judge: Judge | None,
    leaves: Tensor,
    records: Sequence[dict],
    generator: torch.Generator,
    clock: Clock,
) -> Scores:
    """Finished latents (P, G, ...) of P records → scores on the CPU, where advantages are fp64."""
    asks = algorithm.asks
    if not asks.rewards and asks.comparisons is None:
        return Scores({})
    with clock("decode"):
        images = model.decode(leaves.flatten(0, 1))
    images = images.reshape(*leaves.shape[:2], *images.shape[1:])
    with clock("reward"):
        rewards = {name: ask(name, images, records) for name in asks.rewards}
        if asks.comparisons is None:
            return Scores(rewards)
        assert judge is not None
        G, wanted = images.shape[1], asks.comparisons
        shown = torch.stack([pairs(G, wanted.opponents, wanted.both_orders, generator) for _ in records])
        return Scores(rewards, {WIN_RATE: compare(judge, images, records, shown, generator)})


def ask(reward: str, images: np.ndarray, records: Sequence[dict]) -> Tensor:
    """uint8 (P, G, H, W, 3), or clips (P, G, F, H, W, 3), of P records → (P, G).

    What scores images scores a clip by the mean of its frames.
    """
    P, G = images.shape[:2]
    frames = () if reward in CLIPS else images.shape[2:-3]
    flat = images.reshape(P * G * math.prod(frames), *images.shape[2 + len(frames) :])
    values = np.asarray(REWARDS[reward](flat, repeated(records, G * math.prod(frames))), np.float32)
    if values.shape != (len(flat),):
        raise ValueError(
            f"reward {reward} answered with shape {values.shape} for {len(flat)} images; one number for each"
        )
    return torch.from_numpy(values).view(P, G, -1).mean(2)


def compare(
    judge: Judge, images: np.ndarray, records: Sequence[dict], shown: Tensor, generator: torch.Generator
) -> Tensor:
    """uint8 (P, G, H, W, 3) of P records, and which pairs to show, (P, G, G) bool → verdicts (P, G, G), NaN elsewhere.

    Of clips, (P, G, F, H, W, 3), it is asked frame by frame.  ValueError when the judge does not give one number
    in [0, 1] for each pair.
    """
    P, G = images.shape[:2]
    prompt, i, j = shown.nonzero().unbind(1)
    first, second = (prompt * G + i).numpy(), (prompt * G + j).numpy()
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    frames = images.reshape(P * G, -1, *images.shape[-3:]).swapaxes(0, 1)
    said = np.mean([judge(frame, repeated(records, G), first, second, rng) for frame in frames], 0)
    if said.shape != first.shape:
        raise ValueError(f"the judge {judge} answered with shape {said.shape} where {first.shape} pairs were shown")
    if not np.all((said >= 0) & (said <= 1)):
        raise ValueError(f"the judge {judge} answered outside of [0, 1]: {said.min()} to {said.max()}")
    judged = torch.full(shown.shape, torch.nan)
    judged[prompt, i, j] = torch.from_numpy(said.astype(np.float32))
    return judged


def both_orders(prompts: int, group: int) -> Tensor:
    """(P, G, G) bool: every pair, twice."""
    return ~torch.eye(group, dtype=torch.bool).expand(prompts, group, group)


def repeated(records: Sequence[dict], times: int) -> list[dict]:
    return [record for record in records for _ in range(times)]
