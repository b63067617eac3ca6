"""How often does the host wait for an accelerator?  Counted on a device that pretends, for every method and family.

    python bench/pretended_device.py --json bench/results/pretended_device.json

Each cell is two iterations of a tiny pipeline on tests/support/pretended_device.py, which computes on the CPU, refuses
what CUDA refuses, and notes what the host would wait for.  `step` and `loss` are the most waits that a line of
afterflow asks for in one step of a rollout and for one loss, and `network` those inside of diffusers' networks in
either.  `iteration` is the number of waits outside of steps and losses in one iteration.  `lines` adds up the cells,
phase by phase.  What is loaded, encoded, logged and saved around the iterations is not counted.
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path

from harness import make_parser, provenance, write_json

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from pretended_device import WAITS
from pretended_runs import start, trained
from small_runs import METHODS
from tinies import BUILDERS

FAMILIES = [name for name in BUILDERS if name != "deep_sd3"]


def cell(method: str, family: str) -> tuple[dict, Counter[str]]:
    """Return the counts of a method on a family, and how often the host waits for each line."""
    with tempfile.TemporaryDirectory() as folder:
        result = trained(method, family, folder)
    waits = {key: count for key, count in result["counts"] if key[0] != "around" and key[1] in WAITS}
    iterations = len(result["metrics"])
    outside = sum(count for key, count in waits.items() if key[0] == "iteration")
    counts = {**result["own"], "network": result["most_within"], "iteration": outside / iterations}
    return counts, Counter({", ".join(filter(None, key)): count for key, count in waits.items()})


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    options = parser.parse_args()
    start()
    cells: dict[str, dict] = {}
    lines: Counter[str] = Counter()
    for family in options.families:
        for method in options.methods:
            cells[f"{method}, {family}"], counted = cell(method, family)
            lines += counted
            print(f"{method}, {family}: {cells[f'{method}, {family}']}", file=sys.stderr, flush=True)
    most = {name: max(counts[name] for counts in cells.values()) for name in next(iter(cells.values()))}
    write_json({"most": most, "cells": cells, "lines": dict(lines.most_common())} | provenance(), options.json, 1)


if __name__ == "__main__":
    main()
