"""Images with captions become latents and embeddings before training starts: selected by reward, and encoded once."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..data.images import CaptionedImage, ImageSource, ShapesImages, num_empty_tokens
from ..data.prompts import batch_rows, check_record
from ..models.base import cache_folder, read_cache_file, write_cache_file
from ..models.generate import encode_records, picture_size
from ..models.pipeline import Model
from ..rewards.base import RewardModels
from ..rewards.grouped import score_groups
from ..rewards.registry import DEFAULT_REWARD_MODELS, find_reward
from ..sampling.conditioning import Conditioning, Pairs
from ..system.errors import InputError
from .config import Run

_log = logging.getLogger(__name__)

SHARD = 256
"""Number of pictures in one file of the cache."""


def image_pairs(run: Run, data: ImageSource, model: Model) -> tuple[Callable[[int], Pairs], Conditioning]:
    """Return each iteration's batch of latents with prompts, all encoded beforehand, and the prompts."""
    latents, records = gather_latents(data, model, run.seed, run.reward_models)
    cond = encode_records(model, records)
    max_empty = data.empty_tokens if isinstance(data, ShapesImages) else 0

    def pairs(step: int) -> Pairs:
        rows = batch_rows(len(records), step, run.batches.batch, run.seed)
        return Pairs(
            latents[rows].to(cond.index.device),
            replace(cond[rows], padding=num_empty_tokens(max_empty, step, run.seed)),
        )

    return pairs, cond


def gather_latents(
    data: ImageSource, model: Model, seed: int, models: RewardModels = DEFAULT_REWARD_MODELS
) -> tuple[Tensor, list[dict]]:
    """Return latents (N, ...), on the CPU, and records of the pictures to learn from.

    InputError is raised when none is left.
    """
    latents, records, missing, total = [], [], 0, 0
    for part in split_shards(data.images(seed, picture_size(model))):
        z, chosen, unread = encode_shard(part, model, data.min_reward, data.cache, models)
        latents.append(z)
        records += [part[i].record for i in chosen]
        missing, total = missing + unread, total + len(part)
    if missing or data.min_reward:
        low = total - missing - len(records)
        _log.info(f"{len(records)} of {total} images: {missing} cannot be read, {low} are below min_reward")
    if not records:
        raise InputError(f"none of {total} images is left to learn from; lower min_reward or mend the files")
    return torch.cat(latents), records


def split_shards(pictures: Iterator[CaptionedImage]) -> Iterator[list[CaptionedImage]]:
    """Yield the pictures of one file of the cache after another's."""
    while part := list(islice(pictures, SHARD)):
        yield part


def encode_shard(
    part: Sequence[CaptionedImage], model: Model, min_reward: Mapping[str, float], cache: bool, models: RewardModels
) -> tuple[Tensor, list[int], int]:
    """Return latents of the pictures to learn from, their indices, and the number of pictures that cannot be read.

    Args:
        part: The pictures of the shard.
        model: The model whose autoencoder encodes them.
        min_reward: Rewards that a picture must reach.
        cache: Whether the result is stored, and read where it is stored.
        models: Where rewards that are networks run.
    """
    file = cache_file(part, model, min_reward, models)
    stored = read_cache_file(file) if cache else None
    if stored is not None:
        return stored["latents"], stored["kept"].tolist(), 0
    loaded = [picture.pixels() for picture in part]
    readable = [i for i, pixels in enumerate(loaded) if pixels is not None]
    images = np.stack([loaded[i] for i in readable]) if readable else np.zeros((0, 1, 1, 3), np.uint8)  # type: ignore[arg-type]
    passes = reaches_rewards(images, [part[i].record for i in readable], min_reward, models)
    chosen = [i for i, passed in zip(readable, passes) if passed]
    latents = model.encode_images(images[passes]).cpu() if chosen else torch.empty(0, *model.latent_shape)
    if latents.shape[1:] != model.latent_shape:
        raise InputError(
            f"what is learnt from has latents {tuple(latents.shape[1:])}, and the model draws "
            f"{tuple(model.latent_shape)}; set model.frames, 1 for images"
        )
    if cache and len(readable) == len(part):  # what cannot be read today is asked for again
        write_cache_file(file, {"latents": latents.contiguous(), "kept": torch.tensor(chosen, dtype=torch.long)})
    return latents, chosen, len(part) - len(readable)


def reaches_rewards(
    images: np.ndarray, records: Sequence[dict], min_reward: Mapping[str, float], models: RewardModels
) -> np.ndarray:
    """Return (B,) bool: which of B images reach every reward.  InputError is raised where one has no score."""
    passes = np.ones(len(images), bool)
    for name, value in min_reward.items() if len(images) else ():
        needs = find_reward(name).needs
        required = {} if needs is None else {f"min_reward {name}": needs}
        for record in records:
            check_record(record, f"the image of {record['prompt']!r}", required)
        scores = score_groups(name, images[:, None], records, models)
        if scores.failures:
            raise InputError(f"min_reward: {name} has no score for the image of {scores.failures[0]}")
        passes &= scores.values[:, 0].numpy() >= value
    return passes


def cache_file(
    part: Sequence[CaptionedImage], model: Model, min_reward: Mapping[str, float], models: RewardModels
) -> Path:
    """Return the file of these pictures' latents; its name is a digest of everything that decides them."""
    inputs = [
        model.image_key,
        __version__,
        {name: (value, find_reward(name).version) for name, value in min_reward.items()},
        repr(models) if min_reward else "",
        [(p.digest, p.record if min_reward else "") for p in part],
    ]
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()
    return cache_folder() / "latents" / f"{digest[:32]}.safetensors"
