"""From finished latents to what rewards and judges say about them: the border between images and tensors."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..algorithms.base import WIN_RATE, OnPolicy, Requirements, Scores
from ..models.generate import decode_groups
from ..models.pipeline import Model
from ..objectives.preferences import pairs
from ..rewards.base import Judge, RewardModels
from ..rewards.grouped import judge_groups, score_groups
from ..rewards.registry import DEFAULT_REWARD_MODELS
from ..train.clock import Clock
from ..train.scores import Score
from .group_recorder import GroupRecorder


def scorer(
    model: Model,
    algorithm: OnPolicy,
    judge: Judge | None,
    models: RewardModels = DEFAULT_REWARD_MODELS,
    recorder: GroupRecorder | None = None,
) -> Score:
    """Return the function that scores finished latents of a rollout.

    Args:
        model: The model that decodes latents.
        algorithm: The algorithm, whose requirements name the rewards and the pairs to compare.
        judge: The judge, where pairs are compared.
        models: Where rewards that are networks run.
        recorder: What looks at the images and their scores; None: nobody does.
    """
    requirements = algorithm.requirements

    def score(leaves: Tensor, records: Sequence[dict], generators: Sequence[torch.Generator], clock: Clock) -> Scores:
        if not scores_anything(requirements):
            return Scores({})
        images = decode_leaves(model, leaves, clock)
        scores = score_decoded(requirements, judge, models, images, records, generators, clock)
        if recorder is not None:
            recorder.add(images, records, scores)
        return scores

    return score


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
    if not scores_anything(requirements):
        return Scores({})
    images = decode_leaves(model, leaves, clock)
    return score_decoded(requirements, judge, models, images, records, generators, clock)


def scores_anything(requirements: Requirements) -> bool:
    """Return whether an algorithm needs a score of an image or a comparison of two."""
    return bool(requirements.rewards) or requirements.comparisons is not None


def decode_leaves(model: Model, leaves: Tensor, clock: Clock) -> np.ndarray:
    """Decode finished latents (P, G, ...) to uint8 images (P, G, H, W, 3)."""
    with clock("decode"):
        return decode_groups(model, leaves)


def score_decoded(
    requirements: Requirements,
    judge: Judge | None,
    models: RewardModels,
    images: np.ndarray,
    records: Sequence[dict],
    generators: Sequence[torch.Generator],
    clock: Clock,
) -> Scores:
    """Return the scores of images.

    Which pairs a judge sees, and its random numbers, depend on the prompt's own generator.

    Args:
        requirements: The rewards and the pairs to compare.
        judge: The judge, where pairs are compared.
        models: Where rewards that are networks run.
        images: uint8 images (P, G, H, W, 3), or clips.
        records: P records of the prompts.
        generators: P generators.
        clock: The clock that times rewards.
    """
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
