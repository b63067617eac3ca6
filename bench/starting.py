"""How long commands take to start: the seconds to their first line, and their CPU time beside that of importing torch.

    python bench/starting.py --json bench/results/starting.json

Every command is started in a process of its own, all in turns, and ratios are taken within a turn.  Commands that
would train or draw are ended at their first line.  `counted` plans a network whose counts are in the cache folder.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from harness import make_parser, provenance, write_json

PLAN = ("train", "shapes_flow_grpo", "--plan")
WHOLE = {
    "plan, first time": PLAN,
    "plan, counted": PLAN,
    "doctor --help": ("doctor", "--help"),
    "recipes": ("recipes",),
    "train": ("train",),
    "status": ("status",),
}
"""Name → words of a command that is waited for."""
BEGUN = {
    "train RECIPE": ("train", "shapes_flow_grpo"),
    "train RECIPE --help": ("train", "shapes_flow_grpo", "--help"),
    "doctor RECIPE": ("doctor", "shapes_flow_grpo"),
    "eval": ("eval", "tiny"),
    "sample": ("sample", "tiny", "a star"),
    "compare": ("compare", "shapes_sft", "shapes_soar"),
    "report": ("report", "runs/a"),
    "tree": ("tree", "runs/a", "a star"),
    "merge": ("merge", "a", "b", "--out", "c"),
    "export": ("export", "runs/a"),
    "push": ("push", "me/it", "runs/a"),
    "serve-rewards": ("serve-rewards", "jpeg_compressibility"),
}
"""Name → words of a command that is ended at its first line."""
IMPORTS = {"import torch": "import torch", "import diffusers, torch": "import diffusers, torch"}


def started(command: list[str], folder: Path, whole: bool) -> dict[str, float]:
    """Seconds until something is printed, and, of a command that is waited for, in all and of CPU."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    printed = process.stdout.readline()
    measured = {"first_line": time.perf_counter() - start} if printed else {}
    if not whole:
        process.send_signal(signal.SIGKILL)
    process.stdout.read()
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0
    if whole:
        measured |= {"seconds": time.perf_counter() - start, "cpu": usage.ru_utime + usage.ru_stime}
    return measured


def turn(folder: Path) -> dict[str, dict[str, float]]:
    """What every command takes, once."""
    afterflow = [sys.executable, "-m", "afterflow"]
    measured = {name: started([sys.executable, "-c", code], folder, True) for name, code in IMPORTS.items()}
    shutil.rmtree(folder / "cache", ignore_errors=True)
    for name, words in WHOLE.items():
        measured[name] = started([*afterflow, *words], folder, True)
    return measured | {name: started([*afterflow, *words], folder, False) for name, words in BEGUN.items()}


def medians(turns: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Of every command the medians over the turns, and of CPU time its ratios to both imports in the same turn."""
    result = {}
    for name, first in turns[0].items():
        result[name] = {key: round(median(each[name][key] for each in turns), 2) for key in first}
        for other in IMPORTS if "cpu" in first else ():
            ratio = median(each[name]["cpu"] / each[other]["cpu"] for each in turns)
            result[name][f"cpu / {other}"] = round(ratio, 2)
    return result


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"AFTERFLOW_CACHE": f"{folder}/cache", "OMP_NUM_THREADS": "1"}
        turns = [turn(Path(folder)) for _ in range(options.turns)]
    write_json(provenance() | {"turns": options.turns, "commands": medians(turns)}, options.json, indent=1)


if __name__ == "__main__":
    main()
