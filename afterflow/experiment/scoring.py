"""From finished latents to what rewards and judges say about them: the border between images and tensors."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..algorithms.base import WIN_RATE, OnPolicy, Scores
from ..models.base import Model
from ..objectives.preferences import pairs
from ..rewards.base import Judge, RewardModels
from ..rewards.grouped import judge_groups, score_groups
from ..rewards.registry import DEFAULT_REWARD_MODELS
from ..train.clock import Clock
from ..train.scores import Score


def scorer(
    model: Model, algorithm: OnPolicy, judge: Judge | None, models: RewardModels = DEFAULT_REWARD_MODELS
) -> Score:
    """What `explore` calls with finished latents."""
    return partial(score, model, algorithm, judge, models)


def score(
    model: Model,
    algorithm: OnPolicy,
    judge: Judge | None,
    models: RewardModels,
    leaves: Tensor,
    records: Sequence[dict],
    generators: Sequence[torch.Generator],
    clock: Clock,
) -> Scores:
    """Finished latents (P, G, ...) of P records → scores on the CPU, where advantages are fp64.

    Which pairs a judge is shown, and what it draws, depends on the prompt's own generator.
    """
    asks = algorithm.requirements
    if not asks.rewards and asks.comparisons is None:
        return Scores({})
    with clock("decode"):
        images = model.decode(leaves.flatten(0, 1))
    images = images.reshape(*leaves.shape[:2], *images.shape[1:])
    with clock("reward"):
        answers = {name: score_groups(name, images, records, models) for name in asks.rewards}
        scores = Scores(
            {name: answer.values for name, answer in answers.items()},
            parts={f"{name}/{part}": value for name, each in answers.items() for part, value in each.parts.items()},
            failures={name: answer.failures for name, answer in answers.items()},
        )
        if asks.comparisons is None:
            return scores
        assert judge is not None
        G, wanted = images.shape[1], asks.comparisons
        shown = torch.stack([pairs(G, wanted.opponents, wanted.both_orders, own) for own in generators])
        judged, failures = judge_groups(judge, images, records, shown, generators)
        return replace(scores, judged={WIN_RATE: judged}, failures={**scores.failures, WIN_RATE: failures})
