"""A long run watched from outside: does its memory grow, does it keep files open, can its metrics always be read?

    python bench/soak.py --json bench/results/soak.json

Flow-GRPO trains the shipped pipeline for 2000 small iterations with evaluation, pictures and checkpoints on the way.
Growth is from the iterations after the first tenth, when every part of the run has been there, to those of the last
tenth: medians of resident memory, and the number of open files.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from harness import make_parser, provenance, write_json
from small import run_of, start, work

from afterflow.models.adapters import LoRA


def looked_at(pid: int, metrics: Path) -> tuple[int, int, int]:
    """Iteration, resident bytes and open files; every whole line of the metrics must be JSON."""
    text = metrics.read_text() if metrics.is_file() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return (lines[-1]["step"] if lines else -1), pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{pid}/fd"))


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    n = options.iterations
    if options.work:
        often = {"save_every": 50, "eval_every": 100, "sample_every": 200}
        return work(run_of("flow_grpo", n, batch=2, tune=LoRA(rank=2, alpha=4), **often))
    seen = []
    with tempfile.TemporaryDirectory() as home:
        process = start(__file__, ["--work", "--iterations", str(n)], Path(home))
        while process.poll() is None:
            try:
                seen.append(looked_at(process.pid, Path(home) / "runs" / "flow_grpo" / "metrics.jsonl"))
            except (FileNotFoundError, ProcessLookupError):  # it has just ended
                break
            time.sleep(1.0)
        assert process.wait() == 0, process.stderr.read().decode()[-2000:] if process.stderr else ""
    first = [(memory, files) for step, memory, files in seen if n // 10 <= step < n // 5]
    last = [(memory, files) for step, memory, files in seen if step >= n - n // 10]
    before, after = (median(memory for memory, _ in part) for part in (first, last))
    result = {
        "iterations": n,
        "resident_mb": [before / 2**20, after / 2**20],
        "growth": after / before - 1,
        "open_files": [median(files for _, files in part) for part in (first, last)],
        "most_open_files": [max(files for _, files in part) for part in (first, last)],
        "curve_mb": [[step, round(memory / 2**20, 1)] for step, memory, _ in seen[:: max(1, len(seen) // 100)]],
        **provenance("python bench/soak.py"),
    }
    print({name: value for name, value in result.items() if name != "curve_mb"})
    write_json(result, options.json, indent=1, show=False)


if __name__ == "__main__":
    sys.exit(main())
