"""afterflow compare, report and tree: runs side by side on a page."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from ..evaluation.report import ShapesSettings
from ..rewards.named_code import trust_code
from ..system.atomic_files import make_folder, replacing
from ..system.errors import ConfigError, OutputError
from ..system.names import check_folder_name
from ..system.optional_dependencies import check_extra
from ..system.own_folders import MAKER, check_own_file, holds_object, is_own_picture
from .output import write_text
from .parsing import parse_options
from .recipes import made_by

if TYPE_CHECKING:
    from ..experiment.config import Run
    from ..experiment.stages import Chain

PAGE_FILES = ("comparison.json", "comparison.png", "index.html")
"""Files of a page.  The first is written first and says that the others are afterflow's."""


def compare_command(args: Sequence[str]) -> None:
    """Train recipes under one budget and write a page that compares them."""
    parse_options(Compare, args, "afterflow compare")()


def report_command(args: Sequence[str]) -> None:
    """Write such a page about runs that have ended."""
    parse_options(Page, args, "afterflow report")()


def tree_command(args: Sequence[str]) -> None:
    """Draw a tree of BranchGRPO."""
    parse_options(Tree, args, "afterflow tree")()


@dataclass(frozen=True)
class Compare:
    """Train recipes one after another, judge them alike, and write a page about it.

    Repeated after an interruption, the command continues, and runs that have ended are not repeated.  Of a chain the
    last run is compared.  The stages before it are done once for all seeds, and their time does not count.
    """

    recipes: Positional[tuple[str, ...]]
    """Names of recipes."""
    budget_seconds: float | None = None
    """Seconds of training of every run, without evaluation and pictures.  None: the iterations of the recipe."""
    seeds: int = 1
    """Number of runs of every recipe, with the seeds 0, 1, and so on."""
    name: str = "compare"
    """The folder of the runs and of the page is runs/NAME."""
    prompts: int = 280
    """Number of prompts of the test split, shared evenly among the tags."""
    images: int = 4
    """Number of images of each prompt."""

    def __post_init__(self) -> None:
        if not self.recipes:
            raise ConfigError("name at least one recipe to compare: afterflow compare RECIPE...")
        check_folder_name("--name", self.name)
        if self.seeds < 1 or (self.budget_seconds is not None and self.budget_seconds <= 0):
            raise ConfigError(f"budget_seconds = {self.budget_seconds}, seeds = {self.seeds}: give some of each")

    def __call__(self) -> None:
        check_page(Path("runs") / self.name)
        chains = {name: as_chain(name) for name in self.recipes}
        runs = {name: last_run(chain) for name, chain in chains.items()}
        check_comparable(list(runs.values()))
        from ..experiment.stages import Chain, execute_chain
        from ..experiment.train_subprocess import checked_runs, train_all

        settings = ShapesSettings(prompts=self.prompts, images=self.images)
        checked_runs(runs, self.budget_seconds, self.seeds, self.name)  # before hours go into the stages below
        for name, chain in chains.items():
            if chain.stages[:-1]:
                execute_chain(Chain(name, chain.stages[:-1]))
        folders = train_all(runs, self.budget_seconds, self.seeds, self.name)
        limit = [] if self.budget_seconds is None else ["--budget-seconds", f"{self.budget_seconds:g}"]
        counts = ["--seeds", self.seeds, "--name", self.name, "--prompts", self.prompts, "--images", self.images]
        command = shlex.join(["afterflow", "compare", *self.recipes, *limit, *map(str, counts)])
        title = ", ".join(self.recipes)
        write_comparison(folders, settings, Path("runs") / self.name, title, command)


@dataclass(frozen=True)
class Page:
    """Judge runs that have ended alike, and write a page about them."""

    runs: Positional[tuple[str, ...]]
    """Folders of the runs.  Runs of a recipe that differ in their seed alone are one method, others are named by what
    differs."""
    out: str = "runs/report"
    """Folder of the page."""
    prompts: int = 280
    """Number of prompts of the test split, shared evenly among the tags."""
    images: int = 4
    """Number of images of each prompt."""
    trust_code: bool = False
    """Run the code that records name as module:function, from the working folder too.  Trees are scored by rewards."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("name at least one run: afterflow report runs/NAME ...")

    def __call__(self) -> None:
        check_libraries()
        check_page(Path(self.out))
        if self.trust_code:
            trust_code()
        folders = [Path(run).parent if Path(run).name == "run.json" else Path(run) for run in self.runs]
        for folder in folders:
            if [other.resolve() for other in folders].count(folder.resolve()) > 1:
                raise ConfigError(f"{folder} is named twice; name every run once")
        from ..experiment.run_folder import read_run
        from ..experiment.train_subprocess import check_ended

        runs = [read_run(folder)[0] for folder in folders]
        for folder, run in zip(folders, runs):
            check_ended(folder, run)
        settings = ShapesSettings(prompts=self.prompts, images=self.images)
        words = ["afterflow", "report", *self.runs, "--prompts", str(self.prompts), "--images", str(self.images)]
        command = shlex.join([*words, "--out", self.out, *(["--trust-code"] if self.trust_code else [])])
        write_comparison(folders, settings, Path(self.out), "Runs side by side", command)


@dataclass(frozen=True)
class Tree:
    """Draw the tree that a run of BranchGRPO grows from a prompt."""

    run: Positional[str]
    """Folder of the run."""
    prompt: Positional[str]
    """One of the run's own prompts, or any text where its rewards need no more than that."""
    out: str = "tree.png"
    """Where the picture goes: .png or .svg."""
    input: tuple[str, ...] = ()
    """Files of the pictures that the prompt is about.  Empty: those of the run, where it has the prompt once."""
    seed: int = 0
    """Seed of the noise."""
    trust_code: bool = False
    """Run the code that the record names as module:function, from the working folder too."""

    def __post_init__(self) -> None:
        if Path(self.out).suffix.lower() not in (".png", ".svg"):
            raise ConfigError(f"--out {self.out}: it must end in .png or .svg")
        check_own_file(Path(self.out), is_own_picture)

    def __call__(self) -> None:
        check_libraries()
        if self.trust_code:
            trust_code()
        from ..data.prompts import check_record
        from ..evaluation.tree_plot import tree_of
        from ..experiment.prompt_checks import known_records, record_checks
        from ..experiment.run_folder import read_run
        from ..models.pipeline import no_progress_bars
        from ..rewards.registry import resolve_reward

        run, _ = read_run(Path(self.run))
        no_progress_bars()
        record = self.record_among(known_records(run, self.prompt))
        names = run.algorithm.requirements.rewards
        for name in names:
            resolve_reward(name)
        check_record(record, f"prompt {self.prompt!r}", record_checks(run, names))
        figure = tree_of(run, Path(self.run), record, self.seed)
        make_folder(Path(self.out).parent)
        ending = Path(self.out).suffix.lower()[1:]
        with replacing(Path(self.out)) as partial:
            about = {"Title" if ending == "svg" else "Software": MAKER}
            figure.savefig(partial, dpi=110, format=ending, metadata=about)
        print(self.out)

    def record_among(self, known: Sequence[dict]) -> dict:
        """Return the record to draw, one of the run's own where there is one.

        ConfigError where the run has the prompt about several pictures, and none of them is named.
        """
        from ..system.input_pictures import content_key, input_names

        named = {"prompt": self.prompt, **({"input": list(self.input)} if self.input else {})}
        if self.input:
            return next((record for record in known if content_key(record) == content_key(named)), named)
        if len(known) > 1:
            short = (name[:80] if name.startswith("data:") else name for name in input_names(known[0]))
            first = " ".join(short) or "nothing"
            raise ConfigError(
                f"the run has {self.prompt!r} about {len(known)} pictures; name one with --input, such as {first}"
            )
        return next(iter(known), named)


def as_chain(recipe: str) -> "Chain":
    """Return a recipe as a chain, even if it is one run."""
    made = made_by(recipe)
    from ..experiment.stages import Chain

    return made if isinstance(made, Chain) else Chain(recipe, (made,))


def last_run(chain: "Chain") -> "Run":
    """Return the run at the end of a chain; raise ConfigError where it ends in something else or has no base."""
    from ..experiment.config import Run
    from ..experiment.stages import BuildParts

    if any(isinstance(stage, BuildParts) for stage in chain.stages):
        raise ConfigError(f"{chain.name} is trained from scratch, so there is no base to compare it with")
    last = chain.stages[-1]
    if not isinstance(last, Run):
        raise ConfigError(f"{chain.name} ends in {last.name}, which is not a run that could be trained with every seed")
    return last


def check_libraries() -> None:
    """Raise MissingDependencyError where what draws pages and trees is not installed."""
    check_extra("a page or a tree", ["matplotlib", "jinja2"], "report")


def check_page(folder: Path) -> None:
    """Raise OutputError where a page would replace files of a folder that holds no page of afterflow's."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file, and a page is a folder; take another name")
    for name in PAGE_FILES:
        check_own_file(folder / name, lambda _: holds_object(folder / PAGE_FILES[0], "methods"))


def check_comparable(runs: Sequence["Run"]) -> None:
    """Raise ConfigError for runs that the suite cannot judge, before any is trained."""
    from ..envs.shapes.world import world_size

    check_libraries()
    for run in runs:
        outline = run.model.load("meta")
        if len(outline.latent_shape) != 3:
            raise ConfigError(f"{run.name} draws clips, and the suite of a comparison is of images")
        world_size(*(side * outline.pipe.vae_scale_factor for side in outline.latent_shape[1:]))


def write_comparison(folders: Sequence[Path], settings: ShapesSettings, out: Path, title: str, command: str) -> None:
    """Write index.html, comparison.json and comparison.png, and a tree for every run that grows them.

    Args:
        folders: Folders of the runs.
        settings: The prompts and images of the comparison.
        out: Folder of the page.
        title: Title of the page.
        command: The command that makes the page, which the page shows.
    """
    from ..algorithms.branch_grpo import BranchGRPO
    from ..evaluation.comparison import comparison, judge_run
    from ..evaluation.html_page import write_page
    from ..evaluation.tree_plot import tree_of
    from ..experiment.prompt_checks import prompt_records
    from ..experiment.run_folder import read_run
    from ..models.pipeline import no_progress_bars

    no_progress_bars()
    runs = [judge_run(folder, *read_run(folder), settings) for folder in folders]
    for finished in runs:
        if isinstance(finished.run.algorithm, BranchGRPO):
            figure = tree_of(finished.run, finished.folder, prompt_records(finished.run)[0], 0)
            with replacing(finished.folder / "tree.png") as partial:
                figure.savefig(partial, dpi=110, format="png")
    data = {"command": command, **comparison(runs, settings)}
    write_text(out / "comparison.json", json.dumps(data) + "\n")
    print(write_page(out, data, title, command))
