"""Images with captions to learn from: rendered, from a folder, or from a data set of the hub."""

import hashlib
import logging
import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from ..envs.shapes import prompts, render
from ..envs.shapes.world import TAGS, world_size
from ..sampling.seeds import number
from ..system.checks import check_at_least_one, check_not_negative
from ..system.errors import ConfigError, InputError
from ..system.input_pictures import input_names, input_size
from ..system.optional_dependencies import check_extra
from ..system.pictures import check_color, fit_picture, read_header, read_picture
from ..system.text_files import check_text
from .hub_datasets import check_columns, encoded_bytes, load_hub_dataset, named_caption, without_pictures
from .image_folders import (
    DEFAULT_CAPTION,
    NO_CAPTION,
    Entry,
    Listing,
    check_differs,
    list_images,
    no_captions,
    record_of_row,
)
from .prompts import check_shapes_options

_log = logging.getLogger(__name__)

UNREADABLE = "that cannot be read"
"""Reason for which images are left out, after their number."""


class CaptionedImage(NamedTuple):
    """An image, or a clip, with its record; it is decoded only when its pixels are asked for."""

    record: dict
    """Record {"prompt": caption, ...}."""
    digest: str
    """Digest of the encoded or rendered content, before it is cropped."""
    pixels: Callable[[], np.ndarray | None]
    """Function () → uint8 (H, W, 3), clips (F, H, W, 3); it returns None where an unreadable image may be left out."""
    size: tuple[int, int]
    """Height and width of the pixels."""


def rendered_image(record: dict, pixels: np.ndarray, size: tuple[int, int]) -> CaptionedImage:
    """Return an image, or a clip, that was rendered to a height and width, with its record."""
    return CaptionedImage(record, hashlib.sha256(pixels.tobytes()).hexdigest(), partial(np.asarray, pixels), size)


class LeftOut(NamedTuple):
    """An image of a source that is not used."""

    reason: str
    """Reason, as it reads after a number of images."""


class ImageSource(ABC):
    """A source of images with captions to learn from, the same in every process."""

    pairs: ClassVar[bool] = False
    """Whether each image comes with one that lost against it."""
    min_reward: Mapping[str, float]
    """Lowest value of each named reward at which an image, or the winner of a pair, is used for training."""
    cache: bool
    """Whether latents are stored on disk for the next run."""


def image_noun(source: ImageSource) -> str:
    """Return what a source holds, in the plural: pairs, or images."""
    return "pairs" if source.pairs else "images"


class ListedImages(ImageSource):
    """A source whose images are there before training; others are drawn by the model that is trained."""

    @abstractmethod
    def images(self, seed: int, size: tuple[int, int], unit: int = 1) -> Iterator[CaptionedImage | LeftOut]:
        """Yield all images, of height and width `size`, in an order that never changes, and those that are left out.

        The pixels of a pair are those of its winner and its loser, uint8 (2, H, W, 3).

        unit: Pixels of which every side is a multiple, where a source keeps several shapes.

        Raises InputError for an image that cannot be used, ConfigError for options that do not fit the model.
        """


@dataclass(frozen=True)
class ShapesImages(ListedImages):
    """Rendered images of the shapes world; tags are drawn evenly, facts from one split only."""

    count: int = 100_000
    """Number of images, rendered before training starts."""
    split: Literal["train", "test", "ood"] = "train"
    """Split of the facts that prompts may state; what a prompt does not name, a colour for example, is drawn freely."""
    size: int = 32
    """Pixels of a side, 32 or 64."""
    tags: tuple[str, ...] = TAGS
    """Kinds of prompt, used in turn; one that is named twice is drawn twice as often."""
    empty_tokens: int = 0
    """Maximum number of zero vectors appended to the prompts of a batch; stock SD3 without T5 appends 256."""
    min_reward: Mapping[str, float] = field(default_factory=dict)
    """Lowest value of each named reward at which an image is used for training."""
    cache: bool = False
    """Whether latents are stored on disk for the next run; rendering takes longer than encoding."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "count")
        check_shapes_options(self.split, self.tags, self.size)
        check_not_negative(self, "empty_tokens")

    def images(self, seed: int, size: tuple[int, int], unit: int = 1) -> Iterator[CaptionedImage]:
        """Yield the images, each rendered when it is its turn."""
        if world_size(*size) != self.size:
            raise ConfigError(f"data.size = {self.size}: the model draws {size[0]} px; set it to that")
        rng = np.random.default_rng(number(seed, "images"))
        records = [prompts.draw(self.split, self.tags[i % len(self.tags)], rng, self.size) for i in range(self.count)]
        for record in records:
            pixels = render.render_image(record, self.size, rng)
            yield rendered_image(record, pixels, size)


@dataclass(frozen=True, kw_only=True)
class StoredSource(ListedImages):
    """Images that users have: which of them are used, and how they are brought to the shape that the model draws."""

    caption: str = DEFAULT_CAPTION
    """Key or column of the caption.  Where `text` is missing, prompt, prompts, prompt_en and caption are tried."""
    min_size: int | None = None
    """Pixels of the shorter side, below which an image is left out; others are enlarged to the model's size.  None: an
    image that is smaller than the model draws stops the run."""
    buckets: bool = False
    """Whether images keep about their aspect ratio, with as many pixels as the model draws; a batch has one shape."""
    background: str = "white"
    """Colour under transparent pixels, by name or as #rrggbb."""
    unreadable: Literal["stop", "skip"] = "stop"
    """Action for an image that cannot be read: stop before training, or leave it out and count it."""
    min_reward: Mapping[str, float] = field(default_factory=dict)
    """Lowest value of each named reward at which an image is used for training."""
    cache: bool = True
    """Whether latents are stored on disk for the next run."""

    def load(self, image: "SurveyedImage") -> np.ndarray | None:
        """Decode an image, scale it and crop its middle to uint8 (H, W, 3); None where it may be left out."""
        location, background = image.entry.location, check_color("data.background", self.background)
        try:
            pixels = read_picture(image.entry.read(), location, background)
        except (InputError, OSError) as error:
            return left_out_or_error(self.unreadable, location, error)
        height, width = image.size
        return fit_picture(pixels, height, width)


@dataclass(frozen=True, kw_only=True)
class StoredImages(StoredSource):
    """Single images that users have."""

    @abstractmethod
    def listing(self) -> Listing:
        """List the images with their captions; InputError where there are none that can be used."""

    def images(self, seed: int, size: tuple[int, int], unit: int = 1) -> Iterator[CaptionedImage | LeftOut]:
        """Yield the images in the order of their listing, with buckets shape after shape.

        What the listing holds is said in one line before the first.
        """
        listing = self.listing()
        survey = survey_images(self, listing, bucket_sizes(size, unit) if self.buckets else [size])
        _log.info(survey.sentence(listing))
        yield from (LeftOut(reason) for reason, count in survey.left_out.items() for _ in range(count))
        for shape in sorted({image.size for image in survey.images}):
            for image in survey.images:
                if image.size == shape:
                    load = partial(self.load, image)
                    yield CaptionedImage(image.entry.record, image.digest, load, shape)


def check_stored(source: StoredSource) -> None:
    """Raise ConfigError for an option of stored images that cannot be used."""
    check_at_least_one(source, "min_size", prefix="data.")
    check_color("data.background", source.background)


def left_out_or_error(unreadable: str, location: str, error: Exception) -> None:
    """Return where images that cannot be read are left out; else raise InputError with what to do."""
    if unreadable != "skip":
        text = str(error) if isinstance(error, InputError) else f"{location}: not a readable image ({error})"
        raise InputError(f"{text}; replace it, or leave such images out with --data.unreadable skip")


@dataclass(frozen=True)
class ImageFolder(StoredImages):
    """A folder of images with captions, in any layout that `image_folders.list_images` knows; or one such file."""

    path: str
    """Path of the folder, or of a .parquet or a webdataset .tar."""
    image: str | None = None
    """Name of the column of images of parquet files.  None: the only one that holds pictures, or `image`."""

    def __post_init__(self) -> None:
        check_stored(self)

    def listing(self) -> Listing:
        """List the images of the folder."""
        return list_images(Path(self.path), self.caption, self.image)


@dataclass(frozen=True)
class HubImages(StoredImages):
    """A data set of the Hugging Face hub, or of a folder, that `datasets` can load."""

    dataset: str
    """Id owner/name on the hub, or path of a folder."""
    split: str = "train"
    """Split to read."""
    revision: str | None = None
    """Branch, tag or commit of the data set."""
    image: str = "image"
    """Name of the column of images."""

    def __post_init__(self) -> None:
        check_images(self.dataset)
        check_stored(self)
        there = Path(self.dataset).is_dir()
        user = self.dataset if there else f"images {self.dataset}: no such folder, and a data set of the hub"
        check_extra(user, ["datasets"], "data")

    def listing(self) -> Listing:
        """List the images of the data set."""
        import datasets

        try:
            rows = load_hub_dataset(self.dataset, self.split, self.revision)
        except InputError as error:
            raise InputError(f"images {error}") from None
        check_columns(rows, self.dataset, self.image, named_caption(self.caption))
        encoded = rows.cast_column(self.image, datasets.Image(decode=False))
        entries, left_out = [], Counter()
        for i, row in enumerate(map(dict, without_pictures(rows.remove_columns([self.image]), self.dataset))):
            location = f"{self.dataset}[{i}]"
            record = record_of_row(row, self.caption, None, location)
            if record is None:
                left_out[NO_CAPTION] += 1
                continue
            check_text(record["prompt"], location)
            entries.append(Entry(location, record, lambda i=i: encoded_bytes(encoded[i][self.image], self.dataset)))
        if not entries:
            raise no_captions(self.dataset, self.caption)
        return Listing(f"{self.dataset} of the hub, column {self.image}", entries, left_out)


class SurveyedImage(NamedTuple):
    """An image that is used, looked at but not decoded."""

    entry: Entry
    """Where it lies, and its record."""
    digest: str
    """Digest of the encoded content."""
    size: tuple[int, int]
    """Height and width that it is brought to."""
    own_size: tuple[int, int]
    """Height and width that it has."""


@dataclass
class Survey:
    """What all images of a source are like, before the first is decoded."""

    images: list[SurveyedImage]
    """Images that are used."""
    left_out: Counter[str]
    """Reason → number of images left out."""
    remarks: Counter[str]
    """Remark → number of used images to which it applies."""

    def sentence(self, listing: Listing) -> str:
        """Say in one line how many images there are and from where, what is left out and what is remarkable."""
        total = len(self.images) + self.left_out.total()
        parts = [f"{len(self.images)} of {total} images are used, from {listing.origin}"]
        if self.left_out:
            parts.append("left out: " + ", ".join(f"{count} {reason}" for reason, count in self.left_out.items()))
        return "; ".join([*parts, *(f"{remark}: {count}" for remark, count in self.remarks.items())])


def survey_images(source: StoredSource, listing: Listing, sizes: Sequence[tuple[int, int]]) -> Survey:
    """Look at the headers of all images of a listing, and choose for each the nearest shape among `sizes`.

    InputError is raised for an image that cannot be read or is too small, where the source does not leave such out.
    """
    survey = Survey([], Counter({reason: n for reason, n in listing.left_out.items() if n}), Counter())
    digests, small = set(), []
    for entry in listing.entries:
        try:
            data = entry.read()
            header = read_header(data, entry.location)
        except (InputError, OSError) as error:
            left_out_or_error(source.unreadable, entry.location, error)
            survey.left_out[UNREADABLE] += 1
            continue
        if source.min_size is not None and min(header.height, header.width) < source.min_size:
            survey.left_out[f"smaller than {source.min_size} px"] += 1
            continue
        height, width = size = nearest_size(header.height / header.width, sizes)
        if header.height < height or header.width < width:
            small.append(f"{entry.location}: {header.width} x {header.height} px, smaller than the {width} x {height}")
        digest = hashlib.sha256(data).hexdigest()
        shape = header.height / header.width * width / height
        survey.remarks["cropped by more than half"] += min(shape, 1 / shape) < 0.5
        survey.remarks["duplicates"] += digest in digests
        own = header.height, header.width
        inputs = input_names(entry.record)
        check_differs(data, inputs, entry.location)
        for first in inputs[:1]:
            survey.remarks["of another shape than their input"] += not same_shape(own, input_size(first))
        digests.add(digest)
        survey.images.append(SurveyedImage(entry, digest, size, own))
    if small and source.min_size is None:
        raise InputError(
            f"{small[0]} px that the model draws, as are {len(small)} of {len(listing.entries)} images; leave small "
            f"ones out with --data.min-size {min(map(min, sizes))}, or enlarge them with --data.min-size 1"
        )
    survey.remarks["enlarged"] += len(small)
    for size, count in Counter(image.size for image in survey.images).items() if source.buckets else ():
        survey.remarks[f"{size[1]} x {size[0]} px"] = count
    survey.remarks = +survey.remarks
    return survey


def same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether two sizes (H, W) differ in scale alone, to a pixel."""
    scale = math.sqrt(one[0] * one[1] / (other[0] * other[1]))
    return all(abs(a - scale * b) <= max(1.0, scale) for a, b in zip(one, other))


def bucket_sizes(size: tuple[int, int], unit: int) -> list[tuple[int, int]]:
    """Return shapes (H, W) of at most so many pixels as `size`, up to twice as long as wide, and `size` itself first.

    unit: Pixels of which every side is a multiple.  Steps are about an eighth of a side.
    """
    area = size[0] * size[1]
    step = max(1, round((area**0.5) / unit / 8)) * unit
    sizes = {size: None}
    for height in range(step, 2 * max(size), step):
        width = area // height // unit * unit
        if width and 0.5 <= height / width <= 2:
            sizes[height, width] = None
    return list(sizes)


def nearest_size(ratio: float, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the shape (H, W) whose H / W is nearest to a ratio; of several alike, the first."""
    return min(sizes, key=lambda size: abs(math.log(ratio * size[1] / size[0])))


def check_images(path: str, files: tuple[str, ...] = (".parquet", ".tar")) -> None:
    """Raise InputError for what is no folder and cannot be the id of a data set of the hub, OWNER/NAME.

    files: Endings of the files that hold images.
    """
    archive = Path(path).suffix.lower() in files
    if Path(path).is_file() and not archive:
        raise InputError(f"images {path}: this is a file; name the folder with the images, or a {' or '.join(files)}")
    if archive and not Path(path).is_file():
        raise InputError(f"images {path}: no such file")
    if not Path(path).exists() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path):
        raise InputError(f"images {path}: no such folder, and an id of the hub reads owner/name")


def num_empty_tokens(maximum: int, step: int, seed: int) -> int:
    """Draw the number of zero vectors after the prompts of a batch: none in 95 % of batches, else log-uniform.

    Long batches cost more, and a few of them suffice to learn that zeros mean nothing.
    """
    rng = np.random.default_rng(number(seed, "empty tokens", step))
    if maximum == 0 or rng.random() > 0.05:
        return 0
    return int(np.exp(rng.uniform(0, np.log(maximum + 1))))
