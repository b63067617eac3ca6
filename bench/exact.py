"""The first iterations of a recipe, twice in processes of their own: are metrics and weights the same to the last bit?

    python bench/exact.py --json bench/results/exact.json shapes_flow_grpo ...

Times and memory are left out.  Of a chain its first run is repeated, which needs nothing of the others.
"""

import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from harness import make_parser, provenance, read_json, write_json
from safetensors.torch import load_file

CLOCKS = ("seconds", "memory")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--iterations", type=int, default=2)
    options = parser.parse_args()
    results = read_json(options.json).get("recipes", {})
    for name in options.recipes:
        first, second = run(name, options.iterations), run(name, options.iterations)
        made = provenance()
        results[name] = {"iterations": options.iterations, "equal": first == second, "date": date.today().isoformat()}
        results[name] |= {key: made[key] for key in ("git_commit", "hardware")}
        print(name, results[name]["equal"], flush=True)
        write_json(
            {"command": "python bench/exact.py " + " ".join(results), "recipes": results},
            options.json,
            indent=1,
            show=False,
        )


def run(recipe: str, iterations: int) -> tuple[list[dict], dict[str, bytes]]:
    """Metrics of every iteration, and the tensors of the LoRA."""
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "afterflow", "train", recipe, "--name", "run", "--iterations", str(iterations)]
        command += ["--sample-every", "0"]
        subprocess.run(
            command, check=True, cwd=home, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": os.getcwd()}
        )
        folder = Path(home) / "runs" / "run"
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        metrics = [{k: v for k, v in line.items() if not any(clock in k for clock in CLOCKS)} for line in lines]
        tensors = load_file(folder / "lora" / "pytorch_lora_weights.safetensors")
        return metrics, {name: x.numpy().tobytes() for name, x in tensors.items()}


if __name__ == "__main__":
    main()
