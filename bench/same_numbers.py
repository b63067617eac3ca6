"""Are the numbers those of version 0.1?  Every method trains the shipped pipeline for four iterations, seeded.

    python bench/same_numbers.py
    python bench/same_numbers.py --store FILE       # on one commit, then on another:
    python bench/same_numbers.py --against FILE

Metrics, held-out scores and every tensor that a run leaves are compared with bench/results/same_numbers_0_1.json, which
the code of version 0.1 wrote on one CPU thread of the machine named there.  Another kind of CPU rounds otherwise, so
there only numbers that --store wrote on an earlier commit are a fair comparison.  Since losses are means over all
steps, ddpo, dance_grpo, mix_grpo, branch_grpo and pref_grpo differ from 0.1 where groups are tied
(bench/results/mean_of_all_steps.json); sft, soar, flow_grpo with its KL and flow_opd do not.  The demo's summary is
compared too, where runs/demo has one.  Files of LoRAs hold alpha = rank since 0.2, so B is compared without its factor,
and comfyui.safetensors is left out.
"""

import argparse
import hashlib
import json
import tempfile
from contextlib import chdir
from pathlib import Path

from small import METHODS, metrics_of, run_of, tensors_of, work

from afterflow.models.adapters import LoRA
from afterflow.models.lora.files import COMFYUI

STORED = Path(__file__).parent / "results" / "same_numbers_0_1.json"
DEMO = Path(__file__).parents[1] / "tests" / "data" / "demo_0_1.json"


def digest(tensors: dict) -> str:
    """Return one digest of the names and bytes of a file's tensors."""
    parts = {
        name: hashlib.sha256(x.contiguous().view(-1).numpy().tobytes()).hexdigest()[:16] for name, x in tensors.items()
    }
    return hashlib.sha256(json.dumps(dict(sorted(parts.items()))).encode()).hexdigest()[:16]


def numbers(method: str) -> dict:
    """Train a method for four iterations in the working folder and return what it measured and left."""
    run = run_of(method, 4, keep_checkpoints=10)
    work(run)
    scale = run.tune.alpha / run.tune.rank if isinstance(run.tune, LoRA) else 1.0
    undone = lambda tensors: {name: x / scale if "lora_B" in name else x for name, x in tensors.items()}
    files = {file: tensors for file, tensors in tensors_of(run.folder).items() if not file.endswith(COMFYUI)}
    return {
        "metrics": metrics_of(run.folder),
        "tensors": {file: digest(undone(tensors)) for file, tensors in files.items()},
        "held_out": (run.folder / "held_out.jsonl").read_text().splitlines(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="write the numbers to this file instead of comparing them")
    parser.add_argument("--against", help="compare with a file that --store wrote, and not with version 0.1")
    options = parser.parse_args()
    demo = Path("runs/demo/summary.json").absolute()
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        results = {method: numbers(method) for method in METHODS}
    if options.store:
        Path(options.store).write_text(json.dumps(results, indent=1) + "\n")
        return
    stored = (
        json.loads(Path(options.against).read_text()) if options.against else json.loads(STORED.read_text())["numbers"]
    )
    for method, result in results.items():
        if method not in stored:
            print(method, "is newer than the stored numbers", flush=True)
            continue
        parts = {name: "equal" if result[name] == stored[method][name] else "DIFFERENT" for name in result}
        print(method, parts, flush=True)
    if demo.is_file():
        summary = json.loads(demo.read_text())
        for name, record in json.loads(DEMO.read_text()).items():
            equal = {
                key: summary[key] == record[key] for key in ("strict", "closed", "fidelity", "diversity", "frechet")
            }
            print("demo, as", name, equal)


if __name__ == "__main__":
    main()
