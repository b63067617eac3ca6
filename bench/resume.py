"""Runs that are killed again and again: do they end where an undisturbed one ends, to the last bit?

    python bench/resume.py --json bench/results/resume.json

Each method trains the shipped pipeline for a few iterations, with a checkpoint after every one.  A process is killed
(SIGKILL) at a random moment, or the moment that a checkpoint is being written, then started again where it was, until
so many were killed; the last runs to its end.  Metrics, clocks aside, and the final weights are compared with those of
a run that nobody disturbed.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file

from afterflow.algorithms.base import OnPolicy
from afterflow.algorithms.branch_grpo import BranchGRPO
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.flow_opd import FlowOPD
from afterflow.algorithms.mix_grpo import MixGRPO
from afterflow.algorithms.sft import SFT
from afterflow.algorithms.windows import SlidingWindow
from afterflow.data.images import ShapesImages
from afterflow.data.prompts import ShapesPrompts
from afterflow.models.sd3 import SD3
from afterflow.models.teacher import Teacher
from afterflow.models.tune import Full, LoRA
from afterflow.run import Run
from afterflow.session import execute
from afterflow.train.log import git_commit, hardware
from afterflow.train.state import checkpoints

WEIGHTS = {"shapes_partial": 1.0}
TAGS = ("counting", "colors")
METHODS: dict[str, SFT | OnPolicy] = {
    "sft": SFT(dropout=0.1),
    "flow_grpo": FlowGRPO(WEIGHTS, steps=4, group=4, beta=0.01),
    "mix_grpo": MixGRPO(WEIGHTS, steps=5, group=4, window=SlidingWindow(width=2, every=2, idle=1)),
    "branch_grpo": BranchGRPO(WEIGHTS, steps=4, splits=(0, 1)),
    "flow_opd": FlowOPD(steps=4, group=2),
}
CLOCKS = ("seconds",)


def run_of(method: str, iterations: int) -> Run:
    algorithm = METHODS[method]
    explores = isinstance(algorithm, OnPolicy)
    return Run(
        algorithm,  # type: ignore[arg-type]
        ShapesPrompts(count=40, tags=TAGS) if explores else ShapesImages(count=64, tags=TAGS),
        SD3("tiny"),
        LoRA(rank=4, alpha=8) if explores else Full(),
        teachers=(Teacher("guided", None, TAGS, guidance_scale=2.5),) if method == "flow_opd" else (),
        name=method,
        iterations=iterations,
        batch=4,
        updates=2 if explores and method != "flow_opd" else 1,
        chunk=8,
        learning_rate=1e-3,
        held_out=ShapesPrompts("test", count=4, tags=TAGS),
        eval_every=2,
        eval_rewards=("shapes_fidelity",),
        inference_steps=4,
        sample_every=2,
        save_every=1,
        threads=1,
    )


def work(method: str, iterations: int) -> None:
    """Start the run, or go on with it."""
    run = run_of(method, iterations)
    execute(run, method, resume=bool(checkpoints(run.folder / "checkpoints")))


def start(method: str, iterations: int, place: Path) -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__).resolve()), "--work", method, "--iterations", str(iterations)]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=place, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finished(process: subprocess.Popen) -> None:
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run failed: {said.decode()[-2000:]}")


def measured(method: str, place: Path) -> tuple[list[dict], dict[str, dict[str, bytes]]]:
    """Metrics without clocks, and the tensors of what the run left; safetensors writes its header in any order."""
    folder = place / "runs" / method
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in line.items() if not name.startswith(CLOCKS)} for line in lines]
    left = [file for result in ("lora", "model", "best") for file in (folder / result).rglob("*.safetensors")]
    tensors = {str(file.relative_to(folder)): load_file(file) for file in sorted(left)}
    assert tensors
    return kept, {name: {key: x.numpy().tobytes() for key, x in of.items()} for name, of in tensors.items()}


def killed(method: str, iterations: int, place: Path, kills: int, seconds: float, rng: random.Random) -> list[str]:
    """Kill the run so often, beginning it again in another folder when it ends first; the moments."""
    moments: list[str] = []
    while len(moments) < kills:
        process, began = start(method, iterations, place), time.monotonic()
        saving = place / "runs" / method / "checkpoints"
        at_checkpoint, moment = rng.random() < 0.4, rng.uniform(0.3, 1.1) * seconds
        seen = set(saving.glob("*")) if saving.is_dir() else set()
        while process.poll() is None:
            writing = at_checkpoint and any(saving.glob("*.partial")) and set(saving.glob("*.partial")) - seen
            if writing or time.monotonic() - began > moment:
                process.kill()
                moments.append(
                    "while a checkpoint was written" if writing else f"after {time.monotonic() - began:.1f} s"
                )
                break
            time.sleep(0.0005 if at_checkpoint else 0.02)
        if process.wait() not in (0, -9):
            finished(process)
        if process.returncode == 0:
            return moments
    finished(start(method, iterations, place))
    return moments


def compared(method: str, iterations: int, kills: int, rng: random.Random) -> dict:
    with tempfile.TemporaryDirectory() as home:
        whole = Path(home) / "whole"
        whole.mkdir()
        began = time.monotonic()
        finished(start(method, iterations, whole))
        seconds, expected = time.monotonic() - began, measured(method, whole)
        moments: list[str] = []
        equal = 0
        while len(moments) < kills:
            place = Path(tempfile.mkdtemp(dir=home))
            of_run = killed(method, iterations, place, kills - len(moments), seconds, rng)
            moments += of_run
            equal += len(of_run) if measured(method, place) == expected else 0
    return {"kills": len(moments), "bit_equal": equal, "iterations": iterations, "moments": moments}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--work", choices=list(METHODS), help=argparse.SUPPRESS)
    parser.add_argument("--json", default="-", help="file, or - for standard output; what it holds of others stays")
    options = parser.parse_args()
    if options.work:
        return work(options.work, options.iterations)
    file = None if options.json == "-" else Path(options.json)
    found = json.loads(file.read_text()) if file is not None and file.is_file() else {}
    for method in options.methods:
        told = {"git_commit": git_commit(), "hardware": hardware(), "command": "python bench/resume.py"}
        found[method] = compared(method, options.iterations, options.kills, random.Random(method)) | told
        print(method, found[method]["kills"], found[method]["bit_equal"], flush=True)
        if file is not None:
            file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
