"""afterflow train: by a recipe and options, as a run recorded, or on from a checkpoint."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from tyro.conf import AvoidSubcommands

from ..experiment.run_folder import RunFolder, read_run
from ..rewards.named_code import trust_code
from ..system.errors import CheckpointError, ConfigError, InputError
from ..system.folder_lock import check_unlocked
from ..system.launcher import launched_processes, launched_rank
from .help_words import HELP, asks_for_help
from .output import print_progress, result_console
from .parsing import parse_options
from .recipes import made_by, recipe_lines

if TYPE_CHECKING:
    from ..experiment.config import Run
    from ..experiment.stages import Chain
    from ..rewards.votes.judge import Votes

_log = logging.getLogger(__name__)

ACCEPT = "--accept-changed-data"
"""The option with which a run goes on although something that it is made from has changed."""
TRUST = "--trust-code"
"""The option with which rewards that a record names as module:function are imported, from the working folder too."""
TRAIN_USAGE = """\
usage: afterflow train RECIPE [--options]             train by a recipe; options override its fields
       afterflow train RECIPE --plan [--options]      the memory and the work it will take, before weights are loaded
       afterflow train RECIPE --fit 24 [--options]    as it fits a card of 24 GB: chunk, checkpointing, offload and
                                                      bits of frozen weights, never prompts, images, steps or seeds
       afterflow train RECIPE --help                  what the fields of that recipe are and mean
       afterflow train --from RUN/run.json [--options]  repeat what a run recorded
       afterflow train --resume RUN                   go on from the last checkpoint of a run; on other processes
                                                      perhaps with another --grad-partitions or --shard, and where
                                                      its prompts, pictures or LoRAs are no longer what they were,
                                                      with --accept-changed-data
       afterflow train --extend RUN --iterations N    train a run further, as if it had been N iterations long from
                                                      the start where its learning rate is constant
       They run no code that run.json names as module:function, unless --trust-code says that they may.
"""

PARTS_USAGE = """\
First of all, options that put in parts of another kind: --base PATH trains a pipeline of any family, --prompts LIST
explores the prompts of a list: a file (.txt, .jsonl, .csv, .json), a folder of them, or OWNER/NAME[:SPLIT] of the hub.
--held-out-prompts LIST evaluates on those of another while training goes on.  --images FOLDER learns from images with
captions: a folder with a metadata.jsonl or metadata.csv, with a .txt or .caption beside each image, with .parquet or
webdataset .tar files, or OWNER/NAME of the hub.  --adapt lora or --adapt full says what is trained.  --judge shapes,
--judge vlm or --judge votes says who compares images; votes are of people, who open the page of afterflow vote.
"""


def train(args: Sequence[str]) -> None:
    """Train a model by a recipe, repeat a recorded run, or go on with one."""
    source, *options = [*args[0].split("=", 1), *args[1:]] if args else ["--help"]
    if source in HELP:
        print(f"{TRAIN_USAGE}\nrecipes:\n{recipe_lines()}")
        return
    options, gigabytes = fit_option(options)
    only_plan, goes_on = "--plan" in options, source in ("--resume", "--extend")
    of_a_run = goes_on or source == "--from"
    if goes_on and gigabytes is not None:
        raise ConfigError(f"--fit chooses how a new run computes; {source} goes on as it was, so leave --fit out")
    accept = goes_on and ACCEPT in options
    flags = ["--plan"] + [ACCEPT] * accept + [TRUST] * of_a_run
    if of_a_run and TRUST in options:
        trust_code()
    options = [option for option in options if option not in flags]
    if of_a_run and not options:
        raise ConfigError(f"{source} needs a run; its folder is runs/NAME")
    # A name or a folder that does not exist is refused first, because what follows takes seconds to import.
    if source == "--resume":
        run, recipe = resumable(options)
    elif source == "--extend":
        run, recipe = extended(options)
    elif source == "--from":
        recorded, recipe = read_run(Path(options[0]))
        run = overridden(recorded, options[1:], f"afterflow train --from {options[0]}")
    else:
        made, recipe = made_by(source), source
        from ..experiment.config import Run

        if not isinstance(made, Run):
            train_chain(made, options, only_plan, gigabytes)
            return
        run = overridden(made, options, f"afterflow train {recipe}")
    run = fitted(run, gigabytes)
    if only_plan:
        print_plan(run)
        return
    from ..experiment.execute import execute
    from ..models.pipeline import no_progress_bars

    no_progress_bars()

    print(f"{execute(run, recipe, goes_on, accept).folder} holds the result")


def fit_option(options: Sequence[str]) -> tuple[list[str], float | None]:
    """Return the options without --fit, and the memory in GB that it names.  ConfigError for another value."""
    rest, gigabytes = [], None
    words = iter(options)
    for word in words:
        if word != "--fit" and not word.startswith("--fit="):
            rest.append(word)
            continue
        value = word.partition("=")[2] or next(words, "")
        try:
            gigabytes = float(value)
        except ValueError:
            raise ConfigError(f"--fit {value}: the memory of a card in GB, such as 24") from None
    return rest, gigabytes


def fitted(run: "Run", gigabytes: float | None) -> "Run":
    """Return the run as it fits a card of so many GB, and say what was changed; as it is where none is named."""
    if gigabytes is None:
        return run
    from ..experiment.memory_fit import fit_run

    fit = fit_run(run, gigabytes)
    print_progress(fit.sentence(gigabytes))
    return fit.run


def print_plan(run: "Run") -> None:
    """Print the memory and the work that a run will take."""
    from ..experiment.cost_estimate import cost_table, estimate_cost
    from ..experiment.prompt_checks import check_drawn_size

    check_drawn_size(run.model, run.rewards, "--model.size", run.data)
    result_console().print(cost_table(run, estimate_cost(run)))


def train_chain(chain: "Chain", options: Sequence[str], only_plan: bool, gigabytes: float | None) -> None:
    """Do the stages of a chain that have not ended, or count what its runs will take, and print the last folder."""
    from ..experiment.config import Run

    if asks_for_help(options):
        print(f"{chain.name} does in order what is not done yet. --plan counts what its runs take, and --iterations N")
        print("gives N iterations to each of them. Other options belong to its stages:")
        print("\n".join(f"  {stage.name}" for stage in chain.stages))
        return
    if gigabytes is not None:
        raise ConfigError(f"--fit: {chain.name} is a chain of runs; train its stages one by one with it")
    if launched_processes() > 1:
        raise ConfigError(f"{chain.name} is a chain of runs and starts their processes itself; leave the launcher out")
    given, rejected = parse_options(Length, options, f"afterflow train {chain.name}", return_unknown_args=True)
    if rejected:
        raise ConfigError(
            f"{chain.name} is a chain of runs and takes no option but --plan and --iterations, so not {rejected[0]}; "
            "write a recipe beside it with `replace`, or train its stages one by one"
        )
    if given.iterations is not None:
        length = {"iterations": given.iterations}
        stages = [stage.with_options(**length) if isinstance(stage, Run) else stage for stage in chain.stages]
        chain = replace(chain, stages=tuple(stages))
    if not only_plan:
        from ..experiment.stages import execute_chain
        from ..models.pipeline import no_progress_bars

        no_progress_bars()
        print(f"{execute_chain(chain)} holds the result")
        return
    for stage in chain.stages:
        try:
            print_plan(stage) if isinstance(stage, Run) else print(f"{stage.name}: {type(stage).__name__}, not counted")
        except InputError as error:
            print(f"{stage.name}: not counted before the stages that it is made from are done ({error})")


def resumable(options: Sequence[str]) -> tuple["Run", str]:
    """Return the run of a folder that has a checkpoint, and its recipe; only options of `Elsewhere` may change."""
    folder = Path(options[0])
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; runs are kept in runs/NAME")
    if launched_rank() == 0:  # before what takes seconds to import
        check_unlocked(folder)
    from ..experiment.compatibility import refuse_renamed

    refuse_renamed(options)
    changes, rejected = parse_options(Elsewhere, options[1:], "afterflow train --resume RUN", return_unknown_args=True)
    if rejected:
        raise ConfigError(f"a resumed run keeps its configuration, so {rejected[0]} cannot be set; use --from instead")
    RunFolder(folder).check_safe()
    if not RunFolder(folder).checkpoints():
        raise CheckpointError(RunFolder(folder).without_checkpoints())
    run, recipe = read_run(folder)
    if run.folder.resolve() != folder.resolve():
        raise InputError(f"{folder} is recorded as {run.folder}; go to the folder that holds {run.folder}")
    given = {name: value for name, value in vars(changes).items() if value is not None}
    run = replace(run, distribution=RunFolder(folder).last_distribution(run.distribution))
    return run.with_options(**given), recipe


def extended(options: Sequence[str]) -> tuple["Run", str]:
    """Return the run of a folder with more iterations, and its recipe.

    ConfigError where the number is missing, or no larger than what is done.  What keeps the result from being that of
    a run of so many iterations is logged.
    """
    extension, others = parse_options(Length, options, "afterflow train --extend RUN", return_unknown_args=True)
    run, recipe = resumable(others)
    before, done = run.batches, RunFolder(run.folder).next_iteration()
    if extension.iterations is None or extension.iterations <= max(done, 0):
        raise ConfigError(f"{run.folder} has done {done} iterations; say how many in all, as --iterations {2 * done}")
    if extension.iterations < before.iterations and before.budget_seconds is None:
        raise ConfigError(f"{run.folder} has {before.iterations} iterations to do; go on with --resume {run.folder}")
    schedule = run.optimization.lr_schedule
    if schedule != "constant":
        _log.warning(
            f"lr_schedule = {schedule} has fallen over {before.iterations} iterations and now falls over "
            f"{extension.iterations}: the result is not that of so long a run from the start"
        )
    if before.budget_seconds is not None:
        _log.info(f"budget_seconds = {before.budget_seconds:g} no longer ends the run; its iterations do")
    return run.with_options(iterations=extension.iterations, budget_seconds=None), recipe


@dataclass(frozen=True)
class Length:
    """How long a run becomes that is trained further, or each run of a chain."""

    iterations: int | None = None


@dataclass(frozen=True)
class Elsewhere:
    """What may change where a run goes on with other processes."""

    grad_partitions: int | None = None
    shard: Literal["none", "zero2", "full"] | None = None
    threads: int | None = None


def overridden(run: "Run", options: Sequence[str], prog: str) -> "Run":
    """Return the run with the fields replaced that the options name."""
    from ..experiment.compatibility import refuse_renamed
    from ..experiment.config import Run
    from ..experiment.evaluation_fit import fit_evaluation

    refuse_renamed(options)
    given, typed = option_names(options), typed_names(options)
    run, options = unset(run, options)
    default, parts = run, Parts()
    if not asks_for_help(options):
        switched_off = typed - typed_names(options)
        parts, options = parse_options(Parts, options, prog, return_unknown_args=True)
        for name in sorted(switched_off & {"held-out", "eval-every"}):
            if parts.held_out_prompts is not None:
                why = f"--{name} switches evaluation off, and --held-out-prompts names its prompts"
                raise ConfigError(f"{why}; leave one of them out")
        default = parts.put_into(run)
    changed = parse_options(AvoidSubcommands[Run], options, prog, default=default, description=PARTS_USAGE, config=())
    if parts.judge == "votes" and changed.judge.path == people_of(default).path:
        changed = replace(changed, judge=replace(changed.judge, path=people_of(changed).path))
    return fit_evaluation(run, changed, given)


def people_of(run: "Run") -> "Votes":
    """Return people as the judge of a run, on the page of its own folder."""
    from ..rewards.votes.judge import Votes

    return Votes(run.folder.as_posix())


def option_names(words: Sequence[str]) -> set[str]:
    """Return the options of a run that are typed, without what stands after a dot or an equals sign."""
    names = {name.split(".")[0].replace("-", "_") for name in typed_names(words)}
    return names | {"held_out"} if "held_out_prompts" in names else names


def typed_names(words: Sequence[str]) -> set[str]:
    """Return the options that are typed, such as eval-every."""
    return {word[2:].partition("=")[0].replace("_", "-") for word in words if word.startswith("--")}


def unset(run: "Run", options: Sequence[str]) -> tuple["Run", list[str]]:
    """Return the run without the parts that `--PART None` takes out, and the options that are left.

    tyro itself takes None for numbers and texts only.
    """
    words, remaining = list(options), []
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        changed = without(run, name, value if equals else next(iter(words), ""))
        if changed is None:
            remaining.append(word)
            continue
        run = changed
        if not equals:
            words.pop(0)
    return run, remaining


def without(run: "Run", option: str, value: str) -> "Run | None":
    """Return the run without what an option takes out; None where it takes nothing out.

    Without held-out prompts nothing is measured on them, and the other way about.
    """
    name = option.removeprefix("--").replace("-", "_")
    if not option.startswith("--"):
        return None
    if (name, value) in (("held_out", "None"), ("eval_every", "0")):
        from ..experiment.evaluation_fit import NO_EVALUATION

        return run.with_options(**NO_EVALUATION)
    return replaced_by_none(run, name.split(".")) if value == "None" else None


def replaced_by_none(owner: Any, path: Sequence[str]) -> Any:
    """Return a dataclass with None at a path of fields where a dataclass stands and None may stand; else None."""
    name, *further = path
    part = getattr(owner, name, None) if is_dataclass(owner) else None
    if not is_dataclass(part):
        return None
    if further:
        inner = replaced_by_none(part, further)
        return None if inner is None else replace(owner, **{name: inner})  # type: ignore[type-var]
    may_be_none = type(None) in get_args(get_type_hints(type(owner))[name])
    return replace(owner, **{name: None}) if may_be_none else None  # type: ignore[type-var]


@dataclass(frozen=True)
class Parts:
    """Parts of a run of another kind than the recipe's, put in before its fields are set."""

    base: str | None = None
    prompts: str | None = None
    images: str | None = None
    held_out_prompts: str | None = None
    adapt: Literal["lora", "full"] | None = None
    judge: Literal["shapes", "vlm", "votes"] | None = None

    def put_into(self, run: "Run") -> "Run":
        """Return the run with these parts."""
        from ..data.images import HubImages, ImageFolder, check_images
        from ..data.pairs import HubPairs, PairFolder, SampledPairs
        from ..data.prompts import PromptFile
        from ..models.adapters import Full, LoRA
        from ..models.families import pretrained
        from ..models.pipeline_files import SHIPPED_OPTIONS
        from ..rewards.shapes_judge import ShapesJudge
        from ..rewards.vlm.judge import VLMJudge

        if self.base is not None:
            model = pretrained(self.base, "float32", {})
            same = type(model) is type(run.model)
            named = {"path": self.base, **SHIPPED_OPTIONS.get(self.base, {})}
            run = replace(run, model=replace(run.model, **named) if same else model)
        if self.prompts is not None:
            prompts, drawn = PromptFile(self.prompts), isinstance(run.data, SampledPairs)
            run = replace(run, data=replace(run.data, prompts=prompts) if drawn else prompts)
        if self.images is not None:
            pairs = run.algorithm.requirements.pairs
            check_images(self.images, (".jsonl",) if pairs else (".parquet", ".tar"))
            folder, hub = (PairFolder, HubPairs) if pairs else (ImageFolder, HubImages)
            run = replace(run, data=folder(self.images) if Path(self.images).exists() else hub(self.images))
        if self.held_out_prompts is not None:
            held_out = {"held_out": PromptFile(self.held_out_prompts), "held_out_share": 0.0}
            run = run.with_options(**held_out, eval_every=run.evaluation.eval_every or 20)
        run = self.begin_with_pictures(run)
        if self.adapt is not None:
            run = replace(run, tune=LoRA() if self.adapt == "lora" else Full())
        if self.judge is not None:
            judges = {"shapes": ShapesJudge, "vlm": VLMJudge, "votes": partial(people_of, run)}
            run = replace(run, judge=judges[self.judge]())
        return run

    def begin_with_pictures(self, run: "Run") -> "Run":
        """Return the run with the family of --base that draws from input pictures, where its prompts have some."""
        from ..experiment.prompt_checks import has_inputs
        from ..models.families import pretrained

        if self.base is None:
            return run
        kind = type(pretrained(self.base, "float32", {}, inputs=True))
        if kind is type(run.model) or not has_inputs(run):
            return run
        return replace(run, model=kind(**{field.name: getattr(run.model, field.name) for field in fields(run.model)}))
