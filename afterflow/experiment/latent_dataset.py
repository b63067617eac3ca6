"""Images with captions → latents and embeddings, before training starts: curated, and encoded once."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from .. import __version__
from ..data.images import CaptionedImage, ImageSource, ShapesImages, num_empty_tokens
from ..data.prompts import batch_rows, check_record
from ..models.base import Model, cache_folder, write_cache_file
from ..models.generate import encode_records, picture_size
from ..rewards.base import RewardModels
from ..rewards.grouped import score_groups
from ..rewards.registry import DEFAULT_REWARD_MODELS, find_reward
from ..sampling.conditioning import Conditioning, Pairs
from .config import Run

SHARD = 256
"""Pictures of one file of the cache."""


def image_pairs(run: Run, data: ImageSource, model: Model) -> tuple[Callable[[int], Pairs], Conditioning]:
    """Each iteration's batch of latents with prompts, all encoded beforehand; and the prompts."""
    latents, records = gathered(data, model, run.seed, run.reward_models)
    cond = encode_records(model, records)
    most = data.empty_tokens if isinstance(data, ShapesImages) else 0

    def pairs(step: int) -> Pairs:
        rows = batch_rows(len(records), step, run.batches.batch, run.seed)
        return Pairs(
            latents[rows].to(cond.index.device), replace(cond[rows], padding=num_empty_tokens(most, step, run.seed))
        )

    return pairs, cond


def gathered(
    data: ImageSource, model: Model, seed: int, models: RewardModels = DEFAULT_REWARD_MODELS
) -> tuple[Tensor, list[dict]]:
    """Latents (N, ...), on the CPU, and records of the pictures to learn from; ValueError when none is left."""
    latents, records, missing, asked = [], [], 0, 0
    for part in shards(data.images(seed, picture_size(model))):
        z, kept, unread = encoded_shard(part, model, data.min_reward, data.cache, models)
        latents.append(z)
        records += [part[i].record for i in kept]
        missing, asked = missing + unread, asked + len(part)
    if missing or data.min_reward:
        low = asked - missing - len(records)
        print(f"{len(records)} of {asked} images: {missing} cannot be read, {low} are below min_reward")
    if not records:
        raise ValueError(f"none of {asked} images is left to learn from; lower min_reward or mend the files")
    return torch.cat(latents), records


def shards(pictures: Iterator[CaptionedImage]) -> Iterator[list[CaptionedImage]]:
    while part := list(islice(pictures, SHARD)):
        yield part


def encoded_shard(
    part: Sequence[CaptionedImage], model: Model, least: Mapping[str, float], cache: bool, models: RewardModels
) -> tuple[Tensor, list[int], int]:
    """Latents of the pictures to learn from, their places in the shard, and how many pictures could not be read."""
    file = cache_file(part, model, least, models)
    if cache and file.is_file():
        stored = load_file(file)
        return stored["latents"], stored["kept"].tolist(), 0
    loaded = [picture.pixels() for picture in part]
    readable = [i for i, pixels in enumerate(loaded) if pixels is not None]
    images = np.stack([loaded[i] for i in readable]) if readable else np.zeros((0, 1, 1, 3), np.uint8)  # type: ignore[arg-type]
    good = good_enough(images, [part[i].record for i in readable], least, models)
    kept = [i for i, passes in zip(readable, good) if passes]
    latents = model.encode_images(images[good]).cpu() if kept else torch.empty(0, *model.latent_shape)
    if latents.shape[1:] != model.latent_shape:
        raise ValueError(
            f"what is learnt from has latents {tuple(latents.shape[1:])}, and the model draws "
            f"{tuple(model.latent_shape)}; set model.frames, 1 for images"
        )
    if cache and len(readable) == len(part):  # what cannot be read today is asked for again
        write_cache_file(file, {"latents": latents.contiguous(), "kept": torch.tensor(kept, dtype=torch.long)})
    return latents, kept, len(part) - len(readable)


def good_enough(
    images: np.ndarray, records: Sequence[dict], least: Mapping[str, float], models: RewardModels
) -> np.ndarray:
    """(B,) bool: which of B images reach every reward; ValueError where one has no score."""
    good = np.ones(len(images), bool)
    for name, value in least.items() if len(images) else ():
        needs = find_reward(name).needs
        asked = {} if needs is None else {f"min_reward {name}": needs}
        for record in records:
            check_record(record, f"the image of {record['prompt']!r}", asked)
        answer = score_groups(name, images[:, None], records, models)
        if answer.failures:
            raise ValueError(f"min_reward: {name} has no score for the image of {answer.failures[0]}")
        good &= answer.values[:, 0].numpy() >= value
    return good


def cache_file(part: Sequence[CaptionedImage], model: Model, least: Mapping[str, float], models: RewardModels) -> Path:
    """Where the latents of these pictures lie: its name is decided by all that decides them."""
    told = [
        model.image_key,
        __version__,
        {name: (value, find_reward(name).version) for name, value in least.items()},
        repr(models) if least else "",
        [(p.digest, p.record if least else "") for p in part],
    ]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()
    return cache_folder() / "latents" / f"{digest[:32]}.safetensors"
