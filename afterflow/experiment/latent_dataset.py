"""Images with captions become latents and embeddings before training starts: selected by reward, and encoded once."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..data.images import (
    UNREADABLE,
    CaptionedImage,
    ImageSource,
    LeftOut,
    ListedImages,
    ShapesImages,
    StoredSource,
    image_noun,
    num_empty_tokens,
)
from ..data.pairs import SampledPairs
from ..data.prompts import batch_rows, bucket_rows
from ..models.base import latents_file, read_cache_file, write_cache_file
from ..models.pipeline import Model
from ..rewards.base import RewardModels
from ..rewards.grouped import score_groups
from ..rewards.registry import DEFAULT_REWARD_MODELS
from ..sampling.conditioning import Conditioning, Pairs, Velocity
from ..sampling.device_copies import to_device
from ..system.errors import InputError
from ..system.input_pictures import with_digests
from ..train.distributed import ALONE, Processes
from .config import Run
from .contents import reward_contents
from .prompt_checks import check_min_reward
from .sampled_pairs import PairSampler

_log = logging.getLogger(__name__)

SHARD = 256
"""Number of pictures in one file of the cache."""
Shard = list[CaptionedImage]
"""Pictures of one shape that are encoded together."""


class Bucket(NamedTuple):
    """The images of one shape."""

    latents: Tensor
    """Latents (N, ...), of pairs (N, 2, ...), on the CPU."""
    records: list[dict]


class LearntImages(NamedTuple):
    """What a run of supervised training learns from."""

    pairs: Callable[[int], Pairs]
    """Each iteration's batch of latents with prompts."""
    prompts: Conditioning
    """The prompts of all images, encoded beforehand."""
    left_out: Counter[str]
    """Reason → number of images, or of pairs, that are left out."""
    drawn: str | None
    """Digest of which images are the pairs that were drawn for the run; None for pictures that were there."""


def image_pairs(
    run: Run,
    data: ImageSource,
    model: Model,
    encode: Callable[[Sequence[dict]], Conditioning],
    reference: Velocity | None = None,
    processes: Processes = ALONE,
) -> LearntImages:
    """Return each iteration's batch of latents with prompts, all encoded beforehand.

    Args:
        run: The run.
        data: The images that it learns from.
        model: The model whose autoencoder encodes them.
        encode: Encodes the prompts of records.
        reference: The model before training, which draws what its user does not bring.
        processes: The processes of the run, which share the pictures that are there.
    """
    drawn = None
    if isinstance(data, SampledPairs):
        assert reference is not None
        latents, records, left_out, drawn = PairSampler(run, data, model, reference).gather(encode, processes)
        buckets = [Bucket(latents, records)]
    else:
        assert isinstance(data, ListedImages)
        buckets, left_out = gather_buckets(data, model, run.seed, run.reward_models, processes)
    cond = encode([record for bucket in buckets for record in bucket.records])
    max_empty = data.empty_tokens if isinstance(data, ShapesImages) else 0
    sizes = torch.tensor([len(bucket.records) for bucket in buckets])
    bucket_of, first = torch.arange(len(buckets)).repeat_interleave(sizes), sizes.cumsum(0) - sizes

    def pairs(step: int) -> Pairs:
        if len(buckets) == 1:
            rows = batch_rows(len(bucket_of), step, run.batches.batch, run.seed)
        else:
            rows = bucket_rows(bucket_of, step, run.batches.batch, run.seed)
        bucket = int(bucket_of[rows[0]])
        latents = to_device(buckets[bucket].latents[rows - first[bucket]], cond.device)
        prompts = replace(cond[rows], padding=num_empty_tokens(max_empty, step, run.seed))
        winners, losers = latents.unbind(1) if data.pairs else (latents, None)
        return Pairs(winners, prompts, rejected=losers)

    return LearntImages(pairs, cond, left_out, drawn)


def gather_buckets(
    data: ListedImages,
    model: Model,
    seed: int,
    models: RewardModels = DEFAULT_REWARD_MODELS,
    processes: Processes = ALONE,
) -> tuple[list[Bucket], Counter[str]]:
    """Return the images to learn from, shape by shape, and reason → number of those left out.

    InputError is raised when none is left.

    Args:
        data: The images.
        model: The model whose autoencoder encodes them.
        seed: Seed of what is drawn or rendered for the run.
        models: Where rewards that are networks run.
        processes: Each encodes its share of the images, and all get all of them.
    """
    parts: dict[tuple[int, int], list[tuple[Tensor, list[dict]]]] = {}
    left_out: Counter[str] = Counter()
    low, surveyed = "below min_reward", 0
    used = used_images(data.images(seed, model.drawn_size, model.pixel_unit), left_out)
    encode = lambda part: encode_shard(part, model, data, models)
    for part, (z, chosen, unread) in encode_in_shares(split_shards(used), encode, processes):
        parts.setdefault(part[0].size, []).append((z, [part[i].record for i in chosen]))
        surveyed += len(part)
        left_out[UNREADABLE] += unread
        left_out[low] += len(part) - unread - len(chosen)
    buckets = [
        Bucket(torch.cat([z for z, _ in of_size]), [record for _, records in of_size for record in records])
        for of_size in parts.values()
    ]
    buckets = [bucket for bucket in buckets if bucket.records]
    count, left_out = sum(len(bucket.records) for bucket in buckets), +left_out
    total = count + left_out.total()
    if count < surveyed or data.min_reward:
        missing = left_out[UNREADABLE]
        _log.info(
            f"{count} of {total} {image_noun(data)}: {missing} cannot be read, {left_out[low]} are below min_reward"
        )
    if not buckets:
        raise InputError(
            f"none of {total} {image_noun(data)} is left to learn from; lower min_reward or mend the files"
        )
    return buckets, left_out


def used_images(images: Iterable[CaptionedImage | LeftOut], left_out: Counter[str]) -> Iterator[CaptionedImage]:
    """Yield the images that are used, and count the others by their reason."""
    for image in images:
        if isinstance(image, LeftOut):
            left_out[image.reason] += 1
        else:
            yield image


def split_shards(pictures: Iterator[CaptionedImage]) -> Iterator[list[CaptionedImage]]:
    """Yield the pictures of one file of the cache after another's, each of one shape."""
    for _, of_size in groupby(pictures, key=lambda picture: picture.size):
        while part := list(islice(of_size, SHARD)):
            yield part


def encode_in_shares(
    shards: Iterator[Shard], encode: Callable[[Shard], tuple[Tensor, list[int], int]], processes: Processes
) -> Iterator[tuple[Shard, tuple[Tensor, list[int], int]]]:
    """Yield each shard with what `encode` makes of it; every process encodes one of as many shards as there are.

    Where it fails on one process, all stop.
    """
    while turn := list(islice(shards, processes.count)):
        own = torch.empty(0)

        def encode_own(turn: list[Shard] = turn) -> tuple[torch.Size, list[int], int] | None:
            nonlocal own
            if processes.rank >= len(turn):
                return None
            own, chosen, unread = encode(turn[processes.rank])
            return own.shape, chosen, unread

        made = processes.run_on_all(encode_own)[: len(turn)]
        sizes = [math.prod(shape) for shape, *_ in made]
        latents = processes.all_gather_rows(own.flatten(), sum(sizes)).split(sizes)
        for shard, z, (shape, *others) in zip(turn, latents, made):
            yield shard, (z.reshape(shape), *others)


def encode_shard(
    part: Sequence[CaptionedImage], model: Model, data: ListedImages, models: RewardModels
) -> tuple[Tensor, list[int], int]:
    """Return latents of the pictures to learn from, their indices, and the number of pictures that cannot be read.

    Args:
        part: The pictures of the shard.
        model: The model whose autoencoder encodes them.
        data: Their source, which says what rewards they must reach and whether the result is stored.
        models: Where rewards that are networks run.
    """
    file = cache_file(part, model, data, models)
    stored = read_cache_file(file) if data.cache else None
    if stored is not None:
        return stored["latents"], stored["kept"].tolist(), 0
    loaded = [picture.pixels() for picture in part]
    readable = [i for i, pixels in enumerate(loaded) if pixels is not None]
    images = np.stack([loaded[i] for i in readable]) if readable else np.zeros((0, 1, 1, 3), np.uint8)  # type: ignore[arg-type]
    passes = reaches_rewards(
        images[:, 0] if data.pairs else images, [part[i].record for i in readable], data.min_reward, models
    )
    chosen = [i for i, passed in zip(readable, passes) if passed]
    shape = *model.latent_shape[:-2], *(side // model.scale_factor for side in part[0].size)
    latents = torch.empty(0, *shape)
    if chosen:
        wanted = images[passes]
        latents = model.encode_images(wanted.reshape(-1, *wanted.shape[2:]) if data.pairs else wanted).cpu()
    if latents.shape[1:] != shape:
        raise InputError(
            f"what is learnt from has latents {tuple(latents.shape[1:])}, and the model draws {shape}; set "
            "model.frames, 1 for images"
        )
    latents = latents.unflatten(0, (-1, 2)) if data.pairs else latents
    if data.cache and len(readable) == len(part):  # what cannot be read today is asked for again
        write_cache_file(file, {"latents": latents.contiguous(), "kept": torch.tensor(chosen, dtype=torch.long)})
    return latents, chosen, len(part) - len(readable)


def reaches_rewards(
    images: np.ndarray, records: Sequence[dict], min_reward: Mapping[str, float], models: RewardModels
) -> np.ndarray:
    """Return (B,) bool: which of B images reach every reward.  InputError is raised where one has no score."""
    passes = np.ones(len(images), bool)
    for name, value in min_reward.items() if len(images) else ():
        check_min_reward([name], records, models)
        scores = score_groups(name, images[:, None], records, models)
        if scores.failures:
            raise InputError(f"min_reward: {name} has no score for the image of {scores.failures[0]}")
        passes &= scores.values[:, 0].numpy() >= value
    return passes


def cache_file(part: Sequence[CaptionedImage], model: Model, data: ImageSource, models: RewardModels) -> Path:
    """Return the file of these pictures' latents; its name is a digest of everything that decides them."""
    inputs = [
        model.image_key,
        __version__,
        {name: (value, reward_contents(name, models)) for name, value in data.min_reward.items()},
        repr(models) if data.min_reward else "",
        [(p.digest, with_digests(p.record) if data.min_reward else "") for p in part],
        part[0].size,
        data.background if isinstance(data, StoredSource) else "",
    ]
    return latents_file(inputs)
