"""Images with captions to learn from: rendered, from a folder, or from a data set of the hub."""

import hashlib
import io
import json
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
from ..system.optional_dependencies import check_extra
from .prompts import check_shapes_options

if TYPE_CHECKING:
    import datasets


class CaptionedImage(NamedTuple):
    """One image with its record, not yet decoded."""

    record: dict
    """{"prompt": its caption, ...}"""
    digest: str
    """Of its content, before it is cut to size."""
    pixels: Callable[[], np.ndarray | None]
    """() → uint8 (S, S, 3); None where it cannot be read and may be left out."""


class ImageSource(ABC):
    min_reward: Mapping[str, float]
    """Rewards that a picture must reach, or it is not learnt from."""
    cache: bool
    """Whether latents are kept on disk for the next run."""

    @abstractmethod
    def pictures(self, seed: int, size: tuple[int, int]) -> Iterator[CaptionedImage]:
        """All of them, of that height and width, in an order that never changes; ValueError for what cannot be used."""


@dataclass(frozen=True)
class ShapesImages(ImageSource):
    """Rendered pictures of the shapes world; tags are drawn evenly, facts from one split only."""

    count: int = 100_000
    """Pictures rendered before training starts."""
    split: Literal["train", "test", "ood"] = "train"
    """Which facts their prompts may state; what no prompt names, a colour say, is drawn freely."""
    size: int = 32
    """Pixels of a side, 32 or 64."""
    tags: tuple[str, ...] = TAGS
    """Kinds of prompt in turn; one named twice is drawn twice as often."""
    empty_tokens: int = 0
    """At most this many zero vectors are appended to a batch's prompts: stock SD3 without T5 appends 256."""
    min_reward: Mapping[str, float] = field(default_factory=dict)
    """Rewards that a picture must reach, or it is not learnt from."""
    cache: bool = False
    """Whether latents are kept on disk for the next run; rendering takes longer than encoding."""

    def __post_init__(self) -> None:
        check_shapes_options(self.count, self.split, self.tags, self.size)
        if self.empty_tokens < 0:
            raise ValueError(f"empty_tokens = {self.empty_tokens}: 0 or more")

    def pictures(self, seed: int, size: tuple[int, int]) -> Iterator[CaptionedImage]:
        if world_size(*size) != self.size:
            raise ValueError(f"data.size = {self.size}: the model draws {size[0]} px; set it to that")
        rng = np.random.default_rng(number(seed, "images"))
        records = [prompts.draw(self.split, self.tags[i % len(self.tags)], rng, self.size) for i in range(self.count)]
        for record in records:
            pixels = render.render_image(record, self.size, rng)
            yield CaptionedImage(record, hashlib.sha256(pixels.tobytes()).hexdigest(), partial(np.asarray, pixels))


@dataclass(frozen=True)
class ImageFolder(ImageSource):
    """Images of a folder with captions in its metadata.jsonl, as Hugging Face's `imagefolder` lays them out."""

    path: str
    """The folder; each line of its metadata.jsonl has a file_name and a caption."""
    caption: str = "text"
    """Key of the caption."""
    unreadable: Literal["stop", "skip"] = "stop"
    """What to do about an image that cannot be read: stop before training, or leave it out and count it."""
    min_reward: Mapping[str, float] = field(default_factory=dict)
    """Rewards that a picture must reach, or it is not learnt from."""
    cache: bool = True
    """Whether latents are kept on disk for the next run."""

    def pictures(self, seed: int, size: tuple[int, int]) -> Iterator[CaptionedImage]:
        lines = read_metadata(Path(self.path), self.caption)
        for place, line in lines:
            file = Path(self.path) / line["file_name"]
            if not file.is_file():
                raise ValueError(f"{place}: {file} is not there")
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
    """Its id, owner/name."""
    split: str = "train"
    """Which part of it."""
    revision: str | None = None
    """Branch, tag or commit."""
    image: str = "image"
    """Column of the images."""
    caption: str = "text"
    """Column of the captions."""
    unreadable: Literal["stop", "skip"] = "stop"
    """What to do about an image that cannot be read: stop before training, or leave it out and count it."""
    min_reward: Mapping[str, float] = field(default_factory=dict)
    """Rewards that a picture must reach, or it is not learnt from."""
    cache: bool = True
    """Whether latents are kept on disk for the next run."""

    def __post_init__(self) -> None:
        check_extra("a data set of the hub", ["datasets"], "data")

    def pictures(self, seed: int, size: tuple[int, int]) -> Iterator[CaptionedImage]:
        import datasets

        rows = load_hub_dataset(self.dataset, self.split, self.revision)
        for column in (self.image, self.caption):
            if column not in rows.column_names:
                raise ValueError(f"{self.dataset}: it has no column {column!r}, only {', '.join(rows.column_names)}")
        rows = rows.cast_column(self.image, datasets.Image(decode=False))
        for i in range(len(rows)):
            row, place = rows[i], f"{self.dataset}[{i}]"
            image = row.pop(self.image)
            check_caption(row, self.caption, place)
            load = partial(self._load, rows, i, size)
            yield CaptionedImage(
                caption_record(row, self.caption), hashlib.sha256(encoded_bytes(image)).hexdigest(), load
            )

    def _load(self, rows: "datasets.Dataset", i: int, size: tuple[int, int]) -> np.ndarray | None:
        place = f"{self.dataset}[{i}]"
        return center_crop(encoded_bytes(rows[i][self.image]), size, place, self.unreadable)


def load_hub_dataset(dataset: str, split: str, revision: str | None) -> "datasets.Dataset":
    """What the hub, or a folder, holds under that name; ValueError where it cannot be had."""
    import datasets
    from datasets.exceptions import DatasetsError

    if not Path(dataset).is_dir() and len(Path(dataset).parts) != 2:
        raise ValueError(f"images {dataset}: no such folder, and an id of the hub reads owner/name")
    try:
        return datasets.load_dataset(dataset, split=split, revision=revision)
    except (OSError, ValueError, DatasetsError) as error:
        why = str(error).partition("\n")[0]
        raise ValueError(f"images {dataset}: split {split!r} could not be loaded; {why}") from None


def encoded_bytes(image: Mapping | None) -> bytes:
    """What `datasets` gives for an image that it does not decode; empty where there is none."""
    if image is None or (image["bytes"] is None and not Path(str(image["path"])).is_file()):
        return b""
    return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


def read_metadata(folder: Path, caption: str) -> list[tuple[str, dict]]:
    """The lines of a folder's metadata.jsonl with their places; ValueError for one that cannot be used."""
    file = folder / "metadata.jsonl"
    if not file.is_file():
        raise ValueError(
            f"images {folder}: no metadata.jsonl in it; write a line with file_name and {caption} per image"
        )
    found = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 at byte {error.start}") from None
    for n, text in enumerate(lines, 1):
        if not text.strip():
            continue
        place = f"{file}:{n}"
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: not JSON ({error.msg} at column {error.colno})") from None
        if not isinstance(line, dict) or not isinstance(line.get("file_name"), str):
            raise ValueError(f'{place}: a line needs a "file_name" that is a text')
        check_caption(line, caption, place)
        found.append((place, line))
    if not found:
        raise ValueError(f"images {folder}: metadata.jsonl is empty; write a line for each image")
    return found


def caption_record(line: Mapping, caption: str) -> dict:
    """The record of a line: its caption is the prompt, whatever else is called so."""
    return {k: v for k, v in line.items() if k not in ("file_name", caption)} | {"prompt": line[caption]}


def check_caption(line: Mapping, caption: str, place: str) -> None:
    """ValueError where a line has no caption."""
    text = line.get(caption)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{place}: no caption under {caption!r}; write one, or name another key with --data.caption")


def center_crop(
    image: bytes, size: tuple[int, int], name: str, unreadable: Literal["stop", "skip"]
) -> np.ndarray | None:
    """The middle of an encoded image, scaled to uint8 (H, W, 3), H and W of `size`.

    None or ValueError, as `unreadable` says, where it cannot be read; ValueError where it is smaller than `size`.
    """
    try:
        with Image.open(io.BytesIO(image)) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # PIL calls a broken PNG a syntax error
        if unreadable == "skip":
            return None
        raise ValueError(
            f"{name}: not a readable image ({error}); replace it, or leave such images out with --data.unreadable skip"
        ) from None
    height, width = size
    if upright.width < width or upright.height < height:
        found, drawn = f"{upright.width} x {upright.height}", f"{width} x {height}"
        raise ValueError(f"{name}: {found} px, smaller than the {drawn} px that the model draws")
    return np.asarray(ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS))


def num_empty_tokens(most: int, step: int, seed: int) -> int:
    """How many zero vectors follow the prompts of this batch: mostly none, now and then a log-uniform number.

    Long batches cost more, and a few of them suffice to learn that zeros mean nothing.
    """
    rng = np.random.default_rng(number(seed, "empty tokens", step))
    if most == 0 or rng.random() > 0.05:
        return 0
    return int(np.exp(rng.uniform(0, np.log(most + 1))))
