"""A set of images to judge: drawn by a model into a folder, or read from a folder that holds them already."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..experiment.serialization import to_json
from ..models.generate import decode_groups, draw_latents, encode_records
from ..models.lora.files import lora_digest
from ..models.pipeline import Model
from ..models.pipeline_files import weights_digest
from ..system.errors import InputError
from ..system.folder_lock import locked_folder
from ..system.input_pictures import file_version, input_names, with_digests
from . import image_store
from .suites import Drawing

OF_SOURCE = ("model", "lora", "weights", "prompts")
"""Settings in which two sets may differ, because the report names them or they are checked to be equal."""


def drawing_differences(one: Path, other: Path) -> list[str]:
    """Return what else than the model differs between two folders of images, a sentence each."""
    first, second = image_store.drawn_with(one), image_store.drawn_with(other)
    unknown = [folder for folder, settings in ((one, first), (other, second)) if not settings]
    if unknown:
        return [] if len(unknown) == 2 else [f"how {unknown[0]} was drawn is not known; the other set is of afterflow"]
    names = [name for name in {**first, **second} if name not in OF_SOURCE and first.get(name) != second.get(name)]
    return [
        f"the sets differ in {name} too: {first.get(name)} in {one}, {second.get(name)} in {other}" for name in names
    ]


def inputs_digest(records: Sequence[dict]) -> dict[str, str]:
    """Return the digest of the pictures that records are about, under "inputs"; empty where they are about none."""
    inputs = [with_digests(record).get("input") for record in records]
    return {"inputs": hashlib.sha256(json.dumps(inputs).encode()).hexdigest()} if any(inputs) else {}


def check_same_inputs(folder: Path, records: Sequence[dict]) -> None:
    """Raise InputError where pictures that the images of a folder were drawn of are there and are others now."""
    drawn = image_store.drawn_with(folder).get("inputs")
    names = [name for record in records for name in input_names(record)]
    there = all(name.startswith("data:") or file_version(name) is not None for name in names)
    if drawn is not None and there and inputs_digest(records) != {"inputs": drawn}:
        raise InputError(f"{folder}: its input pictures changed since it was drawn; put them back, or draw it anew")


@dataclass(frozen=True)
class PictureSource:
    """What makes the images of a set: a pipeline and perhaps a LoRA, or a folder of images in GenEval's layout."""

    path: str
    lora: str | None = None

    @property
    def is_drawn(self) -> bool:
        """Whether the path is a folder that holds images already."""
        return image_store.holds_images(Path(self.path))

    @property
    def name(self) -> str:
        """The name in progress messages and reports."""
        return self.path if self.lora is None else f"{self.path} + {self.lora}"


@dataclass(frozen=True)
class ImageSet:
    """The images of P records by one source; `folder` is where they are, or where they are drawn."""

    source: PictureSource
    records: Sequence[dict]
    folder: Path

    def draw(
        self,
        drawing: Drawing,
        load: Callable[[str, str | None], Model],
        settings: Mapping[str, Any],
        log: Callable[[str], None],
    ) -> None:
        """Draw the images that the folder lacks; a source that holds its images already is left as it is.

        The noise depends on the seed and the index of a prompt alone, so an interruption changes nothing.
        InputError is raised where the folder holds images that were drawn otherwise, ConfigError where another process
        draws into it.
        """
        if self.source.is_drawn:
            return
        with locked_folder(self.folder):
            path, lora = self.source.path, self.source.lora
            weights = weights_digest(path, settings.get("revision")) + ("" if lora is None else " " + lora_digest(lora))
            drawn_with = {"model": path, "lora": lora, **to_json(drawing), **settings, "weights": weights}
            drawn_with |= {"prompts": [record["prompt"] for record in self.records], **inputs_digest(self.records)}
            image_store.open_store(self.folder, drawn_with)
            image_store.update_records(self.folder, self.records)
            missing = image_store.missing_prompts(self.folder, len(self.records))
            if not missing:
                return
            model = load(path, lora)
            cond, d = encode_records(model, self.records), drawing
            velocity = model.guided_velocity(d.guidance, d.chunk)
            for rows in torch.tensor(missing).split(max(1, d.chunk // d.images)):
                latents = draw_latents(velocity, model, cond[rows], d.images, d.steps, d.seed, d.chunk)
                for i, images in zip(rows.tolist(), decode_groups(model, latents)):
                    image_store.add_images(self.folder, i, self.records[i], images)
                remaining = len(image_store.missing_prompts(self.folder, len(self.records)))
                log(f"{self.folder}: {len(self.records) - remaining} of {len(self.records)} prompts")
