"""A desk for bench/attack_terminal.py: commands in forked processes, with faults armed in them, and what they leave.

A process that has imported torch once is forked for each command, which takes the place of `python -m afterflow`.
"""

import ctypes
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from afterflow.cli.demo import demo_command
from afterflow.cli.main import guarded, main
from afterflow.train.checkpoint import find_damage, list_checkpoints

ITERATIONS = 4
RUN = Path("runs/short")
NEW_MOUNTS = 0x00020000
"""CLONE_NEWNS: a process's own view of what is mounted."""
POINTS = {
    "rollout": ("afterflow.train.explore", "sample"),
    "update": ("afterflow.train.loop.Trainer", "_descend"),
    "examining": ("afterflow.experiment.doctor", "gradients"),
    "evaluation": ("afterflow.experiment.held_out_evaluation.HeldOutEvaluator", "measure"),
    "checkpoint": ("afterflow.train.checkpoint", "save_file"),
    "LoRA": ("afterflow.models.lora.files", "save_file"),
    "picture": ("afterflow.experiment.monitor", "save_groups"),
    "metrics": ("afterflow.experiment.metrics_file.MetricsFile", "write"),
    "card": ("afterflow.experiment.execute", "write_card"),
    "result": ("afterflow.experiment.execute", "save_result"),
    "load": ("afterflow.experiment.execute", "run_contents"),
    "drawing": ("afterflow.evaluation.image_store", "add_images"),
    "sampling": ("afterflow.models.generate", "draw_latents"),
    "merging": ("afterflow.models.lora.merge", "weighted_sum"),
    "exporting": ("afterflow.models.lora.files", "to_kohya"),
    "growing": ("afterflow.evaluation.tree_plot", "sample"),
    "judging": ("afterflow.evaluation.comparison", "suite_pictures"),
    "judging base and result": ("afterflow.cli.demo_run", "judge_run"),
    "uploading": ("huggingface_hub.HfApi", "upload_folder"),
}
"""A moment of a command → the function that is called then."""


@dataclass(frozen=True)
class Answer:
    """What a command did."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def text(self) -> str:
        return self.out + self.err


def at(point: str, call: int, act: Callable[[], object], after: bool = False) -> Callable[[], None]:
    """Return what arms a process so that something happens at a call of a point, before or after it."""

    def arm() -> None:
        path, name = POINTS[point]
        try:
            owner: Any = import_module(path)
        except ModuleNotFoundError:
            module, _, kind = path.rpartition(".")
            owner = getattr(import_module(module), kind)
        original, calls = getattr(owner, name), []

        def acting(*args: Any, **options: Any) -> Any:
            calls.append(1)
            due = len(calls) == call
            if due and not after:
                act()
            result = original(*args, **options)
            if due and after:
                act()
            return result

        setattr(owner, name, acting)

    return arm


def send(number: int, times: int = 1) -> Callable[[], None]:
    """Return what sends this process a signal, so often."""

    def act() -> None:
        for _ in range(times):
            os.kill(os.getpid(), number)
            time.sleep(0.02)

    return act


@dataclass
class Desk:
    """A folder of its own, in which commands run one after another or at once."""

    record: Path
    """The record of the run that is trained."""
    expected: str | None = None
    """Digest of the LoRA of a run that nobody disturbs."""
    wrong: list[str] = field(default_factory=list)
    """What was not as it should be."""

    def start(
        self,
        words: Sequence[str],
        arm: Callable[[], object] | None = None,
        files: tuple[Any, Any, Any] = (None, None, None),
        **variables: str | None,
    ) -> int:
        """Fork a command and return its process; `files` are stdin, stdout and stderr: numbers, or closed."""
        child = os.fork()
        if child:
            return child
        code = 99
        try:
            os.setpgid(0, 0)
            # As in a terminal, however this benchmark was started.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            for name, value in variables.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            standard_files(files)
            if arm is not None:
                arm()
            code = guarded(demo_command, prints_result=False) if list(words) == ["demo"] else main(list(words))
            try:
                for stream in (sys.stdout, sys.stderr):
                    if stream is not None:
                        stream.flush()
            except OSError:
                code = 120  # as Python ends then
        except BaseException:
            os.write(os.open("traceback.txt", os.O_WRONLY | os.O_CREAT), traceback.format_exc().encode())
        finally:
            os._exit(code)

    def end(
        self, child: int, began: float, timeout: float = 90, each: Callable[[], object] = lambda: time.sleep(0.01)
    ) -> Answer:
        """Wait for a command, doing something meanwhile, and return what it did."""
        while time.monotonic() - began < timeout:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            each()
        else:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            self.wrong.append(f"no end within {timeout:g} s")
        texts = [Path(f"{name}.{child}") for name in ("out", "err")]
        out, err = (file.read_text(errors="replace") if file.is_file() else "" for file in texts)
        if Path("traceback.txt").is_file():
            err += Path("traceback.txt").read_text()
        if "Traceback" in out + err:
            self.wrong.append("a traceback: " + (out + err).strip().splitlines()[-1])
        return Answer(os.waitstatus_to_exitcode(status), out, err, time.monotonic() - began)

    def run(self, *words: str, arm: Any = None, files: Any = (None, None, None), **variables: str | None) -> Answer:
        """Carry out a command to its end."""
        began = time.monotonic()
        return self.end(self.start(words, arm, files, **variables), began)

    def train(self, arm: Any = None, files: Any = (None, None, None), *options: str, **variables: str | None) -> Answer:
        """Train the run from its record."""
        return self.run("train", "--from", str(self.record), *options, arm=arm, files=files, **variables)

    def check(self, holds: object, what: str) -> None:
        """Note what does not hold."""
        if not holds:
            self.wrong.append(what)

    def ended(self, answer: Answer, code: int, sentence: str = "") -> None:
        """Check the exit code, and that a sentence was said exactly once."""
        times = answer.text.count(sentence) if sentence else 1
        last = answer.text.strip().splitlines()[-1:] or ["no word"]
        self.check(answer.code == code, f"code {answer.code} instead of {code}: {last[0][:300]}")
        self.check(times == 1, f"{sentence!r} is said {times} times: {last[0][:300]}")

    def is_whole(self) -> None:
        """Check that the run is there as if nobody had disturbed it: metrics of every iteration, and equal bytes."""
        lines = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
        steps = [line["step"] for line in lines]
        self.check(steps == list(range(ITERATIONS)), f"metrics of the iterations {steps}")
        self.check(lora_digest() == self.expected, "the LoRA is another one")

    def goes_on(self) -> None:
        """Check that no checkpoint is damaged, and that the run goes on to what it would have been."""
        saved = list_checkpoints(RUN / "checkpoints")
        self.check(all(find_damage(folder) is None for folder in saved), "a checkpoint is damaged")
        words = ("--resume", str(RUN)) if saved else ("--from", str(self.record))
        answer = self.run("train", *words)
        self.ended(answer, 0)
        if answer.code == 0:
            self.is_whole()


def standard_files(files: Sequence[Any]) -> None:
    """Give this process its stdin, stdout and stderr, as Python does at its start."""
    names = (os.devnull, f"out.{os.getpid()}", f"err.{os.getpid()}")
    for number, (given, name) in enumerate(zip(files, names)):
        if given == "closed":
            os.close(number)
        elif given is None:
            opened = os.open(name, os.O_RDWR | os.O_CREAT)
            os.dup2(opened, number)
            os.close(opened)
        else:
            os.dup2(given, number)
    wrap = lambda number: io.TextIOWrapper(open(number, "wb"), "utf-8", line_buffering=os.isatty(number))  # noqa: SIM115
    sys.stdout, sys.stderr = (None if files[n] == "closed" else wrap(n) for n in (1, 2))  # type: ignore[assignment]


def lora_digest() -> str | None:
    """Return a digest of the run's LoRA, None where there is none."""
    file = RUN / "lora" / "pytorch_lora_weights.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def own_mounts() -> None:
    """Give this process its own view of what is mounted.  OSError where the system does not let it."""
    if ctypes.CDLL(None, use_errno=True).unshare(NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "no mounts of its own")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def mount(folder: Path, megabytes: int = 64) -> None:
    """Mount a small disk on a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)


def remount(folder: Path, how: str) -> None:
    """Let a mounted disk be written, `rw`, or only read, `ro`, whatever is open on it."""
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Fill a disk to its last byte."""
    with (folder / "filler").open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while file.write(b"x" * size) == size:
                    pass
            except OSError:
                continue


CASES: dict[str, tuple[Callable[[Desk], None], bool]] = {}
"""Name of a case → what it does, and whether it mounts disks."""
HUP, TERM, INT, KILL = signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGKILL
CHANGED = "its lines are lost, and the work goes on"


def case(name: str, mounts: bool = False) -> Callable[[Callable[[Desk], None]], Callable[[Desk], None]]:
    """Add a function to the cases, by a name of its own."""

    def add(do: Callable[[Desk], None]) -> Callable[[Desk], None]:
        assert name not in CASES, name
        CASES[name] = do, mounts
        return do

    return add


def refuses(code: int) -> Callable[..., Any]:
    """Return a function that fails as a disk does."""

    def refuse(*args: Any, **options: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return refuse


def closed_reader() -> int:
    """Return a pipe whose reader has gone."""
    read, write = os.pipe()
    os.close(read)
    return write
