"""afterflow train: by a recipe and options, as a run recorded, or on from a checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from tyro.conf import AvoidSubcommands
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from ..experiment.run_folder import RunFolder, read_run
from ..system.errors import CheckpointError, ConfigError, InputError
from ..system.launcher import launched_processes
from .output import result_console
from .parsing import HELP, parse_options
from .recipes import made_by, recipe_lines

if TYPE_CHECKING:
    from ..experiment.config import Run
    from ..experiment.stages import Chain

TRAIN_USAGE = """\
usage: afterflow train RECIPE [--options]             train by a recipe; options override its fields
       afterflow train RECIPE --plan [--options]      the memory and the work it will take, before weights are loaded
       afterflow train RECIPE --help                  what the fields of that recipe are and mean
       afterflow train --from RUN/run.json [--options]  repeat what a run recorded
       afterflow train --resume RUN                   go on from the last checkpoint of a run; on other processes
                                                      perhaps with another --grad-partitions or --shard
"""

PARTS_USAGE = """\
First of all, options that put in parts of another kind: --base PATH trains a pipeline of any family, --prompts FILE
explores the prompts of a .txt or .jsonl file, --images FOLDER learns from the images of a folder with a metadata.jsonl,
or OWNER/NAME of the hub, --held-out-prompts FILE evaluates on them while training goes on, --adapt lora or --adapt full
says what is trained.
"""


def train(args: Sequence[str]) -> None:
    """Train a model by a recipe, repeat a recorded run, or go on with one."""
    source, *options = [*args[0].split("=", 1), *args[1:]] if args else ["--help"]
    if source in ("-h", "--help"):
        print(f"{TRAIN_USAGE}\nrecipes:\n{recipe_lines()}")
        return
    if source in ("--from", "--resume") and not options:
        raise ConfigError(f"{source} needs a run; its folder is runs/NAME")
    only_plan = "--plan" in options
    options = [option for option in options if option != "--plan"]
    # A name or a folder that does not exist is refused first, because what follows takes seconds to import.
    if source == "--resume":
        run, recipe = resumable(options)
    elif source == "--from":
        recorded, recipe = read_run(Path(options[0]))
        run = overridden(recorded, options[1:], f"afterflow train --from {options[0]}")
    else:
        made, recipe = made_by(source), source
        from ..experiment.config import Run

        if not isinstance(made, Run):
            train_chain(made, options, only_plan)
            return
        run = overridden(made, options, f"afterflow train {recipe}")
    from ..models.pipeline import no_progress_bars

    no_progress_bars()
    if only_plan:
        print_plan(run)
        return
    from ..experiment.execute import execute

    print(f"{execute(run, recipe, resume=source == '--resume').folder} holds the result")


def print_plan(run: "Run") -> None:
    """Print the memory and the work that a run will take."""
    from ..experiment.cost_estimate import cost_table, estimate_cost

    result_console().print(cost_table(run, estimate_cost(run)))


def train_chain(chain: "Chain", options: Sequence[str], only_plan: bool) -> None:
    """Do the stages of a chain that have not ended, or count what its runs will take, and print the last folder."""
    from ..experiment.config import Run
    from ..experiment.stages import execute_chain
    from ..models.pipeline import no_progress_bars

    if HELP & set(options):
        print(f"{chain.name} does in order what is not done yet. --plan counts what its runs take, and --iterations N")
        print("gives N iterations to each of them. Other options belong to its stages:")
        print("\n".join(f"  {stage.name}" for stage in chain.stages))
        return
    if launched_processes() > 1:
        raise ConfigError(f"{chain.name} is a chain of runs and starts their processes itself; leave the launcher out")
    given, rejected = parse_options(ChainOptions, options, f"afterflow train {chain.name}", return_unknown_args=True)
    if rejected:
        raise ConfigError(
            f"{chain.name} is a chain of runs and takes no option but --plan and --iterations, so not {rejected[0]}; "
            "write a recipe beside it with `replace`, or train its stages one by one"
        )
    if given.iterations is not None:
        length = {"iterations": given.iterations}
        stages = [stage.with_options(**length) if isinstance(stage, Run) else stage for stage in chain.stages]
        chain = replace(chain, stages=tuple(stages))
    no_progress_bars()
    if not only_plan:
        print(f"{execute_chain(chain)} holds the result")
        return
    for stage in chain.stages:
        try:
            print_plan(stage) if isinstance(stage, Run) else print(f"{stage.name}: {type(stage).__name__}, not counted")
        except InputError as error:
            print(f"{stage.name}: not counted before the stages that it is made from are done ({error})")


@dataclass(frozen=True)
class ChainOptions:
    """What may be set of all runs of a chain together."""

    iterations: int | None = None


def resumable(options: Sequence[str]) -> tuple["Run", str]:
    """Return the run of a folder that has a checkpoint, and its recipe; only options of `Elsewhere` may change."""
    folder = Path(options[0])
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; runs are kept in runs/NAME")
    from ..experiment.compatibility import refuse_renamed

    refuse_renamed(options)
    changes, rejected = parse_options(Elsewhere, options[1:], "afterflow train --resume RUN", return_unknown_args=True)
    if rejected:
        raise ConfigError(f"a resumed run keeps its configuration, so {rejected[0]} cannot be set; use --from instead")
    if not RunFolder(folder).checkpoints():
        raise CheckpointError(f"{folder}: no checkpoint to resume from; start anew with --from {folder / 'run.json'}")
    run, recipe = read_run(folder)
    if run.folder.resolve() != folder.resolve():
        raise InputError(f"{folder} is recorded as {run.folder}; go to the folder that holds {run.folder}")
    given = {name: value for name, value in vars(changes).items() if value is not None}
    return run.with_options(**given), recipe


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
    default, given = run, option_names(options)
    if not HELP & set(options):
        parts, options = parse_options(Parts, options, prog, return_unknown_args=True)
        default = parts.put_into(run)
    changed = parse_options(
        AvoidSubcommands[Run], options, prog, default=default, registry=MAPPINGS, description=PARTS_USAGE, config=()
    )
    return fit_evaluation(run, changed, given)


def option_names(words: Sequence[str]) -> set[str]:
    """Return the options of a run that are typed, without what stands after a dot or an equals sign."""
    names = {word[2:].split("=")[0].split(".")[0].replace("-", "_") for word in words if word.startswith("--")}
    return names | {"held_out"} if "held_out_prompts" in names else names


@dataclass(frozen=True)
class Parts:
    """Parts of a run of another kind than the recipe's, put in before its fields are set."""

    base: str | None = None
    prompts: str | None = None
    images: str | None = None
    held_out_prompts: str | None = None
    adapt: Literal["lora", "full"] | None = None

    def put_into(self, run: "Run") -> "Run":
        """Return the run with these parts."""
        from ..data.images import HubImages, ImageFolder, check_images
        from ..data.prompts import PromptFile
        from ..models.adapters import Full, LoRA
        from ..models.families import pretrained

        if self.base is not None:
            model = pretrained(self.base, "float32", {})
            same = type(model) is type(run.model)
            run = replace(run, model=replace(run.model, path=self.base) if same else model)
        if self.prompts is not None:
            run = replace(run, data=PromptFile(self.prompts))
        if self.images is not None:
            check_images(self.images)
            folder = Path(self.images).is_dir()
            run = replace(run, data=ImageFolder(self.images) if folder else HubImages(self.images))
        if self.held_out_prompts is not None:
            run = run.with_options(
                held_out=PromptFile(self.held_out_prompts), eval_every=run.evaluation.eval_every or 20
            )
        if self.adapt is not None:
            run = replace(run, tune=LoRA() if self.adapt == "lora" else Full())
        return run


MAPPINGS = ConstructorRegistry()


@MAPPINGS.primitive_rule
def whole_mapping(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Let `--weights a 0.5 b 0.5` replace a mapping; tyro's own rule only changes values of keys that exist."""
    if info.type_origin is not Mapping:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME NUMBER ...]",
        instance_from_str=partial(numbers_by_name, kind=get_args(info.type)[1]),
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda value: [str(word) for pair in value.items() for word in pair],
    )


def numbers_by_name(words: Sequence[str], kind: Callable[[str], float]) -> dict[str, float]:
    """NAME NUMBER or NAME=NUMBER, any number of times."""
    words = [part for word in words for part in word.split("=", 1)]
    if len(words) % 2:
        raise ConfigError(f"{words[-1]!r} has no number after it; write NAME NUMBER NAME NUMBER ...")
    return {name: kind(number) for name, number in zip(words[::2], words[1::2])}
