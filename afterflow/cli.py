"""The command line.  torch and diffusers take seconds to import, so every command imports them itself."""

import ast
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from tyro.conf import AvoidSubcommands, OmitArgPrefixes, Positional, PositionalMetavarFromFieldName, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from . import __version__
from .names import unknown
from .record import from_json, to_json
from .report import Settings, render

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from .models.base import Model
    from .run import Run

TRAIN_USAGE = """\
usage: afterflow train RECIPE [--options]             train by a recipe; options override its fields
       afterflow train RECIPE --help                  what the fields of that recipe are and mean
       afterflow train --from RUN/run.json [--options]  repeat what a run recorded
       afterflow train --resume RUN                   go on from the last checkpoint of a run
"""

PARTS_USAGE = """\
First of all, options that put in parts of another kind: --prompts FILE explores the prompts of a .txt or .jsonl file,
--held-out-prompts FILE evaluates on them while training goes on, --adapt lora or --adapt full says what is trained.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 2 when something given cannot be used, 1 when training cannot go on."""
    command, *args = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        # They read it when imported, and would warn about libraries that we do not use.
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    try:
        if command in ("-h", "--help"):
            print(overview())
        elif command == "--version":
            print(f"afterflow {__version__}")
        elif command in COMMANDS:
            COMMANDS[command](args)
        else:
            raise unknown("command", command, COMMANDS)
    except ValueError as error:
        return complain(error, 2)
    except RuntimeError as error:
        from .train.explore import Stopped

        if not isinstance(error, Stopped):
            raise
        return complain(error, 1)
    return 0


def complain(error: Exception, code: int) -> int:
    print(f"afterflow: {error}", file=sys.stderr)
    return code


def overview() -> str:
    lines = [f"  {name:<9} {summary(command.__doc__)}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: afterflow COMMAND ...", "", *lines, "", "afterflow COMMAND --help tells more."])


def summary(docstring: str | None) -> str:
    return (docstring or "").strip().partition("\n")[0]


def train(args: Sequence[str]) -> None:
    """Train a model by a recipe, repeat a recorded run, or go on with one."""
    source, *options = [*args[0].split("=", 1), *args[1:]] if args else ["--help"]
    if source in ("-h", "--help"):
        print(f"{TRAIN_USAGE}\nrecipes:\n{recipe_lines()}")
        return
    if source in ("--from", "--resume") and not options:
        raise ValueError(f"{source} needs a run; its folder is runs/NAME")
    if source == "--resume":
        run, recipe = resumable(options)
    elif source == "--from":
        recorded, recipe = read_run(Path(options[0]))
        run = overridden(recorded, options[1:], f"afterflow train --from {options[0]}")
    else:
        recipe = source
        run = overridden(from_recipe(recipe), options, f"afterflow train {recipe}")
    from .models.quiet import no_progress_bars
    from .session import execute

    no_progress_bars()
    print(f"{execute(run, recipe, resume=source == '--resume')} holds the result")


def from_recipe(name: str) -> "Run":
    if name.startswith("-"):
        raise ValueError(f"the recipe comes first, then options such as {name}: afterflow train RECIPE {name} ...")
    if name not in recipe_summaries():
        raise unknown("recipe", name, recipe_summaries())
    from .recipes import RECIPES

    return RECIPES[name]()


def recipe_summaries() -> dict[str, str]:
    """Name and first line of every recipe, read from the source since importing them takes seconds."""
    files = sorted((Path(__file__).parent / "recipes").glob("*.py"))
    nodes = [node for file in files for node in ast.parse(file.read_text(encoding="utf-8")).body]
    recipes = [node for node in nodes if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return {node.name: summary(ast.get_docstring(node)) for node in recipes}


def recipe_lines() -> str:
    found = recipe_summaries()
    width = max(map(len, found))
    return "\n".join(f"  {name:<{width}}  {line}" for name, line in found.items())


def overridden(run: "Run", options: Sequence[str], prog: str) -> "Run":
    """The run with the fields that the options name replaced."""
    from .run import Run

    asks_for_help = {"-h", "--help"} & set(options)
    if not asks_for_help:
        parts, options = tyro.cli(Parts, args=options, prog=prog, return_unknown_args=True)
        run = parts.put_into(run)
    return tyro.cli(
        AvoidSubcommands[Run], default=run, args=options, prog=prog, registry=MAPPINGS, description=PARTS_USAGE
    )


@dataclass(frozen=True)
class Parts:
    """Parts of a run of another kind than the recipe's, put in before its fields are set."""

    prompts: str | None = None
    held_out_prompts: str | None = None
    adapt: Literal["lora", "full"] | None = None

    def put_into(self, run: "Run") -> "Run":
        from .data.prompts import PromptFile
        from .models.tune import Full, LoRA

        if self.prompts is not None:
            run = replace(run, data=PromptFile(self.prompts))
        if self.held_out_prompts is not None:
            run = replace(run, held_out=PromptFile(self.held_out_prompts), eval_every=run.eval_every or 20)
        if self.adapt is not None:
            run = replace(run, tune=LoRA() if self.adapt == "lora" else Full())
        return run


MAPPINGS = ConstructorRegistry()


@MAPPINGS.primitive_rule
def whole_mapping(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """`--weights a 0.5 b 0.5` replaces a mapping; tyro's own rule can only change the values of keys that are there."""
    if info.type_origin is not Mapping:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME NUMBER ...]",
        instance_from_str=numbers_by_name,
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda value: [str(word) for pair in value.items() for word in pair],
    )


def numbers_by_name(words: Sequence[str]) -> dict[str, float]:
    if len(words) % 2:
        raise ValueError(f"{words[-1]!r} has no number after it; write NAME NUMBER NAME NUMBER ...")
    return {name: float(number) for name, number in zip(words[::2], words[1::2])}


def read_run(file: Path) -> tuple["Run", str]:
    """What run.json, or the folder that holds it, says: the run and the name of its recipe."""
    from .run import Run

    file = file / "run.json" if file.is_dir() else file
    if not file.is_file():
        raise ValueError(f"{file}: no such file; a run is recorded in runs/NAME/run.json")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not JSON ({error.msg} at line {error.lineno})") from None
    if not isinstance(data, dict) or not isinstance(data.get("config"), dict):
        raise ValueError(f'{file}: it has no "config", so afterflow did not write it')
    try:
        return from_json(Run, data["config"]), str(data.get("recipe"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def resumable(options: Sequence[str]) -> tuple["Run", str]:
    folder = Path(options[0])
    if options[1:]:
        raise ValueError(f"a resumed run keeps its configuration, so {options[1]} cannot be set; use --from instead")
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; runs are kept in runs/NAME")
    if not any(folder.glob("checkpoints/step_*")):
        raise ValueError(f"{folder}: no checkpoint to resume from; start anew with --from {folder / 'run.json'}")
    run, recipe = read_run(folder)
    if run.folder.resolve() != folder.resolve():
        raise ValueError(f"{folder} is recorded as {run.folder}; go to the folder that holds {run.folder}")
    return run, recipe


def recipes(args: Sequence[str]) -> None:
    """List the recipes."""
    if args:
        raise ValueError(f"afterflow recipes takes no options, so not {args[0]}")
    print(recipe_lines())


@dataclass(frozen=True)
class Source:
    """Which weights, and in which precision."""

    size: int | None = None
    """Height and width in pixels; None: the model's own."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights."""
    max_sequence_length: int | None = None
    """Tokens of the third (T5) encoder, 0 leaves it out; None: 256, or 0 where it is missing or mute."""

    def load(self, path: str, lora: str | None) -> "Model":
        """The pipeline, on the accelerator if there is one, with its LoRA."""
        from .models.base import default_device
        from .models.quiet import no_progress_bars
        from .models.sd3 import SD3

        no_progress_bars()
        config = SD3(path, dtype=self.dtype, size=self.size, max_sequence_length=self.max_sequence_length)
        model = config.load(default_device())
        if lora is not None:
            model.load_lora(lora)
        return model


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
    suite: Literal["shapes"] = "shapes"
    """What is drawn, and who judges it."""
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

    def __call__(self) -> None:
        against = self.model if self.against == "base" else self.against
        check_sources([self.model, against], [self.lora, self.lora_against])
        from .evaluate import compare_pictures
        from .train.log import before_after

        before = None if against is None else self.draw(against, self.lora_against)[1]
        records, after = self.draw(self.model, self.lora)
        if before is not None and before.shape != after.shape:
            sizes = f"{self.model} draws {after.shape[2]} px and {against} {before.shape[2]} px"
            raise ValueError(f"{sizes}; set --size to one that both can draw")
        names = named(self.model, self.lora), against and named(against, self.lora_against)
        report, judged, judged_base = compare_pictures(self.settings, records, after, before, *names)
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
        from .evaluate import picture_size, suite_pictures, suite_prompts

        model = self.source.load(path, lora)
        records = suite_prompts(self.settings, picture_size(model))
        print(f"{named(path, lora)}: {len(records)} prompts x {self.settings.images} images", file=sys.stderr)
        return records, suite_pictures(model, records, self.settings)


@dataclass(frozen=True)
class Sample:
    """Draw pictures of prompts into one grid, a row for each prompt."""

    model: Positional[str]
    """Hub id or folder of a pipeline, or `tiny`."""
    prompts: Positional[tuple[str, ...]]
    """Each in quotes."""
    lora: str | None = None
    """Folder of a LoRA to put on MODEL."""
    images: Annotated[int, arg(aliases=["-n"])] = 8
    """Per prompt."""
    out: str = "grid.png"
    """Where the picture goes."""
    steps: int = 20
    """ODE steps."""
    guidance: float = 1.0
    """Scale of classifier-free guidance; 1 is without."""
    seed: int = 0
    """Of the starting noise."""
    source: OmitArgPrefixes[Source] = field(default_factory=Source)

    def __post_init__(self) -> None:
        if not self.prompts or not all(prompt.strip() for prompt in self.prompts):
            raise ValueError("a prompt is missing or empty; put each in quotes")
        for name in ("images", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 1")
        check_png("--out", self.out)

    def __call__(self) -> None:
        check_sources([self.model], [self.lora])
        from .evaluate import picture_prompts
        from .train.log import grid

        model = self.source.load(self.model, self.lora)
        records = [{"prompt": prompt} for prompt in self.prompts]
        images = picture_prompts(model, records, self.images, self.steps, self.guidance, self.seed)
        captions = [prompt for prompt in self.prompts for _ in range(self.images)]
        scale = max(1, 96 // images.shape[2])  # tiny pictures are hard to see
        picture = grid(images.reshape(-1, *images.shape[2:]), captions, self.images, scale)
        save(picture, Path(self.out))
        print(self.out)


@dataclass(frozen=True)
class Compare:
    """Train recipes one after another, judge them alike, and write a page about it.

    It goes on where it was interrupted; runs that have ended are not repeated.
    """

    recipes: Positional[tuple[str, ...]]
    """Names of recipes."""
    budget_seconds: float | None = None
    """Training time of each run; evaluation and pictures do not count.  None: each does its recipe's iterations."""
    seeds: int = 1
    """Runs of each recipe, with seeds 0, 1, ..."""
    name: str = "compare"
    """The runs and the page are kept in runs/NAME."""
    prompts: int = 280
    """Of the test split, shared evenly among the tags."""
    images: int = 4
    """Per prompt."""

    def __post_init__(self) -> None:
        if not self.recipes:
            raise ValueError("name at least one recipe to compare: afterflow compare RECIPE...")
        if self.seeds < 1 or (self.budget_seconds is not None and self.budget_seconds <= 0):
            raise ValueError(f"budget_seconds = {self.budget_seconds}, seeds = {self.seeds}: give some of each")

    def __call__(self) -> None:
        runs = {name: from_recipe(name) for name in self.recipes}
        check_comparable(list(runs.values()))
        from .compare import train_all

        settings = Settings(prompts=self.prompts, images=self.images)
        folders = train_all(runs, self.budget_seconds, self.seeds, self.name)
        limit = "" if self.budget_seconds is None else f" --budget-seconds {self.budget_seconds:g}"
        command = (
            f"afterflow compare {' '.join(self.recipes)}{limit} --seeds {self.seeds} --name {self.name} "
            f"--prompts {self.prompts} --images {self.images}"
        )
        title = ", ".join(self.recipes)
        write_comparison(folders, settings, Path("runs") / self.name, title, command)


@dataclass(frozen=True)
class Page:
    """Judge runs that have ended alike, and write a page about them."""

    runs: Positional[tuple[str, ...]]
    """Their folders; runs of one recipe are one method."""
    out: str = "runs/report"
    """Folder of the page."""
    prompts: int = 280
    """Of the test split, shared evenly among the tags."""
    images: int = 4
    """Per prompt."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("name at least one run: afterflow report runs/NAME ...")

    def __call__(self) -> None:
        check_libraries()
        folders = [Path(run).parent if Path(run).name == "run.json" else Path(run) for run in self.runs]
        runs = [read_run(folder)[0] for folder in folders]
        from .compare import check_ended

        for folder, run in zip(folders, runs):
            check_ended(folder, run)
        settings = Settings(prompts=self.prompts, images=self.images)
        command = f"afterflow report {' '.join(self.runs)} --prompts {self.prompts} --images {self.images}"
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
    seed: int = 0
    """Of the noise."""

    def __post_init__(self) -> None:
        if Path(self.out).suffix.lower() not in (".png", ".svg"):
            raise ValueError(f"--out {self.out}: it must end in .png or .svg")

    def __call__(self) -> None:
        run, _ = read_run(Path(self.run))
        check_libraries()
        from .algorithms.base import OnPolicy
        from .data.prompts import check
        from .models.quiet import no_progress_bars
        from .session import known_records, needs
        from .treeview import tree_of

        no_progress_bars()
        record = known_records(run).get(self.prompt, {"prompt": self.prompt})
        names = run.algorithm.pointwise if isinstance(run.algorithm, OnPolicy) else ()
        check(record, f"prompt {self.prompt!r}", needs(run, names))
        figure = tree_of(run, Path(self.run), record, self.seed)
        Path(self.out).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.out, dpi=110)
        print(self.out)


def check_libraries() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("matplotlib", "jinja2") if find_spec(name) is None]
    if missing:
        raise ValueError(f"pages and trees need {' and '.join(missing)}; pip install 'afterflow[report]'")


def check_comparable(runs: Sequence["Run"]) -> None:
    """ValueError for runs that the suite cannot judge, before any is trained."""
    from .models.sd3 import SD3

    check_libraries()
    for run in runs:
        if not isinstance(run.model, SD3):
            raise ValueError(f"{run.name} is trained from scratch, so there is no base to compare it with")


def write_comparison(folders: Sequence[Path], settings: Settings, out: Path, title: str, command: str) -> None:
    """index.html, comparison.json and comparison.png; a tree for each run that grows them."""
    from .algorithms.branch_grpo import BranchGRPO
    from .compare import comparison, finished
    from .models.quiet import no_progress_bars
    from .page import write_page
    from .session import prompt_records
    from .treeview import tree_of

    no_progress_bars()
    runs = [finished(folder, *read_run(folder), settings) for folder in folders]
    for each in runs:
        if isinstance(each.run.algorithm, BranchGRPO):
            figure = tree_of(each.run, each.folder, prompt_records(each.run)[0], 0)
            figure.savefig(each.folder / "tree.png", dpi=110)
    data = {"command": command, **comparison(runs, settings)}
    write_file(out / "comparison.json", json.dumps(data) + "\n")
    print(write_page(out, data, title, command))


def evaluate(args: Sequence[str]) -> None:
    """Measure a model, alone or against another, with intervals."""
    tyro.cli(Eval, args=args, prog="afterflow eval", config=[PositionalMetavarFromFieldName])()


def sample(args: Sequence[str]) -> None:
    """Draw pictures of prompts."""
    tyro.cli(Sample, args=args, prog="afterflow sample", config=[PositionalMetavarFromFieldName])()


def compare(args: Sequence[str]) -> None:
    """Train recipes under one budget and write a page that compares them."""
    tyro.cli(Compare, args=args, prog="afterflow compare", config=[PositionalMetavarFromFieldName])()


def report(args: Sequence[str]) -> None:
    """Write such a page about runs that have ended."""
    tyro.cli(Page, args=args, prog="afterflow report", config=[PositionalMetavarFromFieldName])()


def tree(args: Sequence[str]) -> None:
    """Draw a tree of BranchGRPO."""
    tyro.cli(Tree, args=args, prog="afterflow tree", config=[PositionalMetavarFromFieldName])()


COMMANDS = {
    "train": train,
    "eval": evaluate,
    "sample": sample,
    "compare": compare,
    "report": report,
    "tree": tree,
    "recipes": recipes,
}


def check_png(option: str, file: str | None) -> None:
    if file is not None and Path(file).suffix.lower() != ".png":
        raise ValueError(f"{option} {file}: it must end in .png")


def check_sources(pipelines: Sequence[str | None], loras: Sequence[str | None]) -> None:
    """ValueError for what is not there, before hours go into what is."""
    from .models.sd3 import locate, lora_file

    for lora in filter(None, loras):
        lora_file(lora)
    for pipeline in filter(None, pipelines):
        locate(pipeline, None)


def named(path: str, lora: str | None) -> str:
    return path if lora is None else f"{path} + {lora}"


def save(picture: "Image", file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file)


def write_file(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
