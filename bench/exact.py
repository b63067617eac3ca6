"""The first iterations of a recipe, twice in processes of their own: are metrics and weights the same to the last bit?

    python bench/exact.py --json bench/results/exact.json shapes_flow_grpo ...

Times and memory are left out.  Of a chain its first run is repeated, which needs nothing of the others.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from safetensors.torch import load_file

from afterflow.experiment.provenance import git_commit, hardware

CLOCKS = ("seconds", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--json", default="-", help="file, or - for standard output; what it holds of others stays")
    options = parser.parse_args()
    file = None if options.json == "-" else Path(options.json)
    found = json.loads(file.read_text())["recipes"] if file is not None and file.is_file() else {}
    told = {"date": date.today().isoformat(), "git_commit": git_commit(), "hardware": hardware()}
    for name in options.recipes:
        first, second = run(name, options.iterations), run(name, options.iterations)
        found[name] = {"iterations": options.iterations, "equal": first == second, **told}
        print(name, found[name]["equal"], flush=True)
        if file is not None:
            command = "python bench/exact.py " + " ".join(found)
            file.write_text(json.dumps({"command": command, "recipes": found}, indent=1) + "\n")


def run(recipe: str, iterations: int) -> tuple[list[dict], dict[str, bytes]]:
    """Metrics of every iteration, and the tensors of the LoRA."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "afterflow", "train", recipe, "--name", "run", "--iterations", str(iterations)]
        command += ["--sample-every", "0"]
        subprocess.run(
            command, check=True, cwd=place, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": os.getcwd()}
        )
        folder = Path(place) / "runs" / "run"
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        kept = [{k: v for k, v in line.items() if not any(clock in k for clock in CLOCKS)} for line in lines]
        tensors = load_file(folder / "lora" / "pytorch_lora_weights.safetensors")
        return kept, {name: x.numpy().tobytes() for name, x in tensors.items()}


if __name__ == "__main__":
    main()
