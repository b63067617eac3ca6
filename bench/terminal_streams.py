"""Faults of stdin, stdout, stderr and the terminal, and of what every command prints into."""

import os
import pty
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from desk import CHANGED, HUP, RUN, Answer, Desk, at, case, closed_reader, lora_digest

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))


# Streams: the run goes on


STREAMS: dict[str, tuple[Callable[[], tuple[Any, Any, Any]], str]] = {
    "stdin closed": (lambda: ("closed", None, None), ""),
    "stdout closed": (lambda: (None, "closed", None), ""),
    "stderr closed": (lambda: (None, None, "closed"), ""),
    "all three closed": (lambda: ("closed", "closed", "closed"), ""),
    "stdout a pipe without a reader": (lambda: (None, closed_reader(), None), CHANGED),
    "stderr a pipe without a reader": (lambda: (None, None, closed_reader()), ""),
    "stdout and stderr pipes without a reader": (lambda: (None, closed_reader(), closed_reader()), ""),
    "stdout on a full disk": (lambda: (None, os.open("/dev/full", os.O_WRONLY), None), CHANGED),
    "stderr on a full disk": (lambda: (None, None, os.open("/dev/full", os.O_WRONLY)), ""),
}
for stream, (files, sentence) in STREAMS.items():

    @case(f"train goes on, {stream}")
    def _(desk: Desk, files=files, sentence=sentence) -> None:
        answer = desk.train(None, files())
        desk.ended(answer, 0, sentence)
        desk.is_whole()


@case("train goes on, the reader of stdout leaves in the middle")
def _(desk: Desk) -> None:
    read, write = os.pipe()
    began = time.monotonic()
    gone = at("update", 2, lambda: time.sleep(1.0))
    arm = lambda: (os.close(read), gone())  # forked, so that it has the reader's end too
    child = desk.start(["train", "--from", str(desk.record)], arm, (None, write, None))
    os.close(write)
    os.read(read, 100)
    os.close(read)
    answer = desk.end(child, began)
    desk.ended(answer, 0, CHANGED)
    desk.is_whole()


@case("train goes on, a reward prints to a closed stdout")
def _(desk: Desk) -> None:
    arm = at("rollout", 2, lambda: print("x" * 100_000, flush=True))
    desk.ended(desk.train(arm, (None, closed_reader(), None)), 0, CHANGED)
    desk.is_whole()


def on_terminal(desk: Desk, arm: Any = None, act: Callable[[int, int], None] | None = None, **variables: Any) -> Answer:
    """Train on a terminal of its own, do something to it in the middle, and return what it shows."""
    master, slave = pty.openpty()
    shown = bytearray()

    def read() -> None:
        with suppress(OSError, ValueError):  # it may be closed
            if select.select([master], [], [], 0.05)[0]:
                shown.extend(os.read(master, 65536))

    def arm_without_reader() -> None:
        os.close(master)
        if arm is not None:
            arm()

    began = time.monotonic()
    child = desk.start(["train", "--from", str(desk.record)], arm_without_reader, (slave, slave, slave), **variables)
    os.close(slave)
    while not (RUN / "checkpoints" / "step_000000").is_dir() and time.monotonic() - began < 60:
        read()
    if act is not None:
        act(child, master)
    answer = desk.end(child, began, each=read)
    text = shown.decode(errors="replace")
    desk.check("Traceback" not in text, text[-300:])
    return replace(answer, out=text)


@case("train goes on, its terminal closes and SIGHUP is ignored as under nohup")
def _(desk: Desk) -> None:
    arm = lambda: (signal.signal(HUP, signal.SIG_IGN), at("update", 3, lambda: time.sleep(0.5))())
    desk.ended(on_terminal(desk, arm, lambda child, master: os.close(master)), 0)
    desk.is_whole()


@case("train ends, its terminal closes with SIGHUP")
def _(desk: Desk) -> None:
    def close(child: int, master: int) -> None:
        os.close(master)
        os.kill(child, HUP)

    desk.ended(on_terminal(desk, at("update", 3, lambda: time.sleep(0.5)), close), 1)
    desk.check(lora_digest() is None, "it went on")
    desk.goes_on()


for words, environment in {
    "TERM=dumb": {"TERM": "dumb"},
    "COLUMNS=1": {"COLUMNS": "1", "LINES": "1"},
    "TERM unset": {"TERM": None},
}.items():

    @case(f"train goes on, on a terminal with {words}")
    def _(desk: Desk, environment=environment) -> None:
        desk.ended(on_terminal(desk, **environment), 0)
        desk.is_whole()


@case("train goes on, the terminal is resized to nothing and back")
def _(desk: Desk) -> None:
    import fcntl
    import struct
    import termios

    def resize(child: int, master: int) -> None:
        for rows, columns in ((0, 0), (1, 1), (500, 1000)):
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.kill(child, signal.SIGWINCH)
            time.sleep(0.1)

    desk.ended(on_terminal(desk, act=resize), 0)
    desk.is_whole()


# Every command whose stdout is closed: the exit code of a shell, and what it makes is there

PIPED: dict[str, tuple[list[str], str | None]] = {
    "--help": (["--help"], None),
    "recipes": (["recipes", "--all"], None),
    "train --plan": (["train", "short", "--plan"], None),
    "train --help": (["train", "--help"], None),
    "status": (["status", str(RUN)], None),
    "sample": (
        ["sample", "MODEL", "a star", "--steps", "1", "--images", "1", "--max-sequence-length", "0"],
        "grid.png",
    ),
    "eval": (
        [
            "eval",
            "MODEL",
            *("--suite", "ocr", "--prompts", "2", "--images", "1", "--steps", "1", "--out", "drawn"),
            "--rewards",
            "jpeg_compressibility",
            "--max-sequence-length",
            "0",
        ],
        "drawn/tuned/00001/metadata.jsonl",
    ),
    "export": (["export", str(RUN), "--out", "other.safetensors"], "other.safetensors"),
    "doctor": (["doctor", "short"], None),
}


def finished_run(desk: Desk) -> None:
    """Put the folder of an undisturbed run here."""
    shutil.copytree(desk.record.parent, RUN, symlinks=True)


def piped_words(desk: Desk, command: str) -> list[str]:
    """Return the words of a command, with the pipeline of the desk in place of MODEL."""
    pipeline = str(desk.record.parents[2] / "pipeline")
    return [pipeline if word == "MODEL" else word for word in PIPED[command][0]]


for command in PIPED:

    @case(f"{command} into a pipe without a reader")
    def _(desk: Desk, command=command) -> None:
        made = PIPED[command][1]
        finished_run(desk)
        words = piped_words(desk, command)
        normal = desk.run(*words)
        for path in (Path("drawn"), Path("grid.png"), Path("other.safetensors")):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        answer = desk.run(*words, files=(None, closed_reader(), None))
        desk.check(normal.code == 0, f"code {normal.code} undisturbed: {normal.err[-200:]}")
        desk.check(answer.code == 141, f"code {answer.code}: {answer.err[-200:]}")
        desk.check(made is None or Path(made).is_file(), f"{made} is not there")


@case("eval goes on, stderr a pipe without a reader")
def _(desk: Desk) -> None:
    words = piped_words(desk, "eval")
    answer = desk.run(*words, files=(None, None, closed_reader()))
    desk.ended(answer, 0)
    desk.check("jpeg_compressibility" in answer.out, "no result")
