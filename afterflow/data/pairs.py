"""Pairs of images to learn from, of which one is preferred: from a folder, a data set, or drawn by the model."""

import hashlib
import logging
import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..system.checks import check_at_least_one, check_not_negative
from ..system.errors import ConfigError, InputError
from ..system.optional_dependencies import check_extra
from ..system.text_files import check_text
from .hub_datasets import check_columns, encoded_bytes, load_hub_dataset, named_caption, without_pictures
from .image_folders import NO_CAPTION, Entry, Listing, no_captions, record_of_row
from .images import (
    CaptionedImage,
    ImageSource,
    LeftOut,
    StoredSource,
    SurveyedImage,
    bucket_sizes,
    check_images,
    check_stored,
    left_out_or_error,
    same_shape,
    survey_images,
)
from .pair_folders import TIED, PairListing, list_pairs
from .prompt_sources import Prompts

_log = logging.getLogger(__name__)

UNLABELLED = "without a winner, because they have no label"
SAME = "whose two pictures are the same"


class SurveyedPair(NamedTuple):
    """A pair that is used, looked at but not decoded."""

    winner: SurveyedImage
    """Picture that is preferred."""
    loser: SurveyedImage
    """Picture of the same prompt and shape that lost against it."""


@dataclass(frozen=True, kw_only=True)
class StoredPairs(StoredSource):
    """Pairs of images that users have."""

    pairs: ClassVar[bool] = True

    @abstractmethod
    def pair_listing(self) -> PairListing:
        """List the pairs with their captions; InputError where there are none that can be used."""

    def images(self, seed: int, size: tuple[int, int], unit: int = 1) -> Iterator[CaptionedImage | LeftOut]:
        """Yield the pairs in the order of their listing, with buckets shape after shape.

        What the listing holds is said in one line before the first.
        """
        listing = self.pair_listing()
        left_out, remarks = Counter({reason: n for reason, n in listing.left_out.items() if n}), Counter()
        sizes = bucket_sizes(size, unit) if self.buckets else [size]
        pairs = []
        for entries in listing.pairs:
            surveyed = survey_pair(self, entries, sizes, remarks)
            if isinstance(surveyed, SurveyedPair):
                pairs.append(surveyed)
            else:
                left_out[surveyed] += 1
        total = len(pairs) + left_out.total()
        parts = [f"{len(pairs)} of {total} pairs are used, from {listing.origin}"]
        parts += ["left out: " + ", ".join(f"{n} {reason}" for reason, n in left_out.items())] if left_out else []
        _log.info("; ".join([*parts, *(f"{remark}: {n}" for remark, n in remarks.items() if n)]))
        yield from (LeftOut(reason) for reason, count in left_out.items() for _ in range(count))
        for shape in sorted({pair.winner.size for pair in pairs}):
            for pair in pairs:
                if pair.winner.size == shape:
                    digest = hashlib.sha256(f"{pair.winner.digest} {pair.loser.digest}".encode()).hexdigest()
                    yield CaptionedImage(pair.winner.entry.record, digest, partial(self.load_pair, pair), shape)

    def load_pair(self, pair: SurveyedPair) -> np.ndarray | None:
        """Decode winner and loser, uint8 (2, H, W, 3); None where one of them may be left out."""
        loaded = [self.load(image) for image in pair]
        return None if any(pixels is None for pixels in loaded) else np.stack(loaded)  # type: ignore[arg-type]


def survey_pair(
    source: StoredPairs, entries: tuple[Entry, Entry], sizes: list[tuple[int, int]], remarks: Counter[str]
) -> SurveyedPair | str:
    """Look at the headers of a pair; return it, or the reason for which it is left out, and count what is remarkable.

    InputError where a picture cannot be used, or where two shapes would be cropped differently.
    """
    surveys = [survey_images(source, Listing("", entries[:1], {}), sizes)]
    if surveys[0].images:  # both are brought to one shape, that of the winner
        surveys.append(survey_images(source, Listing("", entries[1:], {}), [surveys[0].images[0].size]))
    if surveys[-1].left_out:
        return next(iter(surveys[-1].left_out))
    (winner,), (loser,) = (survey.images for survey in surveys)
    if winner.digest == loser.digest:
        return SAME
    if not same_shape(winner.own_size, loser.own_size):
        shapes = [f"{image.entry.location}: {image.own_size[1]} x {image.own_size[0]} px" for image in (winner, loser)]
        error = InputError(f"{shapes[0]}, and {shapes[1]}; the pictures of a pair have one shape")
        left_out_or_error(source.unreadable, winner.entry.location, error)
        return "of two shapes"
    for survey in surveys:
        remarks.update(survey.remarks)
    return SurveyedPair(winner, loser)


@dataclass(frozen=True)
class PairFolder(StoredPairs):
    """A folder of pairs, in a layout that `pair_folders.list_pairs` knows, or its .jsonl file."""

    path: str
    """Path of the folder with pairs.jsonl, or with a folder for each pair."""

    def __post_init__(self) -> None:
        check_stored(self)

    def pair_listing(self) -> PairListing:
        """List the pairs of the folder."""
        check_images(self.path, (".jsonl",))
        return list_pairs(Path(self.path), self.caption)


@dataclass(frozen=True)
class HubPairs(StoredPairs):
    """A data set of the Hugging Face hub, or of a folder, with two images in a row.  The defaults are Pick-a-Pic's."""

    dataset: str
    """Id owner/name on the hub, or path of a folder."""
    split: str = "train"
    """Split to read."""
    revision: str | None = None
    """Branch, tag or commit of the data set."""
    first: str = "jpg_0"
    """Name of the column of first images."""
    second: str = "jpg_1"
    """Name of the column of second images."""
    label: str | None = "label_0"
    """Name of the column that says how far the first image is preferred, from 0 to 1; .5 is a tie.  None: it always is,
    as where the columns are called chosen and rejected."""

    def __post_init__(self) -> None:
        check_images(self.dataset)
        check_stored(self)
        check_extra(f"pairs of {self.dataset}", ["datasets"], "data")

    def pair_listing(self) -> PairListing:
        """List the pairs of the data set."""
        import datasets

        try:
            rows = load_hub_dataset(self.dataset, self.split, self.revision)
        except InputError as error:
            raise InputError(f"pairs {error}") from None
        check_columns(rows, self.dataset, self.first, self.second, self.label, named_caption(self.caption))
        images = (self.first, self.second)
        encoded = rows.select_columns(list(images))
        for column in images:
            encoded = encoded.cast_column(column, datasets.Image(decode=False))
        pairs, left_out = [], Counter()
        for i, row in enumerate(map(dict, without_pictures(rows.remove_columns(list(images)), self.dataset))):
            location = f"{self.dataset}[{i}]"
            preference = 1.0 if self.label is None else label_value(row, self.label, location)
            if preference is None or preference == 0.5:
                left_out[UNLABELLED if preference is None else TIED] += 1
                continue
            record = record_of_row(row, self.caption, None, location)
            if record is None:
                left_out[NO_CAPTION] += 1
                continue
            check_text(record["prompt"], location)
            read = lambda i, column: encoded_bytes(encoded[i][column], self.dataset)
            entries = [Entry(f"{location}.{column}", record, partial(read, i, column)) for column in images]
            pairs.append(tuple(entries if preference > 0.5 else entries[::-1]))
        if not pairs and left_out[NO_CAPTION]:
            raise no_captions(self.dataset, self.caption)
        return PairListing(f"{self.dataset} of the hub", pairs, left_out)


def label_value(row: Mapping[str, Any], label: str, location: str) -> float | None:
    """Return how far the first image of a row is preferred, in [0, 1]; None where nobody said.

    Pick-a-Pic has a column has_label that is false for such rows.  InputError for what is no such number.
    """
    value = row[label]
    if value is None or row.get("has_label") is False or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(
            f"{location}: {label} is {value!r}; it is a number from 0 to 1, or name another with data.label"
        )
    return float(value)


@dataclass(frozen=True)
class SampledPairs(ImageSource):
    """Pairs of the model's own images of a prompt, drawn before training: the best and the worst by a reward."""

    pairs: ClassVar[bool] = True

    prompts: Prompts
    """Prompts of the images."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Rewards and how much each counts; win_rate is that of the run's judge."""
    per_prompt: int = 8
    """Number of images of a prompt."""
    steps: int = 20
    """Number of ODE steps."""
    guidance_scale: float | None = None
    """Scale of classifier-free guidance of the images.  None: the run's."""
    min_reward: Mapping[str, float] = field(default_factory=dict)
    """Lowest value of each named reward at which a winner is used for training."""
    cache: bool = True
    """Whether latents are stored on disk for the next run."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "steps", prefix="data.")
        check_not_negative(self, "guidance_scale", prefix="data.")
        if self.per_prompt < 2:
            raise ConfigError(f"data.per_prompt = {self.per_prompt}: a pair is of two images; take at least 2")
        if not any(self.weights.values()):
            raise ConfigError("data.weights: name at least one reward and its weight, by which images of a prompt win")
