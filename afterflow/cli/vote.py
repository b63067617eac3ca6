"""afterflow vote: people say which of two pictures is better."""

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from ..system.checks import check_at_least_one
from ..system.errors import ConfigError, InputError
from ..system.folder_lock import locked_folder
from ..system.input_pictures import input_names
from ..system.optional_dependencies import check_extra
from ..system.own_folders import check_links
from ..system.text_files import check_text
from ..system.verdicts import verdict_file
from .output import print_progress
from .parsing import parse_options

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ..experiment.config import Run
    from ..models.pipeline import Model

_log = logging.getLogger(__name__)

DRAWING_ALONE = ("images", "prompts", "prompts_from", "steps", "best")
"""Options that only matter where pictures are drawn."""


def vote_command(args: Sequence[str]) -> None:
    """Show pairs of pictures on a local page, and store which is better."""
    parse_options(Vote, args, "afterflow vote")()


@dataclass(frozen=True)
class Vote:
    """Show two pictures of a prompt at a time on a page of this machine, and store verdicts in PATH/verdicts.jsonl.

    Keys are 1 and 2 or the arrows, = for a tie, s to skip, u to undo; a tap on a picture does as well.
    """

    path: Positional[str]
    """Folder of a run, or of pictures with prompts: in GenEval's layout, or with captions as --data.path takes them.
    Where a run's votes/ has none, some are drawn by its result into PATH/votes/drawn."""
    images: int | None = None
    """Number of pictures of each prompt that are drawn; None: 4."""
    prompts: int | None = None
    """Number of prompts of the run that are drawn, at most, shared evenly among the tags; None: 20."""
    prompts_from: str | None = None
    """A list of other prompts to draw, as `afterflow eval --prompts-from` takes it."""
    steps: int | None = None
    """Number of ODE steps; None: those of the run's own pictures."""
    best: bool = False
    """Draw from best/ of the run and not from its result."""
    pairs: int = 6
    """Number of pairs of each prompt, at most."""
    again: bool = False
    """Show judged pairs again after all others, to each open page once."""
    seed: int = 0
    """Seed of the pairs, of their order and of the sides."""
    port: int = 8200
    """Port of the page at 127.0.0.1."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "images", "prompts", "steps", "pairs")

    def __call__(self) -> None:
        check_extra("the page", ["fastapi", "uvicorn"], "serve")
        from ..rewards.remote.connections import bind, run_service
        from ..rewards.remote.limits import ServiceLimits
        from ..rewards.votes.pairs import VOTES_FOLDER

        folder = Path(self.path)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; name the folder of a run, or of pictures with prompts")
        check_links(folder)
        with bind("127.0.0.1", self.port) as listener, locked_folder(folder / VOTES_FOLDER):
            token = secrets.token_urlsafe(24)
            app = self.app(folder, token)
            port = listener.getsockname()[1]
            _log.info(f"open http://127.0.0.1:{port}/{token}/ in a browser of this machine; Ctrl-C ends")
            run_service(app, listener, ServiceLimits())
        file = verdict_file(folder)
        _log.info(f"{len(file.read())} verdicts are in {file.file}")

    def app(self, folder: Path, token: str) -> "FastAPI":
        """Return the page's service; InputError or ConfigError where there is nothing to judge."""
        from ..rewards.votes.page import build_page
        from ..rewards.votes.pairs import choose_pairs
        from ..rewards.votes.voting import Voting

        pictures, waits = self.pictures(folder)
        pairs = choose_pairs(pictures, self.pairs, self.seed)
        if not pairs and not waits:
            raise InputError(f"{folder}: no prompt has two pictures, so there is no pair to judge")
        voting = Voting(verdict_file(folder), pairs, self.seed, self.again, time.monotonic)
        alone = sum(len(paths) == 1 for paths in pictures.values())
        left_out = f"; {alone} prompts with a single picture are left out" if alone else ""
        judged = voting.progress()["judged"]
        print_progress(f"{len(pairs)} pairs of {len(pictures) - alone} prompts, {judged} judged{left_out}")
        return build_page(voting, token)

    def pictures(self, folder: Path) -> tuple[dict[str, list[str]], bool]:
        """Return prompt → paths of its pictures, relative to the folder, and whether a run may ask about others."""
        from ..evaluation.image_store import holds_images
        from ..experiment.run_folder import is_of_run
        from ..rewards.votes.pairs import LIVE_FOLDER

        if is_of_run(folder):
            return self.pictures_of_run(folder)
        self.check_undrawn(f"{folder} holds pictures")
        if holds_images(folder):
            return stored_pictures(folder, folder), False
        if (folder / LIVE_FOLDER).is_dir():
            return captioned_pictures(folder / LIVE_FOLDER, folder), True
        return captioned_pictures(folder, folder), False

    def pictures_of_run(self, folder: Path) -> tuple[dict[str, list[str]], bool]:
        """Return the pictures of a run as `pictures` does, after drawing some where it has none."""
        from ..evaluation.image_store import drawn_with, holds_images, missing_prompts
        from ..experiment.run_folder import RunFolder
        from ..rewards.votes.judge import Votes
        from ..rewards.votes.pairs import DRAWN_FOLDER, LIVE_FOLDER

        run, drawn, live = RunFolder(folder).run(), folder / DRAWN_FOLDER, folder / LIVE_FOLDER
        waits = isinstance(run.judge, Votes)
        whole = holds_images(drawn) and not missing_prompts(drawn, len(drawn_with(drawn).get("prompts", ())))
        if self.drawing_options() or not (whole or waits):
            self.draw(run, folder, drawn)
        pictures = stored_pictures(drawn, folder) if holds_images(drawn) else {}
        for prompt, paths in captioned_pictures(live, folder).items() if any(live.glob("*.png")) else ():
            pictures.setdefault(prompt, []).extend(paths)
        return pictures, waits

    def draw(self, run: "Run", folder: Path, drawn: Path) -> None:
        """Draw the prompts of a run by its result, or continue; InputError where it has none yet."""
        from ..evaluation.image_set import ImageSet, PictureSource
        from ..evaluation.suites import Drawing
        from ..experiment.run_folder import RESULTS
        from ..models.pipeline import no_progress_bars
        from ..models.pipeline_files import locate

        of_best = folder / "best" if self.best else folder
        result = next((of_best / name for name in RESULTS if (of_best / name).is_dir()), None)
        if result is None:
            advice = "leave --best out" if self.best else "let it end, or take --best where it has a best/"
            raise InputError(f"{of_best}: it keeps no pictures and no result yet to draw some by; {advice}")
        lora = str(result) if result.name == RESULTS[0] else None
        base = str(locate(run.model.path, run.model.revision)) if lora is not None else str(result)
        records = self.records(run)
        for record in records:
            check_without_input(record, of_best)
        if len(replace(run.model, path=base, revision=None).load("meta").latent_shape) != 3:
            raise InputError(f"{of_best}: it draws clips, and people judge pictures alone here")
        steps = self.steps or run.evaluation.inference_steps
        drawing = Drawing(self.images or 4, steps, run.batches.guidance_scale, run.seed)
        print_progress(f"{len(records)} prompts x {drawing.images} pictures by {result}, into {drawn}")
        no_progress_bars()
        source = PictureSource(base, lora)
        ImageSet(source, records, drawn).draw(drawing, lambda path, lora: load(run, path, lora), {}, print_progress)

    def records(self, run: "Run") -> list[dict]:
        """Return the records to draw, every prompt once.  ConfigError where the run has none of its own."""
        from ..data.prompt_lists import DEFAULT_TAG, read_prompts
        from ..evaluation.suites import evenly
        from ..experiment.prompt_checks import prompt_records

        records = prompt_records(run) if self.prompts_from is None else read_prompts(self.prompts_from)
        if not records:
            raise ConfigError("the run learns from images and has no prompts of its own; name some with --prompts-from")
        distinct = {record["prompt"]: {"tag": DEFAULT_TAG} | record for record in records}
        return evenly(list(distinct.values()), self.prompts or 20)

    def drawing_options(self) -> list[str]:
        """Return the options of drawing that are given, as they are typed."""
        return [f"--{name.replace('_', '-')}" for name in DRAWING_ALONE if getattr(self, name) not in (None, False)]

    def check_undrawn(self, why: str) -> None:
        """Raise ConfigError for options of drawing where nothing is drawn."""
        if options := self.drawing_options():
            raise ConfigError(f"{why} and nothing is drawn, so {', '.join(options)} would change nothing; leave it out")


def load(run: "Run", path: str, lora: str | None) -> "Model":
    """Load a pipeline in the size and precision of a run, with its LoRA."""
    from ..models.base import default_device

    model = replace(run.model, path=path, revision=None).load(default_device())
    if lora is not None:
        model.load_lora(lora)
    return model


def stored_pictures(store: Path, folder: Path) -> dict[str, list[str]]:
    """Return the pictures of a folder in GenEval's layout: prompt → paths relative to `folder`."""
    from ..evaluation.image_store import prompt_folders, read_records, sample_files

    pictures: dict[str, list[str]] = {}
    for prompt_dir, record in zip(prompt_folders(store), read_records(store)):
        check_without_input(record, prompt_dir)
        for files in sample_files(prompt_dir):
            if files[0].parent.name != "samples":
                raise InputError(f"{files[0].parent}: it is a clip, and people judge pictures alone here")
            pictures.setdefault(record["prompt"], []).append(relative_path(files[0], folder))
    return pictures


def captioned_pictures(listed: Path, folder: Path) -> dict[str, list[str]]:
    """Return the pictures of a folder with captions: prompt → paths relative to `folder`."""
    from ..data.image_folders import DEFAULT_CAPTION, list_images

    listing, pictures = list_images(listed, DEFAULT_CAPTION), {}
    for entry in listing.entries:
        check_without_input(entry.record, Path(entry.location))
        if not Path(entry.location).is_file():
            raise InputError(f"{entry.location}: pictures inside another file have no path to be named by; unpack it")
        pictures.setdefault(entry.record["prompt"], []).append(relative_path(Path(entry.location), folder))
    for reason, count in listing.left_out.items():
        if count:
            print_progress(f"{count} pictures {reason} are left out")
    return {prompt: list(dict.fromkeys(paths)) for prompt, paths in pictures.items()}


def check_without_input(record: Mapping[str, Any], path: Path) -> None:
    """Raise InputError for a prompt that is about a picture, which the page would not show."""
    if input_names(record):
        raise InputError(f"{path}: its prompt is about an input picture, which the page does not show; leave edits out")


def relative_path(file: Path, folder: Path) -> str:
    """Return the path of a picture as a verdict names it; InputError for one that it cannot name."""
    from ..rewards.votes.pairs import check_storable

    path = file.relative_to(folder).as_posix()
    check_text(path, str(folder))
    return check_storable(path)
