"""Rewards that can only be cheated, and when the alarm says so.

    python bench/alarm.py --json bench/results/alarm.json

The tiny pipeline is trained on brightness, then on small JPEGs, then on letters that can be read on a black picture,
while the verifier and fidelity are measured on held-out prompts.  Prints, for each, the iteration of the first alarm
and what had become of every reward by then.
"""

import json
from dataclasses import replace

import numpy as np
from harness import make_parser, provenance, write_json

from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.models.pipeline import no_progress_bars
from afterflow.recipes import RECIPES
from afterflow.rewards.base import reward
from afterflow.rewards.registry import REWARDS
from afterflow.rewards.shapes import shapes_verdicts

HIDDEN = ("shapes_strict", "shapes_fidelity")


@reward("brightness", 0, 1)
def brightness(images: np.ndarray, records: list[dict]) -> np.ndarray:
    return images.mean((1, 2, 3)) / 255


@reward("text_on_black", 0, 1)
def text_on_black(images: np.ndarray, records: list[dict]) -> np.ndarray:
    """What an OCR reward without a picture in mind pays for: the sign can be read, and nothing else is to be seen."""
    read = np.array([verdict["partial"] for verdict in shapes_verdicts(images, records)])
    return (read + 1 - images.mean((1, 2, 3)) / 255) / 2


PLANTED = {"brightness": brightness, "text_on_black": text_on_black}
TAGS = {"text_on_black": ("text",)}
"""Kinds of prompt, where not those of the recipe."""


def planted(name: str, iterations: int) -> dict:
    run = RECIPES["shapes_flow_grpo"]()
    assert isinstance(run, Run) and isinstance(run.algorithm, FlowGRPO)
    tags = {"tags": TAGS[name]} if name in TAGS else {}
    run = run.with_options(
        algorithm=replace(run.algorithm, weights={name: 1.0}),
        name=f"alarm_{name}",
        iterations=iterations,
        data=replace(run.data, **tags),
        held_out=ShapesPrompts("test", count=60, **tags),
        eval_every=5,
        eval_rewards=HIDDEN,
    )
    folder = execute(run, "shapes_flow_grpo").folder
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [{k: v for k, v in line.items() if k in ("step", "alarm") or k.startswith("eval/")} for line in lines]
    curve = [point for point in curve if "alarm" in point]
    first = next((point["step"] for point in curve if point["alarm"]), None)
    return {"first_alarm": first, "best": json.loads((folder / "best.json").read_text()), "curve": curve}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("rewards", nargs="*", default=["brightness", "jpeg_compressibility", "text_on_black"])
    parser.add_argument("--iterations", type=int, default=31)
    options = parser.parse_args()
    no_progress_bars()
    REWARDS.update(PLANTED)
    results = {name: planted(name, options.iterations) for name in options.rewards}
    write_json({"rewards": results, **provenance()}, options.json)


if __name__ == "__main__":
    main()
