"""afterflow eval: how good a model's images are, alone or beside another model's."""

import json
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg
from tyro.extras import literal_type_from_choices

from ..envs.shapes.world import TAGS
from ..evaluation.report import Report, ShapesSettings, render_report
from ..evaluation.suites import SUITES, Drawing, suite_records, suite_report
from ..experiment.serialization import to_json
from ..rewards.base import RewardModels
from ..system.checks import check_at_least_one, check_not_negative
from ..system.errors import ConfigError, InputError
from ..system.input_pictures import input_names, with_digests
from ..system.names import unknown_name
from ..system.optional_dependencies import check_extra
from ..system.own_folders import check_own_file, holds_object, is_own_picture
from .model_options import ModelOptions, check_sources, trained_guidance
from .output import check_png, print_progress, result_console, save_image, write_text
from .parsing import parse_options

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from ..evaluation.image_set import ImageSet, PictureSource

SHAPES_OPTIONS = ("split", "teachers")
"""Options that only the suite `shapes` has."""
FOLDER_OPTIONS = ("prompts_from", "rewards", "out", "chunk", "distances", "reference", "reward_models")
"""Options that only the other suites have, which are drawn into a folder and judged by rewards."""
DRAWING_OPTIONS = ("prompts_from", "prompts", "images", "steps", "guidance", "seed", "chunk")
"""Options that change nothing where no image is drawn."""


def eval_command(args: Sequence[str]) -> None:
    """Measure a model, alone or against another, with intervals."""
    parse_options(Eval, args, "afterflow eval")()


@dataclass(frozen=True)
class Eval:
    """Measure a model on a suite of prompts, alone or beside another that starts from the same noise.

    Images of every suite but `shapes` stay in OUT in GenEval's layout.  Repeated after an interruption,
    the same command continues.
    """

    model: Positional[str]
    """Hub id or folder of a pipeline, or `tiny`.  A folder of pictures in GenEval's layout is only judged."""
    lora: str | None = None
    """Run, folder or file of a LoRA to put on MODEL."""
    against: str | None = None
    """Compare with this pipeline or folder of pictures.  `base` is MODEL itself, without --lora."""
    lora_against: str | None = None
    """Run, folder or file of a LoRA to put on what --against names."""
    suite: Annotated[str, arg(constructor=literal_type_from_choices(SUITES))] = "shapes"
    """The prompts, and what judges images of them: the shapes world's verifier, or rewards."""
    split: Literal["train", "test", "ood"] = "test"
    """Split of the suite `shapes`.  A prompt of test has a held-out fact.  ood is one step beyond training."""
    teachers: tuple[str, ...] = ()
    """TAG,TAG=LORA: LoRAs on MODEL that are best at these tags of `shapes`.  The report compares tag by tag."""
    grid: str | None = None
    """Draw up to 48 prompts into this .png: pictures that a prompt is about, base, tuned.  Green marks what passed
    strict of `shapes`, or another suite's first judge where its scores are 0 and 1 alone."""
    prompts_from: str | None = None
    """A file (.txt, .jsonl, .csv, .json), a folder of them, or owner/name[:split] of the hub.  None: prompts of ours,
    which ocr and video have."""
    prompts: int | None = None
    """Number of prompts at most, shared evenly among the tags.  None: 350 of shapes, 300 of ours, or the whole list."""
    rewards: tuple[str, ...] = ()
    """Rewards that judge; empty: those of the suite.  Name some that were not trained as well."""
    out: str | None = None
    """Folder of the pictures; None: evals/SUITE."""
    images: int = 4
    """Number of pictures, or clips, of each prompt."""
    steps: int | None = None
    """Number of ODE steps; None: 20 of shapes, 40 of the others."""
    guidance: float | None = None
    """Scale of classifier-free guidance; 1 is without guidance.  None: 1 of shapes.  For the others it is the scale
    that the LoRA was trained with, or the usual one of the family (1 of FLUX.1-dev, whose scale is an input, and of a
    pipeline that comes with afterflow)."""
    seed: int = 0
    """Seed of the starting noise, and of the prompts of shapes, so that two models can be compared by picture."""
    chunk: int | None = None
    """Number of pictures in a forward pass of a suite that is drawn into a folder; None: 16.  Guidance doubles it."""
    draws: int = 10_000
    """Number of bootstrap resamples."""
    distances: bool = False
    """Measure Fréchet and kernel distance (MMD²) by CLIP's features between the models, and to --reference."""
    reference: str | None = None
    """Folder of real pictures in GenEval's layout."""
    source: OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)
    reward_models: RewardModels = field(default_factory=RewardModels)
    json: str | None = None
    """Write the figures to this file; - prints them last on stdout, on one line."""

    def __post_init__(self) -> None:
        if self.against is None and self.lora_against is not None:
            raise ConfigError("--lora-against goes on what --against names; add --against base for MODEL itself")
        if self.against == "base" and self.lora == self.lora_against:
            raise ConfigError("--against base compares MODEL with itself; give a --lora, or name another model")
        check_at_least_one(self, "prompts", "images", "steps", "chunk", "draws")
        check_not_negative(self, "seed")
        foreign = self.changed(FOLDER_OPTIONS if self.suite == "shapes" else SHAPES_OPTIONS)
        if foreign:
            raise ConfigError(
                f"--suite {self.suite} has no {', '.join(foreign)}; leave it out, or name another --suite"
            )
        if self.reference is not None and not self.distances:
            raise ConfigError("--reference is what --distances measures to; add that")
        if self.distances and self.against is None and self.reference is None:
            raise ConfigError("--distances needs --against or --reference: other pictures to compare with")
        check_png("--grid", self.grid)
        if self.grid is not None:
            check_own_file(Path(self.grid), is_own_picture)
        if self.json is not None and self.json != "-":
            check_own_file(Path(self.json), lambda file: holds_object(file, "overall"))
        teachers_by_tag(self.teachers)

    def __call__(self) -> None:
        to_draw = [source for source in self.sources() if source is not None and not source.is_drawn]
        options = self.source
        if to_draw:
            options = options.as_trained(to_draw[0].path, [source.lora for source in to_draw])
        drawn = replace(self, source=options)
        report, grid = drawn.judge_shapes() if self.suite == "shapes" else drawn.judge_by_rewards()
        result_console().print(render_report(report))
        if self.json == "-":
            print(json.dumps(to_json(report)))
        elif self.json is not None:
            write_text(Path(self.json), json.dumps(to_json(report), indent=2) + "\n")
        if self.grid is not None and grid is not None:
            save_image(grid, Path(self.grid))
        if report.blind:
            raise InputError(report.blind[0])

    def sources(self) -> "tuple[PictureSource, PictureSource | None]":
        """Return what makes the images of MODEL, and of --against."""
        from ..evaluation.image_set import PictureSource

        against = self.model if self.against == "base" else self.against
        base = None if against is None else PictureSource(against, self.lora_against)
        return PictureSource(self.model, self.lora), base

    def changed(self, names: Sequence[str]) -> list[str]:
        """Return those of the named options that are not at their default, as they are typed."""
        default = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(self)}
        return ["--" + name.replace("_", "-") for name in names if getattr(self, name) != default[name]]

    def judge_shapes(self) -> "tuple[Report, Image.Image | None]":
        """Draw prompts of the shapes world in memory, judge the images by its verifier, and lay them out for --grid."""
        from ..evaluation.shapes_suite import beside_teachers, compare_pictures, strict_of_teachers
        from ..experiment.image_grid import first_images
        from ..models.families import check_guidance

        (tuned, base), teachers = self.sources(), teachers_by_tag(self.teachers)
        loras = [self.lora, self.lora_against, *teachers.values()]
        check_sources([tuned.path, base and base.path], loras, self.source.revision)
        scale = 1.0 if self.guidance is None else self.guidance
        for path in filter(None, (tuned.path, base and base.path)):
            check_guidance(self.source.check_prompts(path, [{"prompt": "all of shapes"}]), scale)
        settings = ShapesSettings(
            self.split, self.prompts or 350, self.images, self.steps or 20, scale, self.seed, self.draws
        )
        before = None if base is None else self.draw_shapes(settings, base)[1]
        records, after = self.draw_shapes(settings, tuned)
        if base is not None and before is not None and before.shape != after.shape:
            sizes = f"{tuned.path} draws {after.shape[2]} px and {base.path} {before.shape[2]} px"
            raise ConfigError(f"{sizes}; set --size to one that both can draw")
        names = tuned.name, base and base.name
        report, judged, judged_base = compare_pictures(settings, records, after, before, *names)
        if teachers:
            if not {record["tag"] for record in records} & set(teachers):
                raise ConfigError(f"--teachers: the {self.split} split has no prompts of {', '.join(teachers)}")
            print_progress(f"{len(set(teachers.values()))} teachers: the prompts of their own tags")
            strict = strict_of_teachers(
                records, settings, teachers, lambda folder: self.source.load(self.model, folder)
            )
            report = replace(report, taught=beside_teachers(settings, records, judged.strict.mean(1), strict))
        sets = [(after, judged.strict)]
        if before is not None and judged_base is not None:
            sets.insert(0, (before, judged_base.strict))
        return report, None if self.grid is None else first_images(records, sets)

    def draw_shapes(self, settings: ShapesSettings, source: "PictureSource") -> tuple[list[dict], "np.ndarray"]:
        """Return the prompts of the suite and their images by one model, which then leaves memory."""
        from ..evaluation.shapes_suite import suite_pictures, suite_prompts

        model = self.source.load(source.path, source.lora)
        records = suite_prompts(settings, model.drawn_size)
        print_progress(f"{source.name}: {len(records)} prompts x {settings.images} images")
        return records, suite_pictures(model, records, settings)

    def judge_by_rewards(self) -> "tuple[Report, Image.Image | None]":
        """Draw the images that are not there yet into OUT, judge them by rewards, and lay them out for --grid."""
        from ..evaluation.clip_distances import clip_distances
        from ..evaluation.image_set import drawing_differences
        from ..evaluation.image_store import picture_formats
        from ..evaluation.scores import blind_rewards, score_images
        from ..evaluation.set_grid import grid_of_sets

        tuned, base = self.image_sets()
        rewards, parts = self.judges, SUITES[self.suite].parts
        both = [tuned] if base is None else [tuned, base]
        self.check_rewards([images.source for images in both], tuned.records, rewards)
        if not all(images.source.is_drawn for images in both):
            load = partial(self.source.load, inputs=any(map(input_names, tuned.records)))
            drawing = Drawing(self.images, self.steps or 40, self.scale(tuned, base), self.seed, self.chunk or 16)
            options = to_json(replace(self.source, dtype=self.source.dtype or "float32"))
            for images in both:
                images.draw(drawing, load, options, print_progress)
        for sentence in drawing_differences(tuned.folder, base.folder) if base is not None else ():
            print_progress(sentence)
        scores = [score_images(images, rewards, self.reward_models, print_progress, parts) for images in both]
        names = tuned.source.name, None if base is None else base.source.name
        of_base = None if base is None else scores[1]
        report = suite_report(self.suite, tuned.records, scores[0], of_base, names, self.seed, self.draws)
        folders = {"tuned": tuned.folder, "base": base and base.folder, "reference": self.reference}
        formats = {name: picture_formats(Path(folder)) for name, folder in folders.items() if folder is not None}
        report = replace(report, formats=formats)
        report = replace(report, blind=tuple(blind_rewards(both, rewards, self.reward_models)))
        shown = [of_set[rewards[0]] for of_set in scores[::-1]]
        grid = None if self.grid is None else grid_of_sets(both[::-1], shown)
        if not self.distances:
            return report, grid
        reference = None if self.reference is None else Path(self.reference)
        distances = clip_distances(tuned.folder, base and base.folder, reference, self.reward_models)
        return replace(report, distances=distances), grid

    @property
    def judges(self) -> tuple[str, ...]:
        """The rewards that judge: those that are named, or those of the suite."""
        return self.rewards or SUITES[self.suite].rewards

    def image_sets(self) -> "tuple[ImageSet, ImageSet | None]":
        """Return the images of MODEL and of --against, of the same records, before any is drawn."""
        from ..evaluation.image_set import ImageSet, check_same_inputs
        from ..evaluation.image_store import read_records

        tuned, base = self.sources()
        sources = [tuned] if base is None else [tuned, base]
        drawn = [source for source in sources if source.is_drawn]
        self.check_drawn(drawn, len(drawn) == len(sources))
        lists = [read_records(Path(source.path)) for source in drawn]
        for source, records in zip(drawn, lists):
            check_same_inputs(Path(source.path), records)
        if len(drawn) < len(sources):
            lists.append(suite_records(self.suite, self.prompts_from, self.prompts, self.judges, self.reward_models))
        texts = [[record["prompt"] for record in records] for records in lists]
        inputs = [[input_names(with_digests(record)) for record in records] for records in lists]
        for what, values in (("prompts", texts), ("input pictures", inputs)):
            if any(of_set != values[0] for of_set in values):
                paths = " and ".join(source.path for source in drawn)
                raise ConfigError(f"{paths}: not the pictures of the same {what} in the same order")
        out, records = Path(self.out or f"evals/{self.suite}"), lists[-1]
        sets = [
            ImageSet(source, records, Path(source.path) if source.is_drawn else out / name)
            for source, name in zip(sources, ("tuned", "base"))
        ]
        return sets[0], None if base is None else sets[1]

    def check_drawn(self, drawn: "Sequence[PictureSource]", all_drawn: bool) -> None:
        """Raise ConfigError for options that contradict images which are drawn already."""
        from ..evaluation.image_store import drawn_with, holds_images

        for source in drawn:
            if source.path == self.model and (self.lora is not None or self.against == "base"):
                raise ConfigError(f"{self.model} holds pictures, on which no LoRA can be put and which have no base")
            if source.lora is not None:
                raise ConfigError(f"{source.path} holds pictures, on which no LoRA can be put")
            settings = drawn_with(Path(source.path))
            for name, value in (("images", self.images), ("steps", self.steps or 40), ("seed", self.seed)):
                if not all_drawn and settings.get(name, value) != value:
                    was = settings[name]
                    raise ConfigError(f"{source.path} was drawn with {name} = {was}; say --{name} {was}")
        of_model = [f"--{name.replace('_', '-')}" for name, value in vars(self.source).items() if value is not None]
        unused = self.changed(DRAWING_OPTIONS) + of_model if all_drawn else []
        if unused:
            raise ConfigError(f"nothing is drawn here, so {', '.join(unused)} would change nothing; leave it out")
        if self.reference is not None and not holds_images(Path(self.reference)):
            raise ConfigError(f"--reference {self.reference}: no pictures in GenEval's layout are there")

    def check_rewards(
        self, sources: "Sequence[PictureSource]", records: Sequence[dict], rewards: Sequence[str]
    ) -> None:
        """Raise ValueError for libraries, weights or rewards that this evaluation could not use, before it starts."""
        from ..evaluation.scores import check_scorable
        from ..experiment.prompt_checks import check_drawn_size
        from ..models.wan import Wan
        from ..rewards.registry import check_rewards, find_reward, resolve_reward

        for name in rewards:
            resolve_reward(name)
        check_scorable(records, rewards, self.reward_models)
        if self.distances:
            check_extra("--distances", ["torchmetrics"], "distances")
            rewards = tuple(dict.fromkeys((*rewards, "clipscore")))  # its CLIP is what distances see by
        to_draw = [source.path for source in sources if not source.is_drawn]
        check_sources(to_draw, [self.lora, self.lora_against], self.source.revision)
        of_clips = [name for name in rewards if find_reward(name).clips]
        for path in to_draw:
            config = self.source.check_prompts(path, records)
            if of_clips and not isinstance(config, Wan):
                raise ConfigError(
                    f"{of_clips[0]} judges clips, and {path} draws images; take a Wan, or name other --rewards"
                )
            check_drawn_size(config, rewards, "--size")
        check_rewards(rewards, self.reward_models)

    def scale(self, tuned: "ImageSet", base: "ImageSet | None") -> float:
        """Return the guidance scale: as given, of the drawn images, of a LoRA's training, or usual for the family."""
        from ..evaluation.image_store import drawn_with
        from ..models.families import check_guidance, usual_guidance

        sources = [tuned.source] if base is None else [tuned.source, base.source]
        scales = [self.guidance]
        scales += [drawn_with(Path(source.path)).get("guidance") for source in sources if source.is_drawn]
        scales.append(trained_guidance([source.lora for source in sources]))
        scale = next((scale for scale in scales if scale is not None), None)
        if scale is None:
            path = next(source.path for source in sources if not source.is_drawn)
            scale = usual_guidance(path, self.source.revision)
        print_progress(f"guidance scale {scale:g}")
        inputs = any(map(input_names, tuned.records))
        for source in sources:
            if not source.is_drawn:
                check_guidance(self.source.config(source.path, inputs), scale)
        return scale


def teachers_by_tag(words: Sequence[str]) -> dict[str, str]:
    """Read TAG,TAG=LORA ... as tag → folder; raise ConfigError for what is written otherwise."""
    teachers = {}
    for word in words:
        tags, equals, folder = word.partition("=")
        if not equals or not tags or not folder:
            raise ConfigError(f"--teachers {word}: write TAG,TAG=LORA")
        for tag in tags.split(","):
            if tag not in TAGS:
                raise unknown_name("tag", tag, TAGS)
            if tag in teachers:
                raise ConfigError(f"--teachers: {tag} has two teachers, {teachers[tag]} and {folder}; give it one")
            teachers[tag] = folder
    return teachers
