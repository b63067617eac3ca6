"""How often does the host wait for an accelerator?  Counted on a device that pretends, for every method and family.

    python bench/pretended_device.py --json bench/results/pretended_device.json

Each cell is two iterations of a tiny pipeline on tests/support/pretended_device.py, which computes on the CPU, refuses
what CUDA refuses, and notes what the host would wait for.  `step` and `loss` are the most waits that a line of
afterflow asks for in one step of a rollout and for one loss, and `network` those inside of diffusers' networks in
either.  `iteration` is the number of waits outside of steps and losses in one iteration.  `lines` has the waits of both
iterations.  What is loaded, encoded, logged and saved around them is not counted.
"""

import sys
import tempfile
from contextlib import chdir
from pathlib import Path

from harness import make_parser, provenance, read_json, write_json

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from pretended_device import WAITS
from pretended_runs import EDITORS, start, trained
from small_runs import METHODS
from tinies import BUILDERS

LEFT_OUT = [("pref_grpo", family) for family in EDITORS]
"""No judge without a network compares edits."""
FAMILIES = [name for name in BUILDERS if name != "deep_sd3"]


def cell(method: str, family: str) -> dict:
    """Return the counts of a method on a family, and how often the host waits for each line."""
    # `trained` changes into the folder; where it fails, others are measured after it.
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        result = trained(method, family, folder)
    waits = {key: count for key, count in result["counts"] if key[0] != "around" and key[1] in WAITS}
    outside = sum(count for key, count in waits.items() if key[0] == "iteration")
    counts = {**result["own"], "network": result["most_within"], "iteration": outside / len(result["metrics"])}
    return counts | {"lines": {", ".join(filter(None, key)): count for key, count in waits.items()}}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    options = parser.parse_args()
    start()
    cells = read_json(options.json).get("cells", {})
    for family in options.families:
        for method in options.methods:
            if (method, family) not in LEFT_OUT:
                cells[f"{method}, {family}"] = counts = cell(method, family)
                print(f"{method}, {family}: {counts}", file=sys.stderr, flush=True)
        most = {name: max(cell[name] for cell in cells.values()) for name in ("step", "loss", "network", "iteration")}
        write_json({"most": most, "cells": cells} | provenance(), options.json, 1, show=False)


if __name__ == "__main__":
    main()
