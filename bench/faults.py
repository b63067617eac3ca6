"""200 faults, one in each run: does it end as designed, and is every checkpoint that was whole before it whole after?

    python bench/faults.py --json bench/results/faults.json

Flow-GRPO trains the shipped pipeline for a few small iterations, with a checkpoint after each.  At a random moment
something breaks.  As designed means: the run ends with the sentence that the fault should have (or goes on, where it
should), no checkpoint is lost, and what is resumed afterwards ends with the weights of a run that nobody disturbed, to
the last bit.  Silent is a fault after which the run ends as if nothing had been.
"""

import argparse
import errno
import json
import os
import random
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import torch
from fragile import BREAK
from harness import make_parser, provenance, write_json
from small import finished, run_of, start, tensors_of, work

from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.system.errors import TrainingStopped
from afterflow.system.messages import show_messages
from afterflow.train import checkpoint as state

ITERATIONS = 6
EACH = {"in one process": 17, "in two": 15}
"""Faults of each kind: 8 kinds in one process, 4 in two."""


def run(name: str, **options) -> Run:
    algorithm = FlowGRPO({"fragile:clean": 1.0}, steps=3, group=4, beta=0.0)
    plain = {"held_out": None, "eval_every": 0, "eval_rewards": (), "sample_every": 0, "batch": 2, "grad_partitions": 2}
    return replace(run_of("flow_grpo", ITERATIONS, **(plain | options)), algorithm=algorithm, name=name)


def ended(run: Run, resume: bool = False) -> str:
    """Carry out a run and return what it printed, with the sentence by which it ended, or `ended`."""
    output = StringIO()
    with redirect_stdout(output):
        try:
            execute(run, "faults", resume)
        except (TrainingStopped, ValueError) as error:
            return f"{output.getvalue()}\n{error}"
    return output.getvalue() + "\nended"


def breaking(how: str) -> Callable[[random.Random], AbstractContextManager]:
    """The reward breaks in some iteration, in each of which it is asked once."""

    @contextmanager
    def armed(rng: random.Random):
        BREAK.update(at=rng.randint(1, ITERATIONS), how=how, calls=0)
        try:
            yield lambda: BREAK["calls"] >= BREAK["at"]
        finally:
            BREAK.update(at=None, how=None)

    return armed


@contextmanager
def full_disk(rng: random.Random):
    calls, at, write = [], rng.randint(3, 3 * ITERATIONS), state.save_file

    def save_file(tensors, file):
        calls.append(file)
        if len(calls) == at:
            Path(file).write_bytes(b"the beginning of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(tensors, file)

    with patch.object(state, "save_file", save_file):
        yield lambda: len(calls) >= at


@contextmanager
def spoiled_loss(rng: random.Random):
    calls, at, loss = [], rng.randint(1, ITERATIONS), FlowGRPO.loss

    def nan(self, models, batch):
        calls.append(1)
        value, metrics = loss(self, models, batch)
        return (value * torch.nan if len(calls) >= at else value), metrics

    with patch.object(FlowGRPO, "loss", nan):
        yield lambda: len(calls) >= at


@contextmanager
def preempted(rng: random.Random):
    # Before training begins SIGTERM ends a process as it always does; it comes at a moment after the first checkpoint.
    timer, save = threading.Timer(rng.uniform(0.0, 2.0), os.kill, (os.getpid(), signal.SIGTERM)), state.save_checkpoint

    def saved(*args, **kwargs):
        if not timer.is_alive() and not timer.finished.is_set():
            timer.start()
        return save(*args, **kwargs)

    with patch("afterflow.experiment.setup.save_checkpoint", saved):
        yield timer.finished.is_set
    timer.cancel()


IN_ONE = {
    "reward down": (breaking("down"), r"step \d: 8 of 8 images have no fragile:clean; .*connection refused", {}),
    "reward all NaN": (breaking("nan"), r"step \d: 8 of 8 images have no .*it is not a finite number", {}),
    "reward answers too few": (breaking("few"), r"answered with shape \(7,\) for 8 images", {}),
    "reward out of memory": (breaking("memory"), r"have no fragile:clean; .*out of memory", {}),
    "disk full while saving": (full_disk, r"the checkpoint could not be written .*No space left", {}),
    "loss is NaN": (spoiled_loss, r"step \d: the loss is nan for", {}),
    "SIGTERM": (preempted, r"SIGTERM.*--resume", {}),
}


def checkpoints(run: Run) -> list[Path]:
    return state.list_checkpoints(run.folder / "checkpoints")


def weights(run: Run) -> dict:
    return {key: x for tensors in tensors_of(run.folder).values() for key, x in tensors.items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(x, other[key]) for key, x in one.items())


def once(kind: str, rng: random.Random, expected: dict) -> dict:
    """One fault in a run of this process."""
    arm, sentence, options = IN_ONE[kind]
    broken = run("broken", **options)
    while True:
        with arm(rng) as happened:
            output = ended(broken)
            hit = happened()
        if hit:
            break
        shutil.rmtree(broken.folder)  # it ended before its moment had come
    return judged(broken, output, sentence, expected)


def damaged(saved: list[Path]) -> int:
    """Count the checkpoints that are damaged."""
    return sum(state.find_damage(folder) is not None for folder in saved)


def judged(broken: Run, output: str, sentence: str, expected: dict) -> dict:
    """Return whether the run ended as it should, lost nothing, and resumes to the expected weights."""
    saved = checkpoints(broken)
    lost = damaged(saved)
    recovers = True
    if not output.endswith("ended"):
        again = ended(broken, resume=True) if saved else ended(broken)
        recovers = again.endswith("ended") and same(weights(broken), expected)
    designed = re.search(sentence, output) is not None and recovers
    silent = output.endswith("ended") and re.search(sentence, output) is None
    return {"as_designed": designed, "lost": lost, "silent": silent, "said": output.strip()[-200:]}


def one_nan(rng: random.Random, expected: dict) -> dict:
    """One image without a score is left out and counted; the run ends."""
    broken = run("broken", max_missing=0.3)
    with breaking("one nan")(rng):
        output = ended(broken)
    lines = [json.loads(line) for line in (broken.folder / "metrics.jsonl").read_text().splitlines()]
    counted = any("invalid/fragile:clean" in line for line in lines)
    noticed = "1 of 8 images have no fragile:clean" in output
    lost = damaged(checkpoints(broken))
    designed = noticed and counted and output.endswith("ended")
    return {"as_designed": designed, "lost": lost, "silent": not (noticed and counted), "said": output.strip()[-200:]}


def corrupted(rng: random.Random, expected: dict) -> dict:
    """A file of the newest checkpoint is cut, flipped or gone; the one before it is offered and taken."""
    broken = run("broken")
    with patch("afterflow.experiment.monitor.Budget.ends", lambda self, step: step >= 2):  # leaves it unfinished
        ended(broken)
    last, before = checkpoints(broken)[-1], checkpoints(broken)[-2]
    file = rng.choice(sorted(last.iterdir()))
    harm, content = rng.choice(["cut", "flipped", "gone"]), bytearray(file.read_bytes())
    if harm == "gone":
        file.unlink()
    elif harm == "cut":
        file.write_bytes(content[: rng.randrange(len(content))])
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
    output = ended(broken, resume=True)
    refused = f"{last} is damaged" in output and f"delete it to go on from {before.name}" in output
    state.delete_checkpoint(last)
    recovers = ended(broken, resume=True).endswith("ended") and same(weights(broken), expected)
    return {
        "as_designed": refused and recovers,
        "lost": int(state.find_damage(before) is not None) if before.is_dir() else 0,
        "silent": not refused,
        "said": f"{harm} {file.name}: {output.strip()[-160:]}",
    }


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def in_two(kind: str, rng: random.Random, expected: dict) -> dict:
    """A fault in one of two processes, which torchrun has started."""
    broken, rank = run("broken"), rng.randrange(2)
    variables = {}
    if kind in ("reward down in one of two", "reward answers too few in one of two"):
        how = "few" if "few" in kind else "down"
        variables["AFTERFLOW_FRAGILE"] = f"{rank} {rng.randint(1, ITERATIONS)} {how}"
    process = start(__file__, ["--work"], Path.cwd(), 2, **variables)
    metrics = broken.folder / "metrics.jsonl"
    if not variables:
        while not (metrics.is_file() and metrics.read_text()) and process.poll() is None:
            time.sleep(0.05)
        time.sleep(rng.uniform(0.0, 3.0))
        if kind == "rank killed" and process.poll() is None:
            os.kill(children(process.pid)[rank], signal.SIGKILL)
        elif process.poll() is None:
            for child in children(process.pid):
                os.kill(child, signal.SIGTERM)
                time.sleep(rng.uniform(0.0, 0.5))
    # A signal may come when all is trained, and its result is being written, or is there.
    trained_before = not variables and len(metrics.read_text().splitlines()) == ITERATIONS
    began = time.monotonic()
    out, err = process.communicate(timeout=300)
    output, seconds = out.decode() + err.decode(), time.monotonic() - began
    whole = process.returncode == 0
    sentence = {
        "rank killed": r"SIGKILL|Signal 9",
        "SIGTERM to two": r"SIGTERM.*--resume",
        "reward down in one of two": r"fragile:clean; .*connection refused",
        "reward answers too few in one of two": r"process [01]: .*answered with shape|answered with shape \(3,\) for 4",
    }[kind]
    lost = damaged(checkpoints(broken))
    if not whole:
        finished(start(__file__, ["--work"], Path.cwd(), 2))
    recovers = same(weights(broken), expected)
    noticed = re.search(sentence, output) is not None or (not variables and trained_before)
    return {
        "as_designed": noticed and recovers and seconds < 60,
        "lost": lost,
        "silent": whole and not trained_before,
        "said": f"{seconds:.0f} s: " + (re.search(rf".*({sentence}).*", output) or [output[-160:]])[0][:200],
    }


IN_TWO = ("rank killed", "SIGTERM to two", "reward down in one of two", "reward answers too few in one of two")


def table(results: dict[str, list[dict]]) -> str:
    lines = [f"{'fault':<36} {'injected':>8} {'as designed':>11} {'silent':>6} {'checkpoints lost':>16}"]
    for kind, rows in results.items():
        total = {name: sum(int(row[name]) for row in rows) for name in ("as_designed", "silent", "lost")}
        lines.append(f"{kind:<36} {len(rows):>8} {total['as_designed']:>11} {total['silent']:>6} {total['lost']:>16}")
    return "\n".join(lines)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--each", type=int, help="faults of each kind, instead of 17 in one process and 15 in two")
    parser.add_argument("--only", nargs="*", help="kinds of fault")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    show_messages()  # the sentences of runs are logged
    if options.work:
        return work(run("broken"))
    kinds: dict[str, Callable[[random.Random, dict], dict]] = {
        **{kind: lambda rng, expected, kind=kind: once(kind, rng, expected) for kind in IN_ONE},
        "one image without a score": one_nan,
        "checkpoint damaged": corrupted,
        **{kind: lambda rng, expected, kind=kind: in_two(kind, rng, expected) for kind in IN_TWO},
    }
    results: dict[str, list[dict]] = {}
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        os.environ["PYTHONPATH"] = str(Path(__file__).parent)
        ended(run("whole"))
        expected = weights(run("whole"))
        for kind in options.only or kinds:
            rng = random.Random(kind)
            times = options.each or EACH["in two" if kind in IN_TWO else "in one process"]
            results[kind] = []
            for n in range(times):
                folder = Path(scratch) / f"{len(results)}_{n}"
                folder.mkdir()
                os.chdir(folder)
                results[kind].append(kinds[kind](rng, expected))
            print(table({kind: results[kind]}).splitlines()[1], flush=True)
            for row in results[kind]:
                if not row["as_designed"]:
                    print("   ", row["said"], flush=True)
        os.chdir(home)
    print(table(results))
    summary = {"faults": results, "table": table(results).splitlines()} | provenance("python bench/faults.py")
    write_json(summary, options.json, indent=1, show=False)


if __name__ == "__main__":
    main()
