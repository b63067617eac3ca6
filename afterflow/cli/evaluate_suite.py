"""afterflow eval --suite: a model on prompts of others, drawn into a folder and judged by rewards."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from tyro.conf import OmitArgPrefixes, Positional, PositionalMetavarFromFieldName

from ..evaluation.suites import (
    SUITES,
    Drawing,
    Found,
    check_records,
    draw_suite,
    rendered,
    scores,
    suite_records,
    suite_report,
)
from ..experiment.serialization import to_json
from ..rewards.base import RewardModels
from ..system.atomic_files import sha256
from ..system.optional_dependencies import check_extra
from .model_options import Source, check_sources, named
from .output import write_file


def evaluate_suite(args: Sequence[str]) -> None:
    tyro.cli(EvalSuite, args=args, prog="afterflow eval", config=[PositionalMetavarFromFieldName])()


@dataclass(frozen=True)
class EvalSuite:
    """Measure a model on a suite of prompts, alone or beside another that starts from the same noise.

    Pictures stay in OUT in GenEval's layout, and the same command goes on where it was interrupted.
    """

    model: Positional[str]
    """Hub id or folder of a pipeline, or a folder of pictures in GenEval's layout, which are only judged."""
    suite: Literal["geneval", "ocr", "drawbench", "hpd", "unigen", "video"]
    """Which prompts, and which rewards; eval --suite shapes --help is of the shapes world."""
    lora: str | None = None
    """Folder of a LoRA to put on MODEL."""
    against: str | None = None
    """Compare with this pipeline, or folder of pictures; `base` is MODEL itself, without --lora."""
    lora_against: str | None = None
    """Folder of a LoRA to put on what --against names."""
    prompts_from: str | None = None
    """A file (.txt, .jsonl, .csv, .json), a folder of them, or owner/name[:split] of the hub; of ocr and video: None is
    prompts of ours."""
    prompts: int | None = None
    """At most so many, shared evenly among the tags; None: all (of ours 300)."""
    rewards: tuple[str, ...] = ()
    """What judges; empty: the suite's own.  Name what was not trained as well."""
    out: str | None = None
    """Where the pictures go; None: evals/SUITE."""
    drawing: OmitArgPrefixes[Drawing] = field(default_factory=Drawing)
    draws: int = 10_000
    """Of the bootstrap."""
    distances: bool = False
    """Fréchet and kernel distance (MMD²) of the two models' pictures by CLIP's features, and to --reference."""
    reference: str | None = None
    """Folder of real pictures in GenEval's layout."""
    source: OmitArgPrefixes[Source] = field(default_factory=Source)
    reward_models: RewardModels = field(default_factory=RewardModels)
    json: str | None = None
    """Write the figures to this file; - prints them last on stdout, on one line."""

    def __post_init__(self) -> None:
        if self.against is None and self.lora_against is not None:
            raise ValueError("--lora-against goes on what --against names; add --against base for MODEL itself")
        if self.against == "base" and self.lora == self.lora_against:
            raise ValueError("--against base compares MODEL with itself; give a --lora, or name another model")
        if self.prompts is not None and self.prompts < 1:
            raise ValueError(f"prompts = {self.prompts}: at least 1")
        if self.draws < 1:
            raise ValueError(f"draws = {self.draws}: at least 1")
        if self.reference is not None and not self.distances:
            raise ValueError("--reference is what --distances measures to; add that")
        if self.distances and self.against is None and self.reference is None:
            raise ValueError("--distances needs --against or --reference: other pictures to compare with")

    def __call__(self) -> None:
        from ..evaluation.image_store import is_gallery, records
        from ..rewards.registry import check_rewards

        against = self.model if self.against == "base" else self.against
        rewards = self.rewards or SUITES[self.suite].rewards
        drawn = [place for place in (self.model, against) if place is not None and is_gallery(Path(place))]
        to_draw = [place for place in (self.model, against) if place not in (None, *drawn)]
        self.check_drawn(drawn, to_draw)
        given = [records(Path(place)) for place in drawn]
        if to_draw:
            given.append(suite_records(self.suite, self.prompts_from, self.prompts))
        prompts = [[record["prompt"] for record in each] for each in given]
        if any(each != prompts[0] for each in prompts):
            raise ValueError(f"{' and '.join(drawn)}: not the pictures of the same prompts in the same order")
        check_records(given[-1], rewards)
        if self.distances:
            check_extra("--distances", ["torchmetrics"], "distances")
        check_sources(to_draw, [self.lora, self.lora_against])
        check_rewards(rewards, self.reward_models)
        self.check_clips(to_draw, rewards)
        drawing = replace(self.drawing, guidance=self.guidance(drawn)) if to_draw else self.drawing
        out = Path(self.out or f"evals/{self.suite}")
        tuned = self.pictures(self.model, self.lora, given[-1], drawing, out / "tuned")
        base = None if against is None else self.pictures(against, self.lora_against, given[-1], drawing, out / "base")
        judge = lambda place: scores(place, given[-1], rewards, self.reward_models, say, SUITES[self.suite].parts)
        of_tuned, of_base = judge(tuned), None if base is None else judge(base)
        names = named(self.model, self.lora), against and named(against, self.lora_against)
        found = suite_report(self.suite, given[-1], of_tuned, of_base, names, self.drawing.seed, self.draws)
        if self.distances:
            found = replace(found, distances=self.measured(tuned, base))
        self.show(found)

    def check_drawn(self, drawn: Sequence[str], to_draw: Sequence[str | None]) -> None:
        """ValueError for options that pictures which are there already could not follow."""
        from ..evaluation.image_store import drawn_with, is_gallery

        if self.model in drawn and (self.lora is not None or self.against == "base"):
            raise ValueError(f"{self.model} holds pictures, on which no LoRA can be put and which have no base")
        if self.against in drawn and self.lora_against is not None:
            raise ValueError(f"{self.against} holds pictures, on which no LoRA can be put")
        asked = {"prompts_from": self.prompts_from, "prompts": self.prompts}
        unheard = [name for name, value in asked.items() if value is not None]
        unheard += [name for name, value in vars(self.drawing).items() if value != getattr(Drawing(), name)]
        if not to_draw and unheard:
            options = ", ".join("--" + name.replace("_", "-") for name in unheard)
            raise ValueError(f"nothing is drawn here, so {options} would change nothing; leave it out")
        for folder in drawn if to_draw else ():
            before = drawn_with(Path(folder))
            for name in ("images", "steps", "seed"):
                if name in before and before[name] != getattr(self.drawing, name):
                    raise ValueError(f"{folder} was drawn with {name} = {before[name]}; say --{name} {before[name]}")
        if self.reference is not None and not is_gallery(Path(self.reference)):
            raise ValueError(f"--reference {self.reference}: no pictures in GenEval's layout are there")

    def check_clips(self, to_draw: Sequence[str | None], rewards: Sequence[str]) -> None:
        """ValueError for rewards of clips where a model draws images."""
        from ..models.families import pretrained
        from ..models.wan import Wan
        from ..rewards.registry import find_reward

        judges = [name for name in rewards if find_reward(name).clips]
        for path in filter(None, to_draw) if judges else ():
            if not isinstance(pretrained(path, self.source.dtype, {}), Wan):
                raise ValueError(
                    f"{judges[0]} judges clips, and {path} draws images; take a Wan, or name other --rewards"
                )

    def guidance(self, drawn: Sequence[str]) -> float:
        """The scale asked for, or that of the pictures to compare with, of the LoRA's training, or of the family."""
        from ..evaluation.image_store import drawn_with
        from ..experiment.run_folder import trained_guidance
        from ..models.families import FAMILIES, pretrained

        told = [drawn_with(Path(folder)).get("guidance") for folder in drawn]
        told += [None if lora is None else trained_guidance(Path(lora)) for lora in (self.lora, self.lora_against)]
        known = [self.drawing.guidance, *told]
        found = next((scale for scale in known if scale is not None), None)
        if found is None:
            path = self.against if self.model in drawn else self.model
            assert path is not None
            found = FAMILIES[type(pretrained(path, self.source.dtype, {}))].usual_guidance
        say(f"guidance scale {found:g}")
        return found

    def pictures(self, path: str, lora: str | None, records: Sequence[dict], drawing: Drawing, folder: Path) -> Path:
        """The folder with a model's pictures of the records, drawn where they are not there."""
        from ..evaluation.image_store import begin, is_gallery, missing, update
        from ..models.lora.files import lora_file
        from ..models.pipeline import weights_digest

        if is_gallery(Path(path)):
            return Path(path)
        content = weights_digest(path) + ("" if lora is None else " " + sha256(lora_file(lora)))
        how = {**to_json(drawing), **to_json(self.source), "weights": content}
        begin(folder, {"model": path, "lora": lora, **how, "prompts": [record["prompt"] for record in records]})
        update(folder, records)
        if missing(folder, len(records)):
            draw_suite(self.source.load(path, lora), records, drawing, folder, say)
        return folder

    def measured(self, tuned: Path, base: Path | None) -> dict[str, float]:
        from ..evaluation.clip_distances import distances

        return distances(tuned, base, None if self.reference is None else Path(self.reference), self.reward_models)

    def show(self, found: Found) -> None:
        Console().print(rendered(found, self.draws))
        if self.json == "-":
            print(json.dumps(to_json(found)))
        elif self.json is not None:
            write_file(Path(self.json), json.dumps(to_json(found), indent=2) + "\n")


def say(line: str) -> None:
    print(line, file=sys.stderr)
