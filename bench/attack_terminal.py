"""Faults of a terminal and a desk, one in each case: does the command end as designed, and is nothing lost?

    python bench/attack_terminal.py --json bench/results/attack_terminal.json

Flow-GRPO trains a tiny pipeline with random weights for four iterations.  Full and read-only disks are small disks
that are mounted for the case alone (Linux, root).  A case that says "goes on" must leave the same bytes of the LoRA and
the same iterations in metrics.jsonl as a run that nobody disturbed.  A case that says "ends" must end with its exit
code and one sentence, without a traceback, and go on with --resume to the same bytes.
"""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import terminal_commands  # noqa: F401  which adds its cases
import terminal_disks  # noqa: F401
from desk import (
    CASES,
    HUP,
    INT,
    ITERATIONS,
    POINTS,
    RUN,
    TERM,
    Desk,
    at,
    case,
    lora_digest,
    mount,
    own_mounts,
    remount,
    send,
)
from harness import make_parser, provenance, write_json
from terminal_commands import TREE
from terminal_signals import MOMENTS
from terminal_streams import finished_run, piped_words

from afterflow.algorithms.branch_grpo import BranchGRPO
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.cli import recipes
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.models.adapters import LoRA
from afterflow.models.sd3 import SD3
from afterflow.recipes import RECIPES
from afterflow.system.folder_lock import LOCK

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))


def small_run(pipeline: str) -> Run:
    algorithm = FlowGRPO({"jpeg_compressibility": 1.0}, steps=3, group=2, window=2, beta=0.01)
    model, data = SD3(pipeline, max_sequence_length=0), ShapesPrompts(count=2)
    options = {"batch": 2, "chunk": 8, "learning_rate": 1e-3, "inference_steps": 1, "sample_every": 1, "save_every": 1}
    held_out = {"held_out": ShapesPrompts("test", count=2), "eval_every": 1, "eval_images": 1}
    made = Run(algorithm, data, model, LoRA(rank=4, alpha=8), name="short")
    return made.with_options(iterations=ITERATIONS, **options, **held_out)


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
    words = piped_words(desk, "eval")
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
                tree = BranchGRPO({"jpeg_compressibility": 1.0}, steps=4, splits=(0, 1), path_weight=0.0)
                execute(replace(run, algorithm=tree).with_options(name=TREE.name, iterations=1), "short_tree")
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
