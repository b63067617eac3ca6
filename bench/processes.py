"""The same run in one process and in several: do they do the same?

    python bench/processes.py --json bench/results/processes.json

Each method trains the shipped pipeline for 20 iterations with the same global batch: in one process, in two (torchrun,
gloo), and Flow-GRPO in four too; Flow-GRPO and DDPO also in one pass.  All have as many gradient partitions, so that
sums are the same.  Then SFT and Flow-GRPO train all weights, in one process and sharded over two by FSDP2.  Results:
until which iteration all rewards, which come from the rollouts' pixels, are equal to the last bit, whether the final
weights are, and how far apart losses and gradient norms are at the most, relative to their size (a policy loss is 0 but
for rounding, so relative to 1).
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from harness import make_parser, provenance, read_json, write_json
from small import METHODS, finished, metrics_of, run_of, start, tensors_of, work

from afterflow.models.adapters import Full

LOSSES = ("policy_loss", "flow_matching", "base_loss", "correction_loss", "cost", "kl", "grad_norm")
SHARDED = {"sft": 1e-4, "flow_grpo": 1e-5}
"""Learning rates of all weights."""
SHARDS = ("full", "zero2")


def options_of(kind: str, method: str, partitions: int) -> dict:
    if kind == "partitions":
        return {"grad_partitions": partitions}
    if kind == "one pass":
        return {"grad_partitions": partitions, "updates": 1, "retained_rows": 100_000}
    # A gradient of one pass, so that one process sums in the order in which shards are summed.
    whole = {"tune": Full(), "chunk": 32, "updates": 1, "retained_rows": 0, "learning_rate": SHARDED[method]}
    return whole | ({"grad_partitions": partitions} if kind == "whole" else {"shard": kind})


def trained(kind: str, method: str, partitions: int, iterations: int, processes: int, home: str) -> tuple[Path, float]:
    """The folder of a run, and its seconds."""
    folder, began = Path(tempfile.mkdtemp(dir=home)), time.monotonic()
    arguments = ["--work", method, "--kind", kind, "--partitions", str(partitions), "--iterations", str(iterations)]
    finished(start(__file__, arguments, folder, processes))
    return folder / "runs" / method, time.monotonic() - began


def apart(one: Path, other: Path) -> dict:
    """How far two runs are from each other."""
    a, b = metrics_of(one), metrics_of(other)
    assert len(a) == len(b)
    judged = lambda line: {k: v for k, v in line.items() if k.startswith("reward")}
    size = lambda name, value: 1.0 if name == "policy_loss" else abs(value)
    gaps = {k: [abs(x[k] - y[k]) / size(k, x[k]) for x, y in zip(a, b) if x.get(k)] for k in LOSSES}
    same = [
        torch.equal(tensor, second[key])
        for first, second in zip(tensors_of(one).values(), tensors_of(other).values())
        for key, tensor in first.items()
    ]
    return {
        "rewards_equal_until": next((n for n, (x, y) in enumerate(zip(a, b)) if judged(x) != judged(y)), len(a)),
        "largest_gaps": {name: max(values) for name, values in gaps.items() if values},
        "weights_equal": all(same),
    }


def compared(method: str, iterations: int, kind: str, processes: int) -> dict:
    with tempfile.TemporaryDirectory() as home:
        alone, _ = trained("whole" if kind in SHARDS else kind, method, processes, iterations, 1, home)
        several, _ = trained(kind, method, processes, iterations, processes, home)
        return {"iterations": iterations} | apart(alone, several)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--work", choices=list(METHODS), help=argparse.SUPPRESS)
    parser.add_argument("--kind", default="partitions", help=argparse.SUPPRESS)
    parser.add_argument("--partitions", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="*", help="names of comparisons, as they are stored")
    options = parser.parse_args()
    if options.work:
        fields = options_of(options.kind, options.work, options.partitions)
        return work(run_of(options.work, options.iterations, save_every=1000, **fields))
    wanted = {f"{method}, 2 processes": (method, "partitions", 2) for method in METHODS}
    wanted["flow_grpo, 4 processes"] = ("flow_grpo", "partitions", 4)
    for method in ("flow_grpo", "ddpo"):
        wanted[f"{method}, one pass, 2 processes"] = (method, "one pass", 2)
    for method in SHARDED:
        wanted |= {f"{method}, all weights, 2 processes, {how}": (method, how, 2) for how in SHARDS}
    results = read_json(options.json)
    for name in options.only or wanted:
        method, kind, processes = wanted[name]
        result = compared(method, options.iterations, kind, processes)
        print(name, result, flush=True)
        results[name] = result | provenance("python bench/processes.py")
        write_json(results, options.json, indent=1, show=False)


if __name__ == "__main__":
    main()
