"""A chain of stages that build on each other: teachers, a merge of them, a student.

The folder of a stage is runs/STAGE, and the same command goes on with the first that has not ended.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from ..data.prompts import PromptFile, ShapesPrompts
from ..models.adapters import Teacher
from ..models.base import default_device
from ..models.generate import draw_images
from ..models.lora.merge import LoRAMerge
from ..models.sd3 import SD3
from ..system.atomic_files import make_folder, write_text_atomically, writing
from ..system.errors import CheckpointError, ConfigError
from ..system.folder_lock import check_unlocked, locked_folder
from ..system.names import check_folder_name
from ..system.own_folders import check_links, check_own, check_place
from ..system.text_files import read_json
from .config import Run
from .made_from import INPUTS, check_inputs_unchanged, write_inputs
from .prompt_checks import check_routes, held_out_records, prompt_records
from .serialization import from_json, to_json
from .train_subprocess import check_same, has_ended, train_in_subprocess

_log = logging.getLogger(__name__)


class _StageFolder:
    """A stage that leaves its result in a folder of its name."""

    name: str

    @property
    def folder(self) -> Path:
        """The folder of the stage."""
        return Path("runs") / self.name


@dataclass(frozen=True)
class BuildParts(_StageFolder):
    """A tiny pipeline is built: its autoencoder and text encoders are trained, its transformer is random."""

    family: Literal["SD3", "Wan", "Flux2Klein"]
    """Family of the pipeline: SD3 draws pictures of the shapes world, Wan clips of the moving world, and Flux2Klein
    edits pictures of the editing world."""
    name: str
    """Name of the stage.  The pipeline is kept in runs/NAME/model."""
    seed: int = 0
    """Seed of pictures, weights and training."""
    pictures: int = 20_000
    """Number of pictures, or clips, that the parts learn from."""
    autoencoder_steps: int = 3000
    """Updates of the autoencoder."""
    text_steps: int = 700
    """Updates of the text encoders."""

    @property
    def model(self) -> Path:
        """The folder of the pipeline."""
        return self.folder / "model"

    def __call__(self) -> str:
        # Imported here because only this stage needs the libraries that make networks.
        from ..models.tiny_parts.build import build_tiny_sd3
        from ..models.tiny_parts.editing import build_tiny_klein
        from ..models.tiny_parts.video import build_tiny_wan

        builders: dict[str, Callable[..., object]] = {
            "SD3": build_tiny_sd3,
            "Wan": build_tiny_wan,
            "Flux2Klein": build_tiny_klein,
        }
        builders[self.family](self.model, self.seed, self.pictures, self.autoencoder_steps, self.text_steps)
        return f"a tiny {self.family} with a random transformer is in {self.model}"


@dataclass(frozen=True)
class Merge(_StageFolder, LoRAMerge):
    """Several LoRAs are merged into one."""

    name: str = "merge"
    """Name of the stage.  The merged LoRA is kept in runs/NAME/lora."""

    def __call__(self) -> str:
        _, error = self.write(self.folder / "lora")
        return f"what its rank cannot hold is {error:.1%} of the merge"


@dataclass(frozen=True)
class Samples(_StageFolder):
    """Teachers draw pictures of the prompts of their tasks, which a run may learn from as an `ImageFolder`."""

    model: SD3
    """Pipeline that the teachers' LoRAs adapt."""
    teachers: tuple[Teacher, ...]
    """Teachers and the tasks whose prompts they draw."""
    prompts: ShapesPrompts | PromptFile
    """Prompts of the pictures."""
    name: str = "samples"
    """Name of the stage.  The pictures are kept in runs/NAME/images."""
    route: str = "tag"
    """Key of a record that names its task."""
    per_prompt: int = 4
    """Number of pictures of a prompt."""
    steps: int = 20
    """Number of ODE steps."""
    guidance_scale: float = 1.0
    """Guidance scale of teachers that name none."""
    seed: int = 0
    """Seed of prompts and noise."""

    def records(self) -> list[dict]:
        """Return the prompts to draw.  InputError names a prompt that has no teacher."""
        records = self.prompts.records(self.seed)
        check_routes(records, self.route, self.teachers)
        return records

    def __call__(self) -> str:
        records = self.records()
        images = self.folder / "images"
        make_folder(images)
        lines = []
        for teacher in self.teachers:
            rows = [i for i, record in enumerate(records) if record[self.route] in teacher.tasks]
            if not rows:
                continue
            for i, of_prompt in zip(rows, self.pictures(teacher, records, rows)):
                for j, pixels in enumerate(of_prompt):
                    name = f"{i:05d}_{j}.png"
                    with writing(images / name):
                        Image.fromarray(pixels).save(images / name)
                    lines.append({"file_name": name, "caption": records[i]["prompt"], **records[i]})
        write_text_atomically(images / "metadata.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        return f"{len(lines)} pictures by {len(self.teachers)} teachers"

    def pictures(self, teacher: Teacher, records: list[dict], rows: list[int]) -> np.ndarray:
        """Draw a teacher's pictures of the records in `rows`, uint8 (P, per_prompt, H, W, 3); its model is let go."""
        model = self.model.load(default_device())
        if teacher.lora is not None:
            model.load_lora(teacher.lora)
        scale = teacher.guidance(self.guidance_scale)
        return draw_images(model, records, self.per_prompt, self.steps, scale, self.seed, rows)


Stage = Run | BuildParts | Merge | Samples


@dataclass(frozen=True)
class Chain:
    """Stages in order, each of which may use the folders of those before it."""

    name: str
    stages: tuple[Stage, ...]
    """Stages in order.  A stage may use the folders of those before it, which are runs/NAME."""
    processes: int = 1
    """Number of processes that train a run.  torchrun starts them on this machine."""

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ConfigError(f"chain {self.name}: processes = {self.processes}; at least 1")
        names = [stage.name for stage in self.stages]
        for name in names:
            check_folder_name(f"chain {self.name}: name", name)
            if names.count(name) > 1:
                raise ConfigError(f"chain {self.name}: two stages are called {name}; give each a name of its own")


def execute_chain(chain: Chain) -> Path:
    """Do the stages of a chain that have not ended, and return the folder of the last.

    ConfigError or InputError is raised first where a stage cannot be run, and CheckpointError where its folder
    holds another stage or what it was made from has changed.  TrainingStopped is raised where a run could not be
    finished.
    """
    for stage in chain.stages:
        check_place(stage.folder)
        check_unlocked(stage.folder)
    for stage in chain.stages:
        check_stage(stage)
    for i, stage in enumerate(chain.stages, 1):
        title = f"{chain.name}, stage {i} of {len(chain.stages)}, {stage.name}"
        if is_done(stage):
            _log.info(f"{title}: is there already")
            continue
        check_unlocked(stage.folder)
        make_folder(stage.folder)
        write_inputs(stage.folder, stage)
        if isinstance(stage, Run):
            _log.info(title)
            train_in_subprocess(stage, chain.name, processes=chain.processes)
        else:
            with locked_folder(stage.folder):
                _log.info(f"{title}: {stage()}")
            write_text_atomically(record_of(stage), json.dumps(to_json(stage)) + "\n")
    return chain.stages[-1].folder


def check_stage(stage: Stage) -> None:
    """Check that a stage can be run, and that its folder holds no other or older one.

    ConfigError, InputError or CheckpointError says what is wrong.
    """
    if isinstance(stage, Run):
        check_same(stage)
        for records in (prompt_records, held_out_records):
            records(stage)
    else:
        check_same_stage(stage)
        if isinstance(stage, Samples):
            stage.records()
    if is_done(stage):
        check_inputs_unchanged(stage.folder, stage)


def is_done(stage: Stage) -> bool:
    """Return whether a stage has left its result."""
    return has_ended(stage.folder, stage) if isinstance(stage, Run) else record_of(stage).is_file()


def record_of(stage: BuildParts | Merge | Samples) -> Path:
    """Return the file that is written when the stage is done."""
    return stage.folder / "stage.json"


def check_same_stage(stage: BuildParts | Merge | Samples) -> None:
    """Check that the stage's folder holds no stage with other settings.  CheckpointError where it does.

    InputError or OutputError where it is not a stage's alone.
    """
    check_links(stage.folder)
    check_own(stage.folder, lambda folder: (folder / INPUTS).is_file() or record_of(stage).is_file(), "stage.json")
    file = record_of(stage)
    if file.is_file() and from_json(type(stage), read_json(file), str(file)) != stage:
        raise CheckpointError(
            f"{stage.folder} holds a stage with other settings; delete it, or give this one another name"
        )
