"""Disks that are full or read-only, files that are deleted meanwhile, and trackers that fail."""

import errno
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from desk import (
    ITERATIONS,
    KILL,
    RUN,
    Answer,
    Desk,
    at,
    case,
    fill,
    lora_digest,
    mount,
    refuses,
    remount,
    send,
)
from terminal_streams import piped_words

from afterflow.experiment.metrics_file import MetricsFile
from afterflow.system.folder_lock import LOCK

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))


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


def ends_on_a_full_disk(desk: Desk, arm: Callable[[], object], sentence: str) -> Answer:
    """Train until the small disk is full, make room, and go on."""
    mount(RUN, 8)
    answer = desk.train(arm)
    desk.ended(answer, 1, sentence)
    (RUN / "filler").unlink()
    desk.goes_on()
    return answer


@case("train ends, disk full at the checkpoint", mounts=True)
def _(desk: Desk) -> None:
    arm = at("checkpoint", 5, lambda: fill(RUN))
    answer = ends_on_a_full_disk(desk, arm, "the checkpoint could not be written")
    desk.check("step_000000 is whole" in answer.err and "--resume runs/short" in answer.err, answer.err)


@case("train ends, disk full between two iterations, at metrics and the checkpoint", mounts=True)
def _(desk: Desk) -> None:
    ends_on_a_full_disk(desk, at("update", 2, lambda: fill(RUN)), "the checkpoint could not be written")


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
    words = piped_words(desk, "sample")
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
