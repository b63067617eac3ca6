"""Runs that are killed again and again: do they end where an undisturbed one ends, to the last bit?

    python bench/resume.py --json bench/results/resume.json

Each method trains the shipped pipeline for a few iterations, with a checkpoint after every one.  A process is killed
(SIGKILL) at a random moment, or the moment that a checkpoint is being written, then started again where it was, until
so many were killed; the last runs to its end.  Metrics, clocks aside, and the final weights are compared with those of
a run that nobody disturbed.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path
from subprocess import Popen

from harness import make_parser, provenance, read_json, write_json
from small import finished, metrics_of, run_of, start, tensors_of, work

METHODS = ("sft", "flow_grpo", "mix_grpo", "branch_grpo", "flow_opd")


def begun(method: str, iterations: int, folder: Path) -> Popen:
    return start(__file__, ["--work", method, "--iterations", str(iterations)], folder)


def measured(method: str, home: Path) -> tuple[list[dict], dict[str, dict[str, bytes]]]:
    """Metrics and the bytes of every tensor."""
    folder = home / "runs" / method
    in_bytes = lambda tensors: {key: x.numpy().tobytes() for key, x in tensors.items()}
    return metrics_of(folder), {name: in_bytes(tensors) for name, tensors in tensors_of(folder).items()}


def killed(method: str, iterations: int, folder: Path, kills: int, seconds: float, rng: random.Random) -> list[str]:
    """Kill the run so often, beginning it again in another folder when it ends first; the moments."""
    moments: list[str] = []
    while len(moments) < kills:
        process, began = begun(method, iterations, folder), time.monotonic()
        saving = folder / "runs" / method / "checkpoints"
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
    finished(begun(method, iterations, folder))
    return moments


def compared(method: str, iterations: int, kills: int, rng: random.Random) -> dict:
    with tempfile.TemporaryDirectory() as home:
        whole = Path(home) / "whole"
        whole.mkdir()
        began = time.monotonic()
        finished(begun(method, iterations, whole))
        seconds, expected = time.monotonic() - began, measured(method, whole)
        moments: list[str] = []
        equal = 0
        while len(moments) < kills:
            folder = Path(tempfile.mkdtemp(dir=home))
            of_run = killed(method, iterations, folder, kills - len(moments), seconds, rng)
            moments += of_run
            equal += len(of_run) if measured(method, folder) == expected else 0
    return {"kills": len(moments), "bit_equal": equal, "iterations": iterations, "moments": moments}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--work", choices=list(METHODS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(run_of(options.work, options.iterations))
    results = read_json(options.json)
    for method in options.methods:
        result = compared(method, options.iterations, options.kills, random.Random(method))
        print(method, result["kills"], result["bit_equal"], flush=True)
        results[method] = result | provenance("python bench/resume.py")
        write_json(results, options.json, indent=1, show=False)


if __name__ == "__main__":
    main()
