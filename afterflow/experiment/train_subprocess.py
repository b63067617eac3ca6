"""Training of runs in processes of their own, for comparisons and chains."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType

from ..data.prompts import ShapesPrompts
from ..rewards.named_code import may_import
from ..system.atomic_files import make_folder, write_text_atomically
from ..system.ended import TERMINATIONS, handlers, signal_name
from ..system.errors import CheckpointError, ConfigError, InputError, TrainingStopped
from ..system.folder_lock import check_unlocked
from ..system.own_folders import check_place
from .config import Run
from .made_from import check_inputs_unchanged, write_inputs
from .run_folder import RunFolder
from .serialization import to_json

_log = logging.getLogger(__name__)

CURVE_PROMPTS = ShapesPrompts("test", count=60)
"""Held-out prompts of a recipe that has none of its own."""


def train_all(recipes: Mapping[str, Run], budget_seconds: float | None, seeds: int, name: str) -> list[Path]:
    """Train each recipe's run with every seed, one after another, and return the folders.

    Without a budget each has its own iterations.  A run that has ended is not repeated, and one that was interrupted
    goes on from its checkpoint.  CheckpointError is raised when a folder holds a run with other settings,
    TrainingStopped when one could not be finished.
    """
    runs = checked_runs(recipes, budget_seconds, seeds, name)
    for recipe, run in runs:
        if has_ended(run.folder, run):
            _log.info(f"{run.folder} is there already")
        else:
            make_folder(run.folder)
            write_inputs(run.folder, run)
            train_in_subprocess(run, recipe)
    return [run.folder for _, run in runs]


def checked_runs(
    recipes: Mapping[str, Run], budget_seconds: float | None, seeds: int, name: str
) -> list[tuple[str, Run]]:
    """Return each recipe's run with every seed, whose folders hold no other run and are used by nobody.

    CheckpointError, or what `check_same` raises, says what is to be done.
    """
    runs = [
        (recipe, budgeted(run, budget_seconds, seed, f"{name}/{recipe}_{seed}"))
        for seed in range(seeds)
        for recipe, run in recipes.items()
    ]
    for _, run in runs:
        check_same(run)
        check_unlocked(run.folder)
        if has_ended(run.folder, run):
            check_inputs_unchanged(run.folder, run)
    return runs


def check_same(run: Run) -> None:
    """Check that the run's folder holds no other run, and that another process can train it.

    CheckpointError where the folder does, InputError or OutputError where it is not a run's alone, and ConfigError
    where a reward is a function of this process.
    """
    for name in run.functions:
        raise ConfigError(
            f"{run.name} is trained in a process of its own, which has no function {name}; put it into a module, and "
            f"name it as 'MODULE:{name}'"
        )
    folder = RunFolder(run.folder)
    check_place(run.folder)
    folder.check_safe()
    # Read back, because a field that is newer than the file has its default there.
    if folder.record_file.is_file() and folder.run() != run:
        raise CheckpointError(f"{run.folder} holds a run with other settings; delete it, or name this one otherwise")


def train_in_subprocess(run: Run, recipe: str, processes: int = 1) -> None:
    """Train a run in a process of its own, or several, so that nothing of one run reaches the next."""
    check_unlocked(run.folder)
    file = run.folder / "requested_run.json"
    make_folder(file.parent)
    write_text_atomically(file, json.dumps({"recipe": recipe, "config": to_json(run)}))
    resumes = bool(RunFolder(run.folder).checkpoints())
    what = ["--resume", str(run.folder)] if resumes else ["--from", str(file)]
    code = [name for name in run.rewards if ":" in name]
    if code and all(map(may_import, code)):  # a person named them here, and the other process reads them from a file
        what.append("--trust-code")
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    launcher = several if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "afterflow", "train", *what]
    trained = subprocess.Popen(command, env=os.environ | signals_of_torchrun())

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in training_processes(trained.pid, processes):
            with suppress(ProcessLookupError):
                os.kill(process, number)

    # Ctrl-C reaches both processes, another signal perhaps this one alone; the other one saves, and this one waits.
    with handlers({signal.SIGINT: lambda number, frame: None, **dict.fromkeys(TERMINATIONS, pass_on)}):
        code = trained.wait()
    if code != 0:
        raise TrainingStopped(f"{run.folder} could not be trained, see above; the runs before it are kept")
    if not has_ended(run.folder, run):
        raise TrainingStopped(f"{run.folder} was interrupted; the same command goes on with it")


def training_processes(started: int, processes: int) -> list[int]:
    """Return the processes that train: the one that was started, or those that torchrun has started there.

    torchrun waits for nobody after a second signal, and a terminal that closes may have sent it one already.  Where
    its processes are not known it is torchrun itself.
    """
    children = Path(f"/proc/{started}/task/{started}/children")
    if processes == 1 or not children.is_file():
        return [started]
    return [int(child) for child in children.read_text(encoding="ascii").split()] or [started]


def signals_of_torchrun() -> dict[str, str]:
    """Return the variable that keeps torchrun from ending its processes on a signal that was ignored at the start."""
    numbers = (signal.SIGINT, *TERMINATIONS)
    handled = [signal_name(number) for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    return {"PET_SIGNALS_TO_HANDLE": ",".join(handled)} if len(handled) < len(numbers) else {}


def budgeted(run: Run, budget_seconds: float | None, seed: int, name: str) -> Run:
    """Return the run under a budget of seconds, if any, instead of iterations."""
    if run.evaluation.eval_every == 0:
        run = run.with_options(held_out=CURVE_PROMPTS, eval_every=10)
    if budget_seconds is not None:
        # The budget ends it; so many iterations are out of reach.
        run = run.with_options(budget_seconds=budget_seconds, iterations=10**6)
    return run.with_options(seed=seed, name=name, keep_checkpoints=1)


def has_ended(folder: Path, run: Run) -> bool:
    """Return whether the run in this folder did its iterations or used up its budget, and left its result."""
    return RunFolder(folder).has_ended(run.batches.iterations, run.batches.budget_seconds)


def check_ended(folder: Path, run: Run) -> None:
    """Check that a run has ended.  InputError says how to go on with it."""
    RunFolder(folder).check_safe()
    if not has_ended(folder, run):
        raise InputError(f"{folder}: the run has not ended; go on with: afterflow train --resume {folder}")
