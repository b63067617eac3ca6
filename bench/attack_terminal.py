"""Faults of a terminal and a desk, one in each case: does the command end as designed, and is nothing lost?

    python bench/attack_terminal.py --json bench/results/attack_terminal.json

Flow-GRPO trains a tiny pipeline with random weights for four iterations.  Full and read-only disks are small disks
that are mounted for the case alone (Linux, root).  A case that says "goes on" must leave the same bytes of the LoRA and
the same iterations in metrics.jsonl as a run that nobody disturbed.  A case that says "ends" must end with its exit
code and one sentence, without a traceback, and go on with --resume to the same bytes.
"""

import errno
import json
import os
import pty
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from desk import ITERATIONS, POINTS, RUN, Answer, Desk, at, fill, lora_digest, mount, own_mounts, remount, send
from harness import make_parser, provenance, write_json

from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.cli import recipes
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.experiment.run_folder import MetricsFile
from afterflow.models.adapters import LoRA
from afterflow.models.sd3 import SD3
from afterflow.recipes import RECIPES
from afterflow.system.folder_lock import LOCK

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

CASES: dict[str, tuple[Callable[[Desk], None], bool]] = {}
"""Name of a case → what it does, and whether it mounts disks."""
HUP, TERM, INT, KILL = signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGKILL
CHANGED = "its lines are lost, and the work goes on"


def case(name: str, mounts: bool = False) -> Callable[[Callable[[Desk], None]], Callable[[Desk], None]]:
    def add(do: Callable[[Desk], None]) -> Callable[[Desk], None]:
        assert name not in CASES, name
        CASES[name] = do, mounts
        return do

    return add


def small_run(pipeline: str) -> Run:
    algorithm = FlowGRPO({"jpeg_compressibility": 1.0}, steps=3, group=2, window=2, beta=0.01)
    model, data = SD3(pipeline, max_sequence_length=0), ShapesPrompts(count=2)
    options = {"batch": 2, "chunk": 8, "learning_rate": 1e-3, "inference_steps": 1, "sample_every": 1, "save_every": 1}
    held_out = {"held_out": ShapesPrompts("test", count=2), "eval_every": 1, "eval_images": 1}
    made = Run(algorithm, data, model, LoRA(rank=4, alpha=8), name="short")
    return made.with_options(iterations=ITERATIONS, **options, **held_out)


def refuses(code: int) -> Callable[..., Any]:
    """Return a function that fails as a disk does."""

    def refuse(*args: Any, **options: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return refuse


# Streams: the run goes on


def closed_reader() -> int:
    """Return a pipe whose reader has gone."""
    read, write = os.pipe()
    os.close(read)
    return write


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


for command, (words, made) in PIPED.items():

    @case(f"{command} into a pipe without a reader")
    def _(desk: Desk, words=words, made=made) -> None:
        finished_run(desk)
        words = [str(desk.record.parents[2] / "pipeline") if word == "MODEL" else word for word in words]
        normal = desk.run(*words)
        for path in (Path("drawn"), Path("grid.png"), Path("other.safetensors")):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        answer = desk.run(*words, files=(None, closed_reader(), None))
        desk.check(normal.code == 0, f"code {normal.code} undisturbed: {normal.err[-200:]}")
        desk.check(answer.code == 141, f"code {answer.code}: {answer.err[-200:]}")
        desk.check(made is None or Path(made).is_file(), f"{made} is not there")


@case("eval goes on, stderr a pipe without a reader")
def _(desk: Desk) -> None:
    words = [str(desk.record.parents[2] / "pipeline") if word == "MODEL" else word for word in PIPED["eval"][0]]
    answer = desk.run(*words, files=(None, None, closed_reader()))
    desk.ended(answer, 0)
    desk.check("jpeg_compressibility" in answer.out, "no result")


# Signals

MOMENTS = {"rollout": 2, "update": 2, "evaluation": 2, "metrics": 3, "checkpoint": 5, "picture": 2}
for number in (HUP, TERM):
    for moment, call in MOMENTS.items():

        @case(f"train ends, {number.name} at the {moment}")
        def _(desk: Desk, number=number, moment=moment, call=call) -> None:
            answer = desk.train(at(moment, call, send(number)))
            desk.ended(answer, 1, "go on with: afterflow train --resume runs/short")
            desk.check(f"{number.name}: finishing iteration" in answer.err, "no answer at once")
            desk.goes_on()

    @case(f"train ends, {number.name} before it begins")
    def _(desk: Desk, number=number) -> None:
        answer = desk.train(at("load", 1, send(number)))
        desk.ended(answer, 128 + number, f"afterflow: {number.name}: ended")
        desk.goes_on()

    @case(f"train ends, {number.name} while the LoRA is written")
    def _(desk: Desk, number=number) -> None:
        last = lambda: at("LoRA", 1, send(number), after=True)()
        answer = desk.train(at("result", 1, last))
        desk.ended(answer, 128 + number, f"afterflow: {number.name}: ended")
        desk.check(lora_digest() is None, "half a LoRA is there")
        desk.goes_on()


for moment, call in {"rollout": 2, "checkpoint": 5, "picture": 2, "result": 1}.items():

    @case(f"train goes on, SIGHUP at the {moment} under nohup")
    def _(desk: Desk, moment=moment, call=call) -> None:
        arm = lambda: (signal.signal(HUP, signal.SIG_IGN), at(moment, call, send(HUP))())
        desk.ended(desk.train(arm), 0)
        desk.is_whole()


@case("train goes on, SIGINT where it was ignored at the start, as in the background of a script")
def _(desk: Desk) -> None:
    arm = lambda: (signal.signal(INT, signal.SIG_IGN), at("update", 2, send(INT, 2))())
    desk.ended(desk.train(arm), 0)
    desk.is_whole()


for moment, call in {"rollout": 2, "update": 2, "evaluation": 2, "checkpoint": 5, "picture": 2}.items():

    @case(f"train ends after the iteration, Ctrl-C at the {moment}")
    def _(desk: Desk, moment=moment, call=call) -> None:
        answer = desk.train(at(moment, call, send(INT)))
        desk.ended(answer, 0, "Stopped after iteration")
        desk.check("and saving it; Ctrl-C again to stop now" in answer.err, "no answer at once")
        desk.check(lora_digest() != desk.expected, "it went on")  # that of the iterations which are done is there
        desk.goes_on()

    @case(f"train ends now, Ctrl-C twice at the {moment}")
    def _(desk: Desk, moment=moment, call=call) -> None:
        answer = desk.train(at(moment, call, send(INT, 2)))
        desk.ended(answer, 130, "afterflow: interrupted")
        desk.goes_on()


for moment, call in MOMENTS.items():

    @case(f"train killed at the {moment}")
    def _(desk: Desk, moment=moment, call=call) -> None:
        desk.ended(desk.train(at(moment, call, send(KILL))), -9)
        desk.goes_on()


@case("train killed while the LoRA is written")
def _(desk: Desk) -> None:
    answer = desk.train(at("result", 1, lambda: at("LoRA", 1, send(KILL), after=True)()))
    desk.ended(answer, -9)
    desk.check(lora_digest() is None, "half a LoRA is there")
    desk.goes_on()


@case("train killed while best/ is written")
def _(desk: Desk) -> None:
    answer = desk.train(at("LoRA", 1, send(KILL), after=True), (None, None, None), "--best-by", "jpeg_compressibility")
    desk.ended(answer, -9)
    desk.check(not (RUN / "best" / "lora").exists(), "half of best/ is there")


for number in (signal.SIGTSTP, signal.SIGSTOP):

    @case(f"train goes on, {number.name} for 8 seconds, which are not counted")
    def _(desk: Desk, number=number) -> None:
        began = time.monotonic()
        child = desk.start(["train", "--from", str(desk.record)], at("update", 3, send(number)))
        while os.waitpid(child, os.WNOHANG | os.WUNTRACED) == (0, 0):
            time.sleep(0.05)
        time.sleep(8)
        os.kill(child, signal.SIGCONT)
        desk.ended(desk.end(child, began), 0)
        desk.is_whole()
        seconds = json.loads((RUN / "metrics.jsonl").read_text().splitlines()[-1])
        desk.check(seconds["seconds_trained"] < 8 and seconds["seconds"] < 8, f"{seconds['seconds_trained']:.1f} s")


@case("train goes on, stopped and continued for a moment, ten times")
def _(desk: Desk) -> None:
    began = time.monotonic()
    child = desk.start(["train", "--from", str(desk.record)])
    for _ in range(10):
        os.kill(child, signal.SIGSTOP)
        time.sleep(0.05)
        os.kill(child, signal.SIGCONT)
        time.sleep(0.1)
    desk.ended(desk.end(child, began), 0)
    desk.is_whole()


for number, code in {HUP: 129, TERM: 143, INT: 130}.items():

    @case(f"eval ends, {number.name} while it draws, and continues")
    def _(desk: Desk, number=number, code=code) -> None:
        words = [str(desk.record.parents[2] / "pipeline") if word == "MODEL" else word for word in PIPED["eval"][0]]
        answer = desk.run(*words, arm=at("drawing", 2, send(number)))
        desk.ended(answer, code, "whole")
        desk.check(Path("drawn/tuned/00000/metadata.jsonl").is_file(), "the first prompt is lost")
        desk.ended(desk.run(*words), 0)

    @case(f"doctor ends, {number.name} in the middle, and leaves nothing")
    def _(desk: Desk, number=number, code=code) -> None:
        desk.ended(desk.run("doctor", "short", arm=at("update", 1, send(number))), code)
        desk.check(not Path("runs").exists(), "a folder stays")


for number in (HUP, TERM, INT):

    @case(f"serve-rewards ends in good order, {number.name}")
    def _(desk: Desk, number=number) -> None:
        began = time.monotonic()
        child = desk.start(["serve-rewards", "jpeg_compressibility", "--port", "0"])
        while "ready" not in Path(f"out.{child}").read_text() if Path(f"out.{child}").is_file() else True:
            time.sleep(0.1)
            if time.monotonic() - began > 60:
                break
        os.kill(child, number)
        desk.ended(desk.end(child, began, 80), 0)


@case("serve-rewards goes on, SIGHUP under nohup and no stdout")
def _(desk: Desk) -> None:
    began = time.monotonic()
    arm = lambda: signal.signal(HUP, signal.SIG_IGN)
    child = desk.start(["serve-rewards", "jpeg_compressibility", "--port", "0"], arm, (None, closed_reader(), None))
    time.sleep(5)
    os.kill(child, HUP)
    time.sleep(0.5)
    desk.check(os.waitpid(child, os.WNOHANG) == (0, 0), "it ended")
    os.kill(child, TERM)
    desk.ended(desk.end(child, began), 0)


# Disks


@case("train goes on, disk full at pictures", mounts=True)
def _(desk: Desk) -> None:
    mount(RUN / "samples", 1)
    answer = desk.train(at("picture", 1, lambda: fill(RUN / "samples")))
    desk.ended(answer, 0, "sample pictures failed")
    desk.check(f"not there: sample pictures of {ITERATIONS} iterations, 0 to 3" in answer.out, "no summary")
    desk.is_whole()


@case("train goes on, pictures read-only after the start", mounts=True)
def _(desk: Desk) -> None:
    mount(RUN / "samples", 1)
    answer = desk.train(at("picture", 2, lambda: remount(RUN / "samples", "ro")))
    desk.ended(answer, 0, "sample pictures failed")
    desk.check("not there: sample pictures of 3 iterations, 1 to 3" in answer.out, "no summary")
    desk.is_whole()


@case("train ends, disk full at the checkpoint", mounts=True)
def _(desk: Desk) -> None:
    mount(RUN, 8)
    answer = desk.train(at("checkpoint", 5, lambda: fill(RUN)))
    desk.ended(answer, 1, "the checkpoint could not be written")
    desk.check("step_000000 is whole" in answer.err and "--resume runs/short" in answer.err, answer.err)
    (RUN / "filler").unlink()
    desk.goes_on()


@case("train ends, disk full between two iterations, at metrics and the checkpoint", mounts=True)
def _(desk: Desk) -> None:
    mount(RUN, 8)
    answer = desk.train(at("update", 2, lambda: fill(RUN)))
    desk.ended(answer, 1, "the checkpoint could not be written")
    (RUN / "filler").unlink()
    desk.goes_on()


@case("train ends, the checkpoints are read-only after the start", mounts=True)
def _(desk: Desk) -> None:
    mount(RUN / "checkpoints", 8)
    answer = desk.train(at("update", 3, lambda: remount(RUN / "checkpoints", "ro")))
    desk.ended(answer, 1, "Read-only file system); step_000001 is whole")
    remount(RUN / "checkpoints", "rw")
    desk.goes_on()


@case("train ends, disk full while the LoRA is written", mounts=True)
def _(desk: Desk) -> None:
    mount(RUN, 8)
    answer = desk.train(at("result", 1, lambda: at("LoRA", 1, lambda: fill(RUN))()))
    desk.ended(answer, 1, "trained, and ")
    desk.check(lora_digest() is None and "--resume runs/short" in answer.err, "half a LoRA, or no advice")
    (RUN / "filler").unlink()
    desk.goes_on()


@case("train goes on, disk full at the card", mounts=True)
def _(desk: Desk) -> None:
    mount(RUN, 8)
    answer = desk.train(at("card", 1, lambda: fill(RUN)))
    desk.ended(answer, 0, "the model card failed")
    desk.check("not there: the model card" in answer.out, "no summary")
    desk.is_whole()


@case("train goes on, disk full at metrics.jsonl for two iterations, and the lines are written later", mounts=True)
def _(desk: Desk) -> None:
    mount(RUN, 8)
    free = lambda: (RUN / "filler").unlink()
    arm = lambda: (at("metrics", 1, lambda: fill(RUN))(), at("update", 4, free)())
    options = ("--save-every", "4", "--sample-every", "0", "--held-out", "None")
    answer = desk.train(arm, (None, None, None), *options)
    desk.ended(answer, 0, "its lines are kept")
    desk.is_whole()


for name in ("metrics.jsonl", "held_out.jsonl"):

    @case(f"train ends after a checkpoint with the lines, {name} cannot be written")
    def _(desk: Desk, name=name) -> None:
        catch_up = MetricsFile._catch_up

        def failing(file: MetricsFile) -> None:
            if file.file.name == name and len(file.texts) > 1:
                file.stream.close()
                file._open = refuses(errno.EROFS)  # type: ignore[method-assign]
            from afterflow.system.atomic_files import writing

            with writing(file.file):
                catch_up(file)

        answer = desk.train(lambda: setattr(MetricsFile, "_catch_up", failing))
        desk.ended(answer, 1, "iteration 1 is saved with the lines that are missing there")
        desk.goes_on()
        lines = (RUN / "held_out.jsonl").read_text().splitlines()
        desk.check(len(lines) == ITERATIONS, f"{len(lines)} lines of held_out.jsonl")


@case("train goes on, disk full at best/", mounts=True)
def _(desk: Desk) -> None:
    mount(RUN / "best", 1)
    arm = at("LoRA", 1, lambda: fill(RUN / "best"))
    answer = desk.train(arm, (None, None, None), "--best-by", "jpeg_compressibility")
    desk.ended(answer, 0, "best/ failed")
    desk.is_whole()


@case("train goes on, disk full at the tracker", mounts=True)
def _(desk: Desk) -> None:
    mount(RUN / "afterflow", 1)
    arm = at("update", 2, lambda: fill(RUN / "afterflow"))
    desk.ended(desk.train(arm, (None, None, None), "--tracker", "tensorboard"), 0)
    desk.is_whole()


@case("train goes on, disk full at the cache", mounts=True)
def _(desk: Desk) -> None:
    mount(Path("cache"), 1)
    fill(Path("cache"))
    desk.ended(desk.train(AFTERFLOW_CACHE=str(Path("cache").resolve())), 0, "nothing is kept in the cache")
    desk.is_whole()


@case("train ends before it begins, on a full disk", mounts=True)
def _(desk: Desk) -> None:
    mount(Path("runs"), 8)
    fill(Path("runs"))
    desk.ended(desk.train(), 1, "cannot be written")
    (Path("runs") / "filler").unlink()
    desk.goes_on()


@case("sample ends, on a full disk", mounts=True)
def _(desk: Desk) -> None:
    mount(Path("out"), 1)
    fill(Path("out"))
    words = [str(desk.record.parents[2] / "pipeline") if word == "MODEL" else word for word in PIPED["sample"][0]]
    desk.ended(desk.run(*words, "--out", "out/grid.png"), 1, "out/grid.png cannot be written")


# What is deleted or replaced


def into_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("mine")


DELETED: dict[str, tuple[Callable[[], object], str]] = {
    "the folder of pictures is deleted": (lambda: shutil.rmtree(RUN / "samples"), ""),
    "the folder of pictures becomes a file": (lambda: into_file(RUN / "samples"), "sample pictures failed"),
    "metrics.jsonl is deleted": (lambda: (RUN / "metrics.jsonl").unlink(), "metrics.jsonl is gone and is made anew"),
    "run.json is deleted": (lambda: (RUN / "run.json").unlink(), "run.json is gone and is written again"),
    "the checkpoints are deleted": (lambda: shutil.rmtree(RUN / "checkpoints"), ""),
    "the run's folder is deleted": (lambda: shutil.rmtree(RUN), "metrics.jsonl is gone and is made anew"),
    "the run's folder is moved": (lambda: RUN.rename("runs/moved"), "metrics.jsonl is gone and is made anew"),
    "the lock is deleted": (lambda: (RUN / LOCK).unlink(), ""),
}
for what, (act, sentence) in DELETED.items():

    @case(f"train goes on, {what}")
    def _(desk: Desk, act=act, sentence=sentence) -> None:
        desk.ended(desk.train(at("update", 3, act)), 0, sentence)
        desk.is_whole()


# Trackers


class Broken(BaseException):
    """What a tracker raises that expects nobody to stop it."""


for moment in ("start", "log", "finish"):
    for error in (RuntimeError("no network"), SystemExit(3), Broken("broken"), BrokenPipeError(32, "Broken pipe")):

        @case(f"train goes on, a tracker raises {type(error).__name__} at its {moment}")
        def _(desk: Desk, moment=moment, error=error) -> None:
            from accelerate.tracking import TensorBoardTracker

            def fail(*args: Any, **options: Any) -> None:
                raise error

            arm = lambda: setattr(TensorBoardTracker, moment, fail)
            answer = desk.train(arm, (None, None, None), "--tracker", "tensorboard")
            what = {"start": "start of", "log": "curves of", "finish": "end of"}[moment]
            desk.ended(answer, 0, f"{what} tensorboard failed")
            desk.check(f"not there: {what} tensorboard" in answer.out, "no summary")
            desk.is_whole()


@case("train saves the checkpoint before the tracker, the progress line and pictures")
def _(desk: Desk) -> None:
    from accelerate.tracking import TensorBoardTracker

    arm = lambda: setattr(TensorBoardTracker, "log", lambda *args, **options: send(KILL)())
    desk.ended(desk.train(arm, (None, None, None), "--tracker", "tensorboard"), -9)
    desk.check((RUN / "checkpoints" / "step_000000").is_dir(), "the checkpoint did not come first")


# Clocks

for what, jump in {"back": -3600.0, "forward": 3600.0}.items():

    @case(f"train goes on, the wall clock is set {what} an hour")
    def _(desk: Desk, jump=jump) -> None:
        real = time.time
        change = lambda: setattr(time, "time", lambda: real() + jump)
        answer = desk.train(at("update", 2, change), (None, None, None), "--budget-seconds", "600")
        desk.ended(answer, 0)
        desk.is_whole()
        trained = json.loads((RUN / "metrics.jsonl").read_text().splitlines()[-1])["seconds_trained"]
        desk.check(0 < trained < 60, f"{trained} s trained")

    @case(f"status tells of a run, the wall clock is set {what} an hour")
    def _(desk: Desk, jump=jump) -> None:
        finished_run(desk)
        real = time.time
        answer = desk.run("status", str(RUN), arm=lambda: setattr(time, "time", lambda: real() + jump))
        desk.ended(answer, 0, "iteration 4 of 4 (100%), ended")


# The environment

for what, environment in {
    "HOME is missing": {"HOME": "/nowhere/at/all", "AFTERFLOW_CACHE": None, "HF_HOME": "/nowhere/hub"},
    "HOME is not set": {"HOME": None},
    "the locale is C": {"LC_ALL": "C", "LANG": "C"},
    "TMPDIR is missing": {"TMPDIR": "/nowhere"},
}.items():

    @case(f"train goes on, {what}")
    def _(desk: Desk, environment=environment) -> None:
        desk.ended(desk.train(**environment), 0)
        desk.is_whole()


@case("train goes on, HOME is read-only", mounts=True)
def _(desk: Desk) -> None:
    mount(Path("home"), 1)
    remount(Path("home"), "ro")
    answer = desk.train(HOME=str(Path("home").resolve()), AFTERFLOW_CACHE=None)
    desk.ended(answer, 0, "nothing is kept in the cache")
    desk.is_whole()


@case("train goes on, stdout takes Latin letters alone")
def _(desk: Desk) -> None:
    import io

    def arm() -> None:
        sys.stdout = io.TextIOWrapper(open(1, "wb"), "latin-1")  # noqa: SIM115
        at("update", 2, lambda: print("三つの星"))()

    desk.ended(desk.train(arm), 0)
    desk.is_whole()


# Two at once


def second(
    desk: Desk, first: list[str], words: list[str], code: int = 2, sentence: str = "is in use by process"
) -> None:
    """Start a command while another holds the folder; it must be refused in good time, and the first one go on."""
    began = time.monotonic()
    child = desk.start(first, at("update", 1, lambda: time.sleep(2.5)))
    while not (RUN / LOCK).is_file() or f'"pid": {child},' not in (RUN / LOCK).read_text():
        time.sleep(0.02)
    other = desk.run(*words)
    desk.ended(other, code, sentence)
    desk.check(other.seconds < 2, f"refused after {other.seconds:.1f} s")
    desk.ended(desk.end(child, began), 0)
    desk.is_whole()


@case("two starts at once")
def _(desk: Desk) -> None:
    words = ["train", "--from", str(desk.record)]
    second(desk, words, words)


@case("two resumes at once")
def _(desk: Desk) -> None:
    desk.train(at("update", 2, send(INT)))
    words = ["train", "--resume", str(RUN)]
    second(desk, words, words)


@case("a start while a run is resumed")
def _(desk: Desk) -> None:
    desk.train(at("update", 2, send(INT)))
    second(desk, ["train", "--resume", str(RUN)], ["train", "--from", str(desk.record)])


@case("a chain whose run is trained by another process")
def _(desk: Desk) -> None:
    second(desk, ["train", "--from", str(desk.record)], ["train", "short_chain"])


for number in (HUP, TERM):

    @case(f"a chain ends, {number.name} to it alone, and its run is saved")
    def _(desk: Desk, number=number) -> None:
        began = time.monotonic()
        child = desk.start(["train", "short_chain"])
        while not (RUN / "metrics.jsonl").is_file() or not (RUN / "metrics.jsonl").read_text():
            time.sleep(0.005)
        os.kill(child, number)
        desk.ended(desk.end(child, began), 1, f"{number.name}; iteration")
        desk.goes_on()


@case("a chain goes on, SIGHUP to it and its run under nohup")
def _(desk: Desk) -> None:
    began = time.monotonic()
    child = desk.start(["train", "short_chain"], lambda: signal.signal(HUP, signal.SIG_IGN))
    while not (RUN / "metrics.jsonl").is_file() or not (RUN / "metrics.jsonl").read_text():
        time.sleep(0.005)
    os.killpg(child, HUP)
    desk.ended(desk.end(child, began), 0)
    desk.is_whole()


@case("a chain of two processes ends, SIGHUP to all, and its run is saved")
def _(desk: Desk) -> None:
    pair(desk, None, os.killpg, 1, "SIGHUP; iteration")
    desk.ended(desk.run("train", "short_pair"), 0)


@case("a chain of two processes ends, SIGHUP to it alone, and its run is saved")
def _(desk: Desk) -> None:
    pair(desk, None, os.kill, 1, "SIGHUP; iteration")
    desk.ended(desk.run("train", "short_pair"), 0)


@case("a chain of two processes goes on, SIGHUP to all under nohup")
def _(desk: Desk) -> None:
    pair(desk, lambda: signal.signal(HUP, signal.SIG_IGN), os.killpg, 0, "")


def pair(desk: Desk, arm: Any, kill: Callable[[int, int], None], code: int, sentence: str) -> None:
    """Train by torchrun in a chain, and send SIGHUP to it or, as a terminal does, to all."""
    began = time.monotonic()
    child = desk.start(["train", "short_pair"], arm)
    while not (RUN / "metrics.jsonl").is_file() or not (RUN / "metrics.jsonl").read_text():
        time.sleep(0.005)
    kill(child, HUP)
    answer = desk.end(child, began)
    desk.wrong = []  # torchrun tells a signal in a traceback of its own
    desk.check(answer.code == code and sentence in answer.text, f"code {answer.code}: {answer.text[-3000:]}")


@case("two evals into one folder at once")
def _(desk: Desk) -> None:
    words = [str(desk.record.parents[2] / "pipeline") if word == "MODEL" else word for word in PIPED["eval"][0]]
    began = time.monotonic()
    child = desk.start(words, at("drawing", 1, lambda: time.sleep(3)))
    while not Path(f"drawn/tuned/{LOCK}").is_file():
        time.sleep(0.02)
    desk.ended(desk.run(*words), 2, "is in use by process")
    desk.ended(desk.end(child, began), 0)


def in_own_process(name: str, desk: Desk) -> None:
    """Carry out a case in a process with its own folder, whose faults end with it."""
    do, mounts = CASES[name]
    if mounts:
        own_mounts()
    try:
        do(desk)
    except Exception as error:
        desk.wrong.append(f"{type(error).__name__}: {error}")
    Path("wrong.json").write_text(json.dumps(desk.wrong))


def outcome(name: str, record: Path, expected: str | None) -> list[str]:
    """Return what was wrong in a case."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AFTERFLOW_CACHE"] = str(record.parents[2] / "cache")
        child = os.fork()
        if not child:
            os.chdir(folder)
            try:
                in_own_process(name, Desk(record, expected))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        file = Path(folder, "wrong.json")
        return json.loads(file.read_text()) if file.is_file() else ["the case itself failed"]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of names of cases")
    options = parser.parse_args()
    from tinies import built

    target = options.json if options.json == "-" else str(Path(options.json).resolve())
    with tempfile.TemporaryDirectory() as home:
        os.chdir(home)
        os.environ["AFTERFLOW_CACHE"] = f"{home}/cache"
        run = small_run(built("sd3", Path(home, "pipeline")).path)
        from afterflow.experiment.stages import Chain

        RECIPES["short"] = lambda: run
        RECIPES["short_chain"] = lambda: Chain("short_chain", (run,))
        RECIPES["short_pair"] = lambda: Chain("short_pair", (run,), processes=2)
        shipped = recipes.made_by  # which knows those alone that are written down
        recipes.made_by = lambda name: RECIPES[name]() if name.startswith("short") else shipped(name)
        child = os.fork()  # so that this process has no threads of its own
        if not child:
            try:
                execute(replace(run), "short")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        expected, record = lora_digest(), (RUN / "run.json").resolve()
        assert expected is not None and set(MOMENTS) <= set(POINTS)
        wrong: dict[str, list[str]] = {}
        names = [name for name in CASES if any(part in name for part in options.only)]
        began = time.monotonic()
        for name in names:
            complaints = outcome(name, record, expected)
            print("FAILED" if complaints else "ok", name, *complaints, flush=True)
            if complaints:
                wrong[name] = complaints
        os.chdir("/")
    result = {"faults": len(names), "as_designed": len(names) - len(wrong), "wrong": wrong, "cases": names}
    seconds = {"seconds": round(time.monotonic() - began)}
    write_json(result | seconds | provenance("python bench/attack_terminal.py"), target, indent=1, show=False)
    print(f"{len(names) - len(wrong)} of {len(names)} as designed, {seconds['seconds']} s")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
