"""What the benchmarks share: options, how a result was made, writing it, and iterations to time."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from afterflow.experiment.provenance import git_commit, hardware
from afterflow.system.atomic_files import write_text_atomically
from afterflow.system.ended import signal_name


def make_parser(doc: str | None, stores: bool = True) -> argparse.ArgumentParser:
    """Make the parser of a benchmark, described by its docstring, with the option --json where it `stores` a result."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if stores:
        parser.add_argument(
            "--json", default="-", help="file of the result, whose other entries stay; - prints it only"
        )
    return parser


def provenance(command: str | None = None) -> dict:
    """Return how a result was made: the command, the commit and the machine."""
    made = {"git_commit": git_commit(), "hardware": hardware()}
    return {"command": command or " ".join(["python", *sys.argv])} | made


def read_json(file: str) -> dict:
    """Read what a file of results holds; empty where there is none yet."""
    return json.loads(Path(file).read_text()) if file != "-" and Path(file).is_file() else {}


def write_json(result: dict, file: str, indent: int | None = None, show: bool = True) -> None:
    """Write a result to a file, unless it is called -, and print it."""
    text = json.dumps(result, indent=indent)
    if file != "-":
        write_text_atomically(Path(file), text + "\n")
    if show:
        print(text)


def failure(code: int, lines: list[str]) -> str:
    """Return why a process failed, from its exit status and what it wrote: its last line, which may be a warning."""
    last = next((line.strip() for line in reversed(lines) if line.strip()), None)
    end = f"ended by {signal_name(-code)} (exit status {code})" if code < 0 else f"exit status {code}"
    return end if last is None else f"{end}; its last line: {last}"


def seconds_of(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
