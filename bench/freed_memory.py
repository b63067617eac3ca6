"""What a short training on a CPU takes where it keeps freed memory, over what it takes where glibc gives it back.

    python bench/freed_memory.py --json bench/results/freed_memory.json

Each recipe trains a few iterations in processes of their own, in turns: as it stands, and with a variable by which
glibc decides for itself.  Seconds are of the processor, of a whole command: other programs may share the machine.
"""

import os
import subprocess
import sys
import tempfile
from statistics import median

from harness import make_parser, provenance, write_json

RECIPES = ("demo", "shapes_sft", "editing_dgpo")
BY_ITSELF = {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}
"""A variable of the allocator that changes nothing, so that afterflow leaves the rest alone."""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=3)
    options = parser.parse_args()
    rounds: dict[str, list[dict[str, dict[str, float]]]] = {recipe: [] for recipe in RECIPES}
    for _ in range(options.rounds):
        for recipe in RECIPES:
            as_it_stands, by_itself = (measured(recipe, options.iterations, extra) for extra in ({}, BY_ITSELF))
            rounds[recipe].append({"as it stands": as_it_stands, "by itself": by_itself})
    recipes = {recipe: ratios(turns) | {"rounds": turns} for recipe, turns in rounds.items()}
    write_json(provenance() | {"iterations": options.iterations, "recipes": recipes}, options.json, indent=1)


def measured(recipe: str, iterations: int, variables: dict[str, str]) -> dict[str, float]:
    """Seconds of the processor, those of the system, pages, and the peak of memory of a short training."""
    command = [sys.executable, "-m", "afterflow", "train", recipe, "--name", "run", "--iterations", str(iterations)]
    command += ["--sample-every", "0", "--eval-every", "0"]
    with tempfile.TemporaryDirectory() as home:
        process = subprocess.Popen(
            command,
            cwd=home,
            env=os.environ | {"PYTHONPATH": os.getcwd()} | variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed with exit status {process.returncode}")
    return {
        "cpu": usage.ru_utime + usage.ru_stime,
        "system": usage.ru_stime,
        "pages": usage.ru_minflt,
        "peak_gib": usage.ru_maxrss / 2**20,
    }


def ratios(turns: list[dict[str, dict[str, float]]]) -> dict[str, float]:
    """Of every measure the median over the turns of what it is as afterflow stands over what it is otherwise."""
    return {
        name: round(median(turn["as it stands"][name] / turn["by itself"][name] for turn in turns), 3)
        for name in turns[0]["as it stands"]
    }


if __name__ == "__main__":
    main()
