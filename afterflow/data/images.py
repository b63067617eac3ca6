"""Images with captions to learn from: rendered, from a folder, or from a data set of the hub."""

import hashlib
import io
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ..envs.shapes import prompts, render
from ..envs.shapes.world import TAGS, world_size
from ..sampling.seeds import number
from ..system.checks import check_at_least_one, check_not_negative
from ..system.errors import ConfigError, InputError
from ..system.optional_dependencies import check_extra
from .prompts import check_shapes_options

if TYPE_CHECKING:
    import datasets


class CaptionedImage(NamedTuple):
    """An image, or a clip, with its record; it is decoded only when its pixels are asked for."""

    record: dict
    """Record {"prompt": caption, ...}."""
    digest: str
    """Digest of the encoded or rendered content, before it is cropped."""
    pixels: Callable[[], np.ndarray | None]
    """Function () → uint8 (H, W, 3), clips (F, H, W, 3); it returns None where an unreadable image may be left out."""


class ImageSource(ABC):
    """A source of images with captions, the same in every process."""

    min_reward: Mapping[str, float]
    """Lowest value of each named reward at which an image is used for training."""
    cache: bool
    """Whether latents are stored on disk for the next run."""

    @abstractmethod
    def images(self, seed: int, size: tuple[int, int]) -> Iterator[CaptionedImage]:
        """Yield all images, of height and width `size`, in an order that never changes.

        Raises InputError for an image that cannot be used, ConfigError for options that do not fit the model.
        """


@dataclass(frozen=True)
class ShapesImages(ImageSource):
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

    def images(self, seed: int, size: tuple[int, int]) -> Iterator[CaptionedImage]:
        """Yield the images, each rendered when it is its turn."""
        if world_size(*size) != self.size:
            raise ConfigError(f"data.size = {self.size}: the model draws {size[0]} px; set it to that")
        rng = np.random.default_rng(number(seed, "images"))
        records = [prompts.draw(self.split, self.tags[i % len(self.tags)], rng, self.size) for i in range(self.count)]
        for record in records:
            pixels = render.render_image(record, self.size, rng)
            yield CaptionedImage(record, hashlib.sha256(pixels.tobytes()).hexdigest(), partial(np.asarray, pixels))


@dataclass(frozen=True)
class ImageFolder(ImageSource):
    """A folder of images with captions in its metadata.jsonl, in the layout of Hugging Face's `imagefolder`."""

    path: str
    """Path of the folder; every line of its metadata.jsonl has a file_name and a caption."""
    caption: str = "text"
    """Key of the caption in metadata.jsonl."""
    unreadable: Literal["stop", "skip"] = "stop"
    """Action for an image that cannot be read: stop before training, or leave it out and count it."""
    min_reward: Mapping[str, float] = field(default_factory=dict)
    """Lowest value of each named reward at which an image is used for training."""
    cache: bool = True
    """Whether latents are stored on disk for the next run."""

    def images(self, seed: int, size: tuple[int, int]) -> Iterator[CaptionedImage]:
        """Yield the images in the order of metadata.jsonl."""
        for location, line in read_metadata(Path(self.path), self.caption):
            file = Path(self.path) / line["file_name"]
            if not file.is_file():
                raise InputError(f"{location}: {file} is not there; correct file_name")
            load = partial(self._load, file, size)
            yield CaptionedImage(
                caption_record(line, self.caption), hashlib.sha256(file.read_bytes()).hexdigest(), load
            )

    def _load(self, file: Path, size: tuple[int, int]) -> np.ndarray | None:
        return center_crop(file.read_bytes(), size, str(file), self.unreadable)


@dataclass(frozen=True)
class HubImages(ImageSource):
    """A data set of the Hugging Face hub, or of a folder, that `datasets` can load."""

    dataset: str
    """Id owner/name on the hub, or path of a folder."""
    split: str = "train"
    """Split to read."""
    revision: str | None = None
    """Branch, tag or commit of the data set."""
    image: str = "image"
    """Name of the column of images."""
    caption: str = "text"
    """Name of the column of captions."""
    unreadable: Literal["stop", "skip"] = "stop"
    """Action for an image that cannot be read: stop before training, or leave it out and count it."""
    min_reward: Mapping[str, float] = field(default_factory=dict)
    """Lowest value of each named reward at which an image is used for training."""
    cache: bool = True
    """Whether latents are stored on disk for the next run."""

    def __post_init__(self) -> None:
        check_images(self.dataset)
        there = Path(self.dataset).is_dir()
        user = self.dataset if there else f"images {self.dataset}: no such folder, and a data set of the hub"
        check_extra(user, ["datasets"], "data")

    def images(self, seed: int, size: tuple[int, int]) -> Iterator[CaptionedImage]:
        """Yield the images in the order of the data set."""
        import datasets

        rows = load_hub_dataset(self.dataset, self.split, self.revision)
        for column in (self.image, self.caption):
            if column not in rows.column_names:
                raise InputError(f"{self.dataset}: it has no column {column!r}, only {', '.join(rows.column_names)}")
        rows = rows.cast_column(self.image, datasets.Image(decode=False))
        for i in range(len(rows)):
            row = rows[i]
            image = row.pop(self.image)
            check_caption(row, self.caption, f"{self.dataset}[{i}]")
            load = partial(self._load, rows, i, size)
            yield CaptionedImage(
                caption_record(row, self.caption), hashlib.sha256(encoded_bytes(image)).hexdigest(), load
            )

    def _load(self, rows: "datasets.Dataset", i: int, size: tuple[int, int]) -> np.ndarray | None:
        return center_crop(encoded_bytes(rows[i][self.image]), size, f"{self.dataset}[{i}]", self.unreadable)


def check_images(path: str) -> None:
    """Raise InputError for what is no folder and cannot be the id of a data set of the hub, OWNER/NAME."""
    if Path(path).is_file():
        raise InputError(f"images {path}: this is a file; name the folder with the images")
    if not Path(path).is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path):
        raise InputError(f"images {path}: no such folder, and an id of the hub reads owner/name")


def load_hub_dataset(dataset: str, split: str, revision: str | None) -> "datasets.Dataset":
    """Load a split of a data set of the hub, or of a folder; InputError where it cannot be loaded."""
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        return datasets.load_dataset(dataset, split=split, revision=revision)
    except (OSError, ValueError, DatasetsError) as error:
        why = str(error).partition("\n")[0]
        raise InputError(f"images {dataset}: split {split!r} could not be loaded; {why}") from None


def encoded_bytes(image: Mapping | None) -> bytes:
    """Return the encoded bytes of an image that `datasets` has not decoded; empty where there is none."""
    if image is None or (image["bytes"] is None and not Path(str(image["path"])).is_file()):
        return b""
    return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


def read_metadata(folder: Path, caption: str) -> list[tuple[str, dict]]:
    """Read a folder's metadata.jsonl as pairs of location and line; InputError for a line that cannot be used."""
    file = folder / "metadata.jsonl"
    if not file.is_file():
        raise InputError(
            f"images {folder}: no metadata.jsonl in it; write a line with file_name and {caption} per image"
        )
    located_lines = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 at byte {error.start}") from None
    for n, text in enumerate(lines, 1):
        if not text.strip():
            continue
        location = f"{file}:{n}"
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"{location}: not JSON ({error.msg} at column {error.colno})") from None
        if not isinstance(line, dict) or not isinstance(line.get("file_name"), str):
            raise InputError(f'{location}: a line needs a "file_name" that is a text')
        check_caption(line, caption, location)
        located_lines.append((location, line))
    if not located_lines:
        raise InputError(f"images {folder}: metadata.jsonl is empty; write a line for each image")
    return located_lines


def caption_record(line: Mapping, caption: str) -> dict:
    """Make the record of a line: its caption becomes the prompt, even where another key has that name."""
    return {k: v for k, v in line.items() if k not in ("file_name", caption)} | {"prompt": line[caption]}


def check_caption(line: Mapping, caption: str, location: str) -> None:
    """Raise InputError where a line has no caption."""
    text = line.get(caption)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{location}: no caption under {caption!r}; write one, or set --data.caption to another key")


def center_crop(
    image: bytes, size: tuple[int, int], name: str, unreadable: Literal["stop", "skip"]
) -> np.ndarray | None:
    """Scale and crop the middle of an encoded image to uint8 (H, W, 3), H and W of `size`.

    An image that cannot be read is None with `unreadable` = skip.  Raises InputError where it cannot be read and
    `unreadable` = stop, and where it is smaller than `size`.
    """
    try:
        with Image.open(io.BytesIO(image)) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # PIL calls a broken PNG a syntax error
        if unreadable == "skip":
            return None
        raise InputError(
            f"{name}: not a readable image ({error}); replace it, or leave such images out with --data.unreadable skip"
        ) from None
    height, width = size
    if upright.width < width or upright.height < height:
        actual, minimum = f"{upright.width} x {upright.height}", f"{width} x {height}"
        raise InputError(f"{name}: {actual} px, smaller than the {minimum} px that the model draws")
    return np.asarray(ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS))


def num_empty_tokens(maximum: int, step: int, seed: int) -> int:
    """Draw the number of zero vectors after the prompts of a batch: none in 95 % of batches, else log-uniform.

    Long batches cost more, and a few of them suffice to learn that zeros mean nothing.
    """
    rng = np.random.default_rng(number(seed, "empty tokens", step))
    if maximum == 0 or rng.random() > 0.05:
        return 0
    return int(np.exp(rng.uniform(0, np.log(maximum + 1))))
