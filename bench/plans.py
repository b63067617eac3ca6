"""Memory and work of recipes on released models, counted from published layer sizes: no weight is loaded, nothing runs.

    python bench/plans.py --json bench/results/plans.json

The figures are those of `afterflow train RECIPE --plan`.  That command reads a model's configuration files; here they
are written from what diffusers states of each model, so that no hub is needed.  Hours on one card assume that the
network's own FLOPs run at 40 % of the card's dense bf16 peak.  Nobody has measured them here.
"""

import json
import tempfile
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

from harness import make_parser, provenance, write_json
from PIL import Image
from released import FLUX_DEV, SD35_MEDIUM, WAN_1_3B, write_configurations

from afterflow.experiment.cards import PEAK
from afterflow.experiment.cost_estimate import estimate_cost
from afterflow.recipes import RECIPES

SHARE = 0.4
CARDS = {"RTX 4090": "NVIDIA GeForce RTX 4090", "A100": "NVIDIA A100-SXM4-80GB", "H100": "NVIDIA H100 80GB HBM3"}
COMMANDS = {
    "sd35_flow_grpo_ocr": SD35_MEDIUM,
    "sd35_flow_grpo_ocr --gradient-checkpointing": SD35_MEDIUM,
    "sd35_soar": SD35_MEDIUM,
    "flux_mix_grpo": FLUX_DEV,
    "flux_branch_grpo": FLUX_DEV,
    "wan_branch_grpo": WAN_1_3B,
}
"""What follows `afterflow train`, and the configuration files of its model."""


def counted(command: str, files: dict[str, dict]) -> dict:
    """Memory and work of a recipe whose model has these configuration files."""
    name, _, option = command.partition(" ")
    folder = Path(name).resolve()
    write_configurations(files, folder)
    run = RECIPES[name]()
    if option:
        run = run.with_options(gradient_checkpointing=True)
    needs = estimate_cost(replace(run, model=replace(run.model, path=str(folder))))
    flops = sum(needs.flops.values()) * run.batches.iterations
    return {
        "iterations": run.batches.iterations,
        "gib": {part: round(size / 2**30, 2) for part, size in needs.memory.items()},
        "gib_together": round(needs.total_bytes / 2**30, 1),
        "pflop": round(flops / 1e15),
        "hours": {card: round(flops / (SHARE * PEAK[name]) / 3600, 1) for card, name in CARDS.items()},
    }


def main() -> None:
    options = make_parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path("prompts").mkdir()
        for name in ("hpd", "video"):  # stand-ins: prompts count only in the CPU's memory, which is left out
            Path(f"prompts/{name}.txt").write_text("\n".join(f"prompt {i}" for i in range(100)))
        Path("images").mkdir()
        Image.new("RGB", (64, 64)).save("images/0.png")
        Path("images/metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": "a cat"}))
        recipes = {command: counted(command, files) for command, files in COMMANDS.items()}
    write_json(provenance() | {"share_of_peak": SHARE, "recipes": recipes}, options.json, indent=1)


if __name__ == "__main__":
    main()
