"""What fits on which card: every released model at 512 and 1024 px, counted without weights.

    python bench/memory.py --json bench/results/memory.json [MODEL ...]

The run is Flow-GRPO with a LoRA of rank 32 in bf16: 8 prompts with 16 images each, 10 steps, a chunk of 8 images.  For
each card of 16, 24, 48 and 80 GB it is what `afterflow train ... --fit` chooses; nothing is measured.  Text encoders
are there only while prompts are encoded, and what they take in bf16 beside the network is told apart, from the models'
cards.  Clips of Wan have 33 frames of 256 x 416 and 480 x 832 px.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from harness import make_parser, provenance, read_json, write_json
from released import RELEASED, released

from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.data.prompts import PromptFile
from afterflow.experiment.config import Run
from afterflow.experiment.memory_fit import fit_run
from afterflow.models.adapters import LoRA
from afterflow.models.wan import Wan
from afterflow.system.errors import ConfigError
from afterflow.system.input_pictures import png_address

CARDS = (16, 24, 48, 80)
SIZES = {512: {"height": 256, "width": 416, "frames": 33}, 1024: {"height": 480, "width": 832, "frames": 33}}
"""Size of images in pixels → what a clip has instead."""


def counted(name: str, size: int) -> dict:
    """What each card takes of a model."""
    with tempfile.TemporaryDirectory() as folder:
        family = RELEASED[name].config
        options = SIZES[size] if issubclass(family, Wan) else {"size": size}
        model = released(name, Path(folder) / "model", **options)
        prompts = Path(folder) / "prompts.jsonl"
        prompts.write_text(prompt_line(RELEASED[name].edits))
        algorithm = FlowGRPO({"pickscore": 1.0}, steps=10, group=16, beta=0.0)
        run = Run(algorithm, PromptFile(str(prompts)), model, LoRA(), name="memory")  # type: ignore[arg-type]
        run = run.with_options(batch=8, chunk=8, mixed_precision="bf16")
        return {str(card): fit(run, card) for card in CARDS}


def prompt_line(edits: bool) -> str:
    """A prompt as a line of a list, about a picture where the model edits."""
    picture = {"input": png_address(np.zeros((64, 64, 3), np.uint8))} if edits else {}
    return json.dumps({"prompt": "a cat", **picture})


def fit(run: Run, card: int) -> dict:
    """How the run fits a card."""
    try:
        chosen = fit_run(run, card)
    except ConfigError as error:
        if not str(error).startswith(f"--fit {card}"):
            raise  # a run that the model refuses is not one that needs too much
        return {"none": str(error).partition(": ")[2]}
    changes = {option: now for option, (_, now) in chosen.changes.items()}
    return {"gb": round(chosen.bytes_needed / 10**9, 1), "changes": changes}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("models", nargs="*", help="all of them without a name")
    options = parser.parse_args()
    models = read_json(options.json).get("models", {})
    for name in options.models or RELEASED:
        models[name] = {str(size): counted(name, size) for size in SIZES}
        models[name]["text_encoders_gb"] = round(2 * RELEASED[name].text_parameters, 1)
        print(name, models[name], flush=True)
        write_json(provenance() | {"models": models}, options.json, indent=1, show=False)


if __name__ == "__main__":
    main()
