"""From finished latents to what rewards and judges say about them: the border between images and tensors."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..algorithms.base import WIN_RATE, OnPolicy, Requirements, Scores
from ..models.pipeline import Model
from ..objectives.preferences import pairs
from ..rewards.base import Judge, RewardModels
from ..rewards.grouped import judge_groups, score_groups
from ..rewards.registry import DEFAULT_REWARD_MODELS
from ..train.clock import Clock
from ..train.scores import Score


def scorer(
    model: Model, algorithm: OnPolicy, judge: Judge | None, models: RewardModels = DEFAULT_REWARD_MODELS
) -> Score:
    """Return the function that scores finished latents of a rollout."""
    return partial(score_latents, model, algorithm.requirements, judge, models)


def score_latents(
    model: Model,
    requirements: Requirements,
    judge: Judge | None,
    models: RewardModels,
    leaves: Tensor,
    records: Sequence[dict],
    generators: Sequence[torch.Generator],
    clock: Clock,
) -> Scores:
    """Return the scores of finished latents on the CPU, where advantages are fp64.

    Which pairs a judge sees, and its random numbers, depend on the prompt's own generator.

    Args:
        model: The model that decodes latents.
        requirements: The rewards and the pairs to compare.
        judge: The judge, where pairs are compared.
        models: Where rewards that are networks run.
        leaves: Finished latents (P, G, ...).
        records: P records of the prompts.
        generators: P generators.
        clock: The clock that times decoding and rewards.
    """
    if not requirements.rewards and requirements.comparisons is None:
        return Scores({})
    with clock("decode"):
        images = model.decode(leaves.flatten(0, 1))
    images = images.reshape(*leaves.shape[:2], *images.shape[1:])
    with clock("reward"):
        answers = {name: score_groups(name, images, records, models) for name in requirements.rewards}
        scores = Scores(
            {name: answer.values for name, answer in answers.items()},
            parts={f"{name}/{part}": value for name, answer in answers.items() for part, value in answer.parts.items()},
            failures={name: answer.failures for name, answer in answers.items()},
        )
        if requirements.comparisons is None:
            return scores
        assert judge is not None
        G, comparisons = images.shape[1], requirements.comparisons
        shown = torch.stack([pairs(G, comparisons.opponents, comparisons.both_orders, stream) for stream in generators])
        judged, failures = judge_groups(judge, images, records, shown, generators)
        return replace(scores, judged={WIN_RATE: judged}, failures={**scores.failures, WIN_RATE: failures})
