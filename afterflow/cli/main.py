"""The command line.  torch and diffusers take seconds to import, so commands import them when they need them."""

import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path

from .. import __version__
from ..rewards.named_code import names_of_command
from ..system.addresses import check_no_secrets
from ..system.ended import Ended, terminations_raised
from ..system.environment import check_environment
from ..system.errors import ConfigError, OutputError, TrainingStopped
from ..system.escapes import one_line
from ..system.launcher import check_launcher, launched_processes, launched_rank
from ..system.messages import show_messages
from ..system.names import unknown_name
from ..system.slow_import import announced_import
from ..system.streams import discard_buffer, lasting_streams, open_standard_files
from .help_words import HELP, asks_for_help
from .recipes import function_summaries

COMMANDS = {
    "train": ("train", "train"),
    "status": ("status", "status"),
    "doctor": ("doctor", "doctor"),
    "eval": ("evaluate", "eval_command"),
    "sample": ("sample", "sample_command"),
    "compare": ("compare", "compare_command"),
    "report": ("compare", "report_command"),
    "tree": ("compare", "tree_command"),
    "merge": ("merge", "merge_command"),
    "export": ("export", "export_command"),
    "push": ("push", "push"),
    "serve-rewards": ("serve", "serve_command"),
    "view": ("view", "view_command"),
    "vote": ("vote", "vote_command"),
    "recipes": ("recipes", "recipes_command"),
}
"""Command → the module beside this one and the function in it, imported when the command is called."""


TRAINING = ("train", "doctor", "compare")
"""Commands that train."""
LASTING = ("train", "compare", "serve-rewards", "view", "vote")
"""Commands whose result is a folder or a service: what they print are messages, which may be lost."""
INTERRUPTED = 128 + 2
"""The exit code after Ctrl-C: the shell's for a program that SIGINT ends."""
CLOSED_PIPE = 128 + 13
"""The exit code where a reader such as `head` closes the pipe: the shell's for a program that SIGPIPE ends."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 2 for input that cannot be used, 1 where training cannot go on."""
    words = list(sys.argv[1:] if argv is None else argv)
    command, args = words[0] if words else "", words[1:]
    messages_alone = command in LASTING and args and "--plan" not in args and not asks_for_help(args)
    return guarded(lambda: run_command(words), prints_result=not messages_alone)


def guarded(command: Callable[[], int | None], prints_result: bool = True) -> int:
    """Run a command and return its exit code; an error that a user can mend, and a signal, is one line on stderr.

    A stdout that is closed or full ends no command early.  Where it took no result, the exit code says so.
    """
    open_standard_files()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a pipe on Windows knows few letters
    with lasting_streams(announces=not prints_result) as (out, err):
        with terminations_raised() as came:
            code = exit_code_of(command, came)
        out.flush()
        failure = out.failure
    for stream in (out, err):
        if stream.failure is not None:
            discard_buffer(stream.stream)
    if code != 0 or failure is None or not prints_result:
        return code
    if isinstance(failure, BrokenPipeError):
        return CLOSED_PIPE
    return complain(f"the output: {getattr(failure, 'strerror', None) or failure}", 1)


def exit_code_of(command: Callable[[], int | None], came: Sequence[int]) -> int:
    """Run a command and return its exit code, after one line on stderr where it is not 0.

    Any error after a signal that came is taken for the signal's: libraries that are half imported raise their own.
    """
    try:
        try:
            return command() or 0
        except BaseException:
            if not came:
                raise
            raise (KeyboardInterrupt() if came[0] == signal.SIGINT else Ended(came[0])) from None
    except SystemExit as end:  # tyro's way
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Ended as ended:
        return complain(f"{ended}: ended; checkpoints and results that were written are whole", 128 + ended.number)
    except KeyboardInterrupt:
        return complain("interrupted; checkpoints and results that were written are whole", INTERRUPTED)
    except ValueError as error:
        return complain(error, 2)
    except (TrainingStopped, OutputError) as error:
        return complain(error, 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return complain(f"{where}{error.strerror or error}", 1)
    except MemoryError:
        return complain("this machine has too little memory for that; ask for less at a time, or for fewer", 1)


def run_command(argv: Sequence[str] | None) -> None:
    """Run the command that the arguments name.  ConfigError where there is none of that name."""
    show_messages()
    command, *args = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        # They read it when imported, and would warn about libraries that we do not use.
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    if command in HELP:
        print(overview())
    elif command == "--version":
        print(f"afterflow {__version__}")
    elif command in COMMANDS:
        check_launch(command, args)
        module, function = COMMANDS[command]
        check_words(args)
        with names_of_command(args), first_line(command):
            getattr(import_module(f".{module}", __package__), function)(args)
    else:
        raise unknown_name("command", command, COMMANDS)


def first_line(command: str) -> AbstractContextManager[None]:
    """Return a context that announces a slow import in the first process of a launcher, and in no other."""
    return announced_import(f"afterflow {command}") if launched_rank() == 0 else nullcontext()


def check_words(args: Sequence[str]) -> None:
    """Raise ConfigError, which names the option, for an address with a secret among the words of a command."""
    option = "an argument"
    for word in args:
        if word.startswith("--"):
            name, _, word = word.removeprefix("--").partition("=")
            option = name.replace("-", "_")
        check_no_secrets([word, word.partition("=")[2]], option)


def check_launch(command: str, args: Sequence[str]) -> None:
    """Silence all processes of a launcher but the first.

    ConfigError is raised for a command that one process does, for half of a launcher's environment, and, before
    training, for variables that would change it.
    """
    if command in TRAINING and not asks_for_help(args):
        check_launcher()
        check_environment()
    if launched_processes() == 1:
        return
    if command != "train":
        raise ConfigError(f"{command} is done by one process; start it without a launcher")
    if launched_rank() != 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends


def complain(error: Exception | str, code: int) -> int:
    """Print an error in one line on stderr, and return the exit code."""
    rank = os.environ.get("RANK", "0")
    process = f", process {rank}" if rank.isdigit() and int(rank) else ""
    print(f"afterflow{process}: {one_line(str(error))}", file=sys.stderr)
    return code


def overview() -> str:
    """Return the list of commands, each with the first line of its docstring."""
    folder = Path(__file__).parent
    summaries = {module: function_summaries(folder / f"{module}.py") for module, _ in COMMANDS.values()}
    lines = [f"  {name:<9} {summaries[module][function]}" for name, (module, function) in COMMANDS.items()]
    return "\n".join(["usage: afterflow COMMAND ...", "", *lines, "", "afterflow COMMAND --help tells more."])
