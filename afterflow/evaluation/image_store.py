"""Images of a suite on disk, in the layout of GenEval (arXiv:2310.11513).

    00000/metadata.jsonl, 00000/samples/0000.png, 0001.png, ..., 00001/metadata.jsonl, ...

GenEval's own scripts read such a folder, and we read theirs.  A clip is a folder of its frames, samples/0000/0000.png.
A prompt's metadata is written last, so a prompt that has it is complete.  Pictures that a prompt is about are copied
beside it, as 00000/input/0.png, and named from there, as is a picture that its images are to be like.  So a folder may
move, and no file outside of it is read for it.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from ..system.atomic_files import make_folder, write_bytes, write_text_atomically, writing
from ..system.errors import InputError
from ..system.folder_lock import LOCK
from ..system.input_pictures import file_version, rename_pictures, whole_path, with_digests
from ..system.own_folders import check_links
from ..system.pictures import is_picture_file, read_header, read_picture
from ..system.text_files import parse_json, read_json, read_text, read_text_lines

SETTINGS = "settings.json"


def drawn_with(folder: Path) -> dict:
    """Return the settings with which afterflow drew the images; empty for images from elsewhere.

    InputError where the file of the settings holds none.
    """
    file = folder / SETTINGS
    settings = read_json(file) if file.is_file() else {}
    if not isinstance(settings, dict):
        raise InputError(f"{file}: it holds no settings; take another --out, or delete it")
    return settings


def holds_images(folder: Path) -> bool:
    """Whether the folder has GenEval's layout."""
    return (folder / "00000" / "metadata.jsonl").is_file()


def open_store(folder: Path, settings: dict) -> None:
    """Make the folder, or continue in it; raise InputError where it holds images that were drawn otherwise."""
    if folder.is_dir():
        check_links(folder)
    file, settings = folder / SETTINGS, json.loads(json.dumps(settings))
    if before := drawn_with(folder):
        changed = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
        if changed and any((prompt_dir / "samples").is_dir() for prompt_dir in prompt_folders(folder)):
            listed = ", ".join(f"{name} = {in_short(before.get(name))}" for name in changed)
            raise InputError(f"{folder} holds pictures drawn with {listed}; delete it, or have them drawn elsewhere")
        if not changed:
            return
    elif holds_images(folder):
        raise InputError(f"{folder} holds pictures that afterflow did not draw; take another --out")
    elif others := [path.name for path in folder.iterdir() if path.name != LOCK] if folder.is_dir() else []:
        raise InputError(f"{folder} holds {others[0]} and no {SETTINGS} of afterflow's; take another --out")
    make_folder(folder)
    write_text_atomically(file, json.dumps(settings, indent=2) + "\n")


def in_short(value: object) -> str:
    """Return a setting as a message shows it: of a list, such as that of all prompts, its length and its first."""
    return f"{len(value)} such as {value[0]!r}" if isinstance(value, list) and value else str(value)


def missing_prompts(folder: Path, prompts: int) -> list[int]:
    """Return the indices of the prompts whose images are not complete."""
    return [i for i in range(prompts) if not (prompt_folder(folder, i) / "metadata.jsonl").is_file()]


def add_images(folder: Path, index: int, record: dict, images: np.ndarray) -> None:
    """Write the images (K, H, W, 3), or clips (K, F, H, W, 3), of a prompt whose inputs `update_records` has copied."""
    samples = prompt_folder(folder, index) / "samples"
    for k, image in enumerate(images):
        clip = [(samples / f"{k:04}" / f"{f:04}.png", frame) for f, frame in enumerate(image)]
        for file, frame in [(samples / f"{k:04}.png", image)] if image.ndim == 3 else clip:
            make_folder(file.parent)
            part = file.with_suffix(".part")
            with writing(file):
                Image.fromarray(frame).save(part, format="PNG")
                os.replace(part, file)
    write_text_atomically(samples.parent / "metadata.jsonl", json.dumps(with_copies(record)[0]) + "\n")


def with_copies(record: dict) -> tuple[dict, dict[str, str]]:
    """Return a record that names copies of the pictures it is about, and what each copy is of, by its name."""
    copies, places = {}, count()

    def name_of_copy(key: str, source: str) -> str:
        stem = next(places) if key == "input" else key
        if file_version(source) is None:  # a data: address, or not there
            return source
        copies[name := f"input/{stem}{Path(source).suffix}"] = source
        return name

    return rename_pictures(record, name_of_copy), copies


def read_records(folder: Path) -> list[dict]:
    """Read the record of every prompt, in order, with whole paths of the pictures that it is about.

    A picture that is not in the prompt's folder gets the path that it would have there, and is not there for whoever
    needs it.  InputError where a record cannot be read.
    """
    records = []
    check_links(folder)
    for prompt_dir in prompt_folders(folder):
        file = prompt_dir / "metadata.jsonl"
        lines = read_text_lines(file)
        record = parse_json(lines[0][1], lines[0][0]) if lines else None
        if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
            raise InputError(f"{file}: it holds no record with a prompt that is a text")
        records.append({"tag": "all"} | within(record, prompt_dir))
    return records


def within(record: dict, prompt_dir: Path) -> dict:
    """Return a record whose pictures have whole paths within a prompt's folder, wherever it says that they lie."""

    def located(key: str, name: str) -> str:
        try:
            return whole_path(name, key, prompt_dir, "")
        except InputError:
            return str(prompt_dir.resolve() / "input" / PurePath(name).name)

    return rename_pictures(record, located)


def update_records(folder: Path, records: Sequence[dict]) -> None:
    """Copy what prompts are about, and write the records that have changed since their images were drawn."""
    for i, record in enumerate(records):
        prompt_dir, (stored, copies) = prompt_folder(folder, i), with_copies(record)
        for name, source in copies.items():
            copy, content = prompt_dir / name, Path(source).read_bytes()
            if not copy.is_file() or copy.read_bytes() != content:
                make_folder(copy.parent)
                write_bytes(copy, content)
        file, text = prompt_dir / "metadata.jsonl", json.dumps(stored) + "\n"
        if file.is_file() and read_text(file) != text:
            write_text_atomically(file, text)


def sample_files(prompt_dir: Path) -> list[list[Path]]:
    """List the files of each picture of a prompt, in order: one file, or those of the frames of a clip.

    Clips are folders; where pictures stand beside a folder, the folder is none of them.  InputError where there is
    neither.
    """
    samples = prompt_dir / "samples"
    if not samples.is_dir():
        raise InputError(f"{prompt_dir}: it has no folder samples, where its pictures belong")
    names = sorted(path for path in samples.iterdir() if not path.name.startswith("."))
    files = [[path] for path in names if is_picture_file(path)]
    files = files or [sorted(filter(is_picture_file, path.iterdir())) for path in names if path.is_dir()]
    if not (files := [frames for frames in files if frames]):
        raise InputError(f"{prompt_dir}: it has no pictures in samples, such as samples/0000.png")
    return files


def read_prompt(prompt_dir: Path) -> np.ndarray:
    """Read the images of a prompt, uint8 (K, H, W, 3), or its clips (K, F, H, W, 3).

    InputError is raised where there are none, where one cannot be read, and where they differ in size.
    """
    images = []
    for files in sample_files(prompt_dir):
        frames = [read_picture(file, str(file)) for file in files]
        if any(frame.shape != frames[0].shape for frame in frames):
            raise InputError(f"{files[0].parent}: its frames are not of one size")
        images.append(np.stack(frames) if files[0].parent.name != "samples" else frames[0])
    if any(image.shape != images[0].shape for image in images):
        raise InputError(f"{prompt_dir}: its pictures are not of one size")
    return np.stack(images)


def read_prompts_together(folder: Path, indices: Sequence[int]) -> np.ndarray:
    """Read the images of P prompts, (P, K, ...); raise InputError where they differ in number or size."""
    folders = prompt_folders(folder)
    images = [read_prompt(folders[i]) for i in indices]
    if len({of_prompt.shape for of_prompt in images}) > 1:
        raise InputError(f"{folder}: its prompts do not have as many pictures each, or not of one size")
    return np.stack(images)


def picture_formats(folder: Path) -> str:
    """Name the formats of a folder's pictures, by the content of the first of each prompt: PNG, or JPEG and PNG."""
    firsts = [sample_files(prompt_dir)[0][0] for prompt_dir in prompt_folders(folder)]
    return " and ".join(sorted({read_header(file, str(file)).format for file in firsts}))


def content_digest(prompt_dir: Path, record: dict) -> str:
    """Hash a prompt's record, with the pictures that it is about, and its images."""
    sha = hashlib.sha256(json.dumps(with_digests(record), sort_keys=True).encode())
    for file in (file for files in sample_files(prompt_dir) for file in files):
        sha.update(file.name.encode() + file.read_bytes())
    return sha.hexdigest()


def prompt_folders(folder: Path) -> list[Path]:
    """List the folders of the prompts, in order."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdigit())


def prompt_folder(folder: Path, index: int) -> Path:
    """Return the folder of one prompt."""
    return folder / f"{index:05}"


def stored_frames(folder: Path) -> Iterator[np.ndarray]:
    """Read prompt by prompt its images, or the frames of its clips: uint8 (K, H, W, 3)."""
    for prompt_dir in prompt_folders(folder):
        images = read_prompt(prompt_dir)
        yield np.ascontiguousarray(images.reshape(-1, *images.shape[-3:]))
