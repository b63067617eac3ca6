"""Pictures of a suite on disk, in the layout of GenEval (arXiv:2310.11513):

    00000/metadata.jsonl, 00000/samples/0000.png, 0001.png, ..., 00001/metadata.jsonl, ...

GenEval's own scripts read such a folder, and we read theirs.  A clip is a folder of its frames, samples/0000/0000.png.
A prompt's metadata is written last, so that what has it is complete.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..system.atomic_files import write_text_atomically

SETTINGS = "settings.json"


def drawn_with(folder: Path) -> dict:
    """How afterflow drew the pictures; nothing of those of others."""
    file = folder / SETTINGS
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def is_gallery(folder: Path) -> bool:
    return (folder / "00000" / "metadata.jsonl").is_file()


def begin(folder: Path, settings: dict) -> None:
    """Make the folder, or go on with it; ValueError where it holds pictures drawn otherwise."""
    file, told = folder / SETTINGS, json.loads(json.dumps(settings))
    if before := drawn_with(folder):
        other = [name for name in {**before, **told} if before.get(name) != told.get(name)]
        if other:
            said = ", ".join(f"{name} = {before.get(name)}" for name in other)
            raise ValueError(f"{folder} holds pictures drawn with {said}; take another --out, or delete it")
        return
    if is_gallery(folder):
        raise ValueError(f"{folder} holds pictures that afterflow did not draw; take another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(file, json.dumps(told, indent=2) + "\n")


def missing(folder: Path, prompts: int) -> list[int]:
    """The places of the prompts whose pictures are not all there."""
    return [place for place in range(prompts) if not (of_prompt(folder, place) / "metadata.jsonl").is_file()]


def add(folder: Path, place: int, record: dict, images: np.ndarray) -> None:
    """Write the pictures (K, H, W, 3), or clips (K, F, H, W, 3), of one prompt."""
    mine = of_prompt(folder, place)
    for k, image in enumerate(images):
        for file, frame in files(mine, k, image):
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            Image.fromarray(frame).save(part, format="PNG")
            os.replace(part, file)
    write_text_atomically(mine / "metadata.jsonl", json.dumps(record) + "\n")


def files(mine: Path, k: int, image: np.ndarray) -> Iterator[tuple[Path, np.ndarray]]:
    samples = mine / "samples"
    if image.ndim == 3:
        yield samples / f"{k:04}.png", image
    else:
        yield from ((samples / f"{k:04}" / f"{f:04}.png", frame) for f, frame in enumerate(image))


def records(folder: Path) -> list[dict]:
    """Of every prompt, in order; ValueError where one cannot be read."""
    found = []
    for mine in prompts(folder):
        file = mine / "metadata.jsonl"
        try:
            record = json.loads(file.read_text(encoding="utf-8").splitlines()[0])
            found.append({"tag": "all"} | record)
            if not isinstance(record["prompt"], str):
                raise ValueError("its prompt is no text")
        except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: it holds no record with a prompt ({error})") from None
    return found


def read(mine: Path) -> np.ndarray:
    """The pictures of a prompt, uint8 (K, H, W, 3), or its clips (K, F, H, W, 3); ValueError where they differ."""
    samples = sorted(
        file
        for file in (mine / "samples").iterdir()
        if file.is_dir() or file.suffix in (".png", ".jpg", ".jpeg", ".webp")
    )
    images = [
        np.stack([opened(file) for file in sorted(each.iterdir())]) if each.is_dir() else opened(each)
        for each in samples
    ]
    if not images or len({image.shape for image in images}) > 1:
        raise ValueError(f"{mine}: it has no pictures, or they are not of one size")
    return np.stack(images)


def digest(mine: Path, record: dict) -> str:
    """Of a prompt's record and pictures."""
    found = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for file in sorted(each for each in (mine / "samples").rglob("*") if each.is_file()):
        found.update(file.name.encode() + file.read_bytes())
    return found.hexdigest()


def update(folder: Path, records: Sequence[dict]) -> None:
    """Write down records that have changed since their pictures were drawn: the same prompts, told otherwise."""
    for place, record in enumerate(records):
        file = of_prompt(folder, place) / "metadata.jsonl"
        if file.is_file() and file.read_text(encoding="utf-8") != json.dumps(record) + "\n":
            write_text_atomically(file, json.dumps(record) + "\n")


def opened(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def prompts(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir() and each.name.isdigit())


def of_prompt(folder: Path, place: int) -> Path:
    return folder / f"{place:05}"


def together(folder: Path, places: Sequence[int]) -> np.ndarray:
    """The pictures of several prompts, (P, K, ...); ValueError where they are not as many or not of one size."""
    mine = prompts(folder)
    found = [read(mine[place]) for place in places]
    if len({images.shape for images in found}) > 1:
        raise ValueError(f"{folder}: its prompts do not have as many pictures each, or not of one size")
    return np.stack(found)
