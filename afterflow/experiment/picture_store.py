"""Pictures that a run stores while it trains, with their scores: the same prompts from the same noise at every stage.

pictures/SET/records.json           the prompts and the number of pictures of each, once
pictures/SET/inputs/000_0.png       the pictures that a prompt is about, where it has some
pictures/SET/step_000030/000.png    the pictures after iteration 30; base/ holds those before the first
pictures/SET/step_000030.json       their names and scores, written last, so that it never names a missing picture
"""

import hashlib
import io
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..rewards.edited import as_drawn
from ..rewards.grouped import GroupScores, score_groups
from ..rewards.registry import REWARDS, find_reward
from ..system.atomic_files import make_folder, write_bytes, write_text_atomically, writing
from ..system.input_pictures import input_names, with_digests
from ..system.text_files import read_json
from .config import Run
from .image_grid import FRAMES_PER_SECOND
from .run_folder import BASE_STEP, PICTURE_SUFFIXES, RunFolder, step_name, step_of_name

LARGEST_PNG = 128
"""Longest side in pixels of a picture that is stored without loss."""
JPEG_QUALITY = 92
"""Quality of a larger picture."""


class PictureStore:
    """Writes one set of pictures of a run."""

    def __init__(self, run_folder: Path, name: str) -> None:
        self.folder = RunFolder(run_folder).picture_folder / name

    def begin(self, first: int, records: Sequence[Mapping[str, Any]] = (), per_prompt: int = 1) -> None:
        """Remove what iterations from `first` on will store again, and store the prompts, if the set has fixed ones.

        A set of other prompts, or about other pictures, is begun anew.  OutputError where the disk does not take it.
        """
        about = {"per_prompt": per_prompt, "records": list(records)}
        if any(map(input_names, records)):
            about["digest"] = hashlib.sha256(json.dumps(list(map(with_digests, records))).encode()).hexdigest()
        file = self.folder / "records.json"
        if first and records and file.is_file() and not same_prompts(read_json(file), about):
            first = 0
        make_folder(self.folder)
        with writing(self.folder):
            self._remove(BASE_STEP if first == 0 else first)
            if first == 0 and (self.folder / "inputs").is_dir():
                shutil.rmtree(self.folder / "inputs")
        if records:
            write_text_atomically(file, json.dumps(about) + "\n")

    def _remove(self, first: int) -> None:
        """Remove the steps from `first` on: first what names pictures, then these."""
        steps = {path: step_of_name(path.stem) for path in self.folder.iterdir()}
        again = [path for path, step in steps.items() if step is not None and step >= first]
        for path in sorted(again, key=lambda path: path.is_dir()):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def write_inputs(self, records: Sequence[Mapping[str, Any]], height: int, width: int) -> None:
        """Store the pictures that prompts are about, in the size of what is drawn, unless they are there."""
        if (self.folder / "inputs").exists():
            return
        for p, record in enumerate(records):
            for i, name in enumerate(input_names(record)):
                make_folder(self.folder / "inputs")
                content = encode_picture(as_drawn(name, height, width))
                write_bytes(self.folder / "inputs" / f"{p:03d}_{i}{picture_suffix(content)}", content)

    def write(self, step: int, pictures: Sequence[bytes], about: Mapping[str, Any]) -> list[Path]:
        """Store encoded pictures of iteration `step`, and what is known about them, and return their files.

        OutputError where the disk does not take them; then the step is not there.
        """
        name = step_name(step)
        about_file, folder = self.folder / f"{name}.json", self.folder / name
        with writing(folder):
            about_file.unlink(missing_ok=True)
            if folder.is_dir():
                shutil.rmtree(folder)
        make_folder(folder)
        names = [f"{i:03d}{picture_suffix(content)}" for i, content in enumerate(pictures)]
        for file, content in zip(names, pictures):
            write_bytes(folder / file, content)
        text = json.dumps(json_value({"step": step, "pictures": names, **about}), allow_nan=False)
        write_text_atomically(about_file, text + "\n")
        return [folder / file for file in names]


def same_prompts(one: Any, other: Mapping[str, Any]) -> bool:
    """Return whether two sets are of the same prompts, about the same pictures wherever these lie."""
    names = ("per_prompt", "digest") if isinstance(one, dict) and "digest" in one else ("per_prompt", "records")
    return isinstance(one, dict) and all(one.get(name) == other.get(name) for name in names)


def encode_picture(pixels: np.ndarray) -> bytes:
    """Encode an image, uint8 (H, W, 3), as PNG up to 128 px a side and as JPEG above; a clip (F, H, W, 3) as GIF."""
    stream = io.BytesIO()
    if pixels.ndim == 4:
        first, *others = [Image.fromarray(frame) for frame in pixels]
        animation = {"save_all": True, "append_images": others, "duration": 1000 // FRAMES_PER_SECOND, "loop": 0}
        first.save(stream, format="GIF", **animation)
    elif max(pixels.shape[:2]) <= LARGEST_PNG:
        Image.fromarray(pixels).save(stream, format="PNG")
    else:
        Image.fromarray(pixels).save(stream, format="JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def picture_suffix(content: bytes) -> str:
    """Return the suffix of an encoded picture, by its first bytes."""
    return next(suffix for suffix, (start, _) in PICTURE_SUFFIXES.items() if content.startswith(start))


def json_value(value: Any) -> Any:
    """Return a value of JSON with None in place of numbers that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: json_value(item) for key, item in value.items()}
    return [json_value(item) for item in value] if isinstance(value, list | tuple) else value


def verifier_rewards(run: Run) -> tuple[str, ...]:
    """Return the watched rewards of ours that are functions.

    Networks and servers cost too much for pictures beside them.  Code of a user or of another package may be slow, or
    count its calls, so it is called for what is trained and measured alone.
    """
    servers = run.reward_models.servers
    return tuple(
        name for name in run.watched if name in REWARDS and find_reward(name).load is None and name not in servers
    )


def score_pictures(run: Run, images: np.ndarray, records: Sequence[dict]) -> dict[str, Any]:
    """Return scores and parts of images (P, K, ...) by the rewards of ours that are functions, in rows of P K each."""
    names = verifier_rewards(run)
    return scores_of_pictures({name: score_groups(name, images, records, run.reward_models) for name in names})


def scores_of_pictures(scores: Mapping[str, GroupScores]) -> dict[str, Any]:
    """Return the scores and the parts of rewards as a step's file holds them, by name in one row of all pictures."""
    return {
        "scores": {name: score.values.flatten().tolist() for name, score in scores.items()},
        "parts": {
            f"{name}/{part}": values.flatten().tolist()
            for name, score in scores.items()
            for part, values in score.parts.items()
        },
    }
