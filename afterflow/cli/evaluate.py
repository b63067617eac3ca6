"""afterflow eval and sample: what a model draws, and how good it is."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from rich.console import Console
from tyro.conf import OmitArgPrefixes, Positional, PositionalMetavarFromFieldName

from ..envs.shapes.world import TAGS
from ..evaluation.shapes_report import Settings, beside_teachers, render
from ..experiment.serialization import to_json
from ..system.names import unknown_name
from .model_options import Source, check_sources, named
from .output import check_png, save, write_file

if TYPE_CHECKING:
    import numpy as np


def evaluate(args: Sequence[str]) -> None:
    """Measure a model, alone or against another, with intervals."""
    if suite_of(args) not in (None, "shapes"):
        from .evaluate_suite import evaluate_suite

        return evaluate_suite(args)
    tyro.cli(Eval, args=args, prog="afterflow eval", config=[PositionalMetavarFromFieldName])()


def suite_of(args: Sequence[str]) -> str | None:
    """What --suite names: the options of the shapes world's are others."""
    for i, word in enumerate(args):
        if word.startswith("--suite="):
            return word.removeprefix("--suite=")
        if word == "--suite" and i + 1 < len(args):
            return args[i + 1]
    return None


@dataclass(frozen=True)
class Eval:
    """Measure a model on prompts of the shapes world, alone or beside another that starts from the same noise."""

    model: Positional[str]
    """Hub id or folder of a pipeline, or `tiny`."""
    lora: str | None = None
    """Folder of a LoRA to put on MODEL."""
    against: str | None = None
    """Compare with this pipeline; `base` is MODEL itself, without --lora."""
    lora_against: str | None = None
    """Folder of a LoRA to put on what --against names."""
    teachers: tuple[str, ...] = ()
    """TAG,TAG=FOLDER: who is best at these tags; the LoRAs, on MODEL, stand beside the result tag by tag."""
    suite: Literal["shapes", "geneval", "ocr", "drawbench", "hpd", "unigen", "video"] = "shapes"
    """What is drawn, and who judges it; each but shapes has options of its own: eval --suite geneval --help."""
    settings: OmitArgPrefixes[Settings] = field(default_factory=Settings)
    source: OmitArgPrefixes[Source] = field(default_factory=Source)
    json: str | None = None
    """Write the figures to this file; - prints them last on stdout, on one line."""
    grid: str | None = None
    """Draw one picture of up to 48 prompts into this .png, base left and tuned right, green where strict passed."""

    def __post_init__(self) -> None:
        if self.against is None and self.lora_against is not None:
            raise ValueError("--lora-against goes on what --against names; add --against base for MODEL itself")
        if self.against == "base" and self.lora == self.lora_against:
            raise ValueError("--against base compares MODEL with itself; give a --lora, or name another model")
        check_png("--grid", self.grid)
        teachers_by_tag(self.teachers)

    def __call__(self) -> None:
        against = self.model if self.against == "base" else self.against
        teachers = teachers_by_tag(self.teachers)
        check_sources([self.model, against], [self.lora, self.lora_against, *teachers.values()])
        from ..evaluation.shapes_suite import compare_pictures, strict_of_teachers
        from ..experiment.image_grid import before_after

        before = None if against is None else self.draw(against, self.lora_against)[1]
        records, after = self.draw(self.model, self.lora)
        if before is not None and before.shape != after.shape:
            sizes = f"{self.model} draws {after.shape[2]} px and {against} {before.shape[2]} px"
            raise ValueError(f"{sizes}; set --size to one that both can draw")
        names = named(self.model, self.lora), against and named(against, self.lora_against)
        report, judged, judged_base = compare_pictures(self.settings, records, after, before, *names)
        if teachers:
            if not {record["tag"] for record in records} & set(teachers):
                raise ValueError(f"--teachers: the {self.settings.split} split has no prompts of {', '.join(teachers)}")
            print(f"{len(set(teachers.values()))} teachers: the prompts of their own tags", file=sys.stderr)
            strict = strict_of_teachers(
                records, self.settings, teachers, lambda folder: self.source.load(self.model, folder)
            )
            report = replace(report, taught=beside_teachers(self.settings, records, judged.strict.mean(1), strict))
        Console().print(render(report))
        if self.grid is not None:
            strict_before = None if judged_base is None else judged_base.strict
            save(before_after(records, before, after, strict_before, judged.strict), Path(self.grid))
        if self.json == "-":
            print(json.dumps(to_json(report)))
        elif self.json is not None:
            write_file(Path(self.json), json.dumps(to_json(report), indent=2) + "\n")

    def draw(self, path: str, lora: str | None) -> tuple[list[dict], "np.ndarray"]:
        """The prompts of the suite and their pictures by one model, of which nothing stays in memory."""
        from ..evaluation.shapes_suite import suite_pictures, suite_prompts
        from ..models.generate import picture_size

        model = self.source.load(path, lora)
        records = suite_prompts(self.settings, picture_size(model))
        print(f"{named(path, lora)}: {len(records)} prompts x {self.settings.images} images", file=sys.stderr)
        return records, suite_pictures(model, records, self.settings)


def teachers_by_tag(words: Sequence[str]) -> dict[str, str]:
    """TAG,TAG=FOLDER ... → tag → folder; ValueError for what is written otherwise."""
    found = {}
    for word in words:
        tags, equals, folder = word.partition("=")
        if not equals or not tags or not folder:
            raise ValueError(f"--teachers {word}: write TAG,TAG=FOLDER")
        for tag in tags.split(","):
            if tag not in TAGS:
                raise unknown_name("tag", tag, TAGS)
            if tag in found:
                raise ValueError(f"--teachers: {tag} has two teachers, {found[tag]} and {folder}; give it one")
            found[tag] = folder
    return found
