"""Folders as runs leave them, made without training: what a page over runs is tried on."""

import json
from pathlib import Path

import numpy as np

from afterflow.envs.shapes.prompts import suite
from afterflow.envs.shapes.render import render_image
from afterflow.experiment.picture_store import PictureStore, encode_picture
from afterflow.experiment.run_folder import BASE_STEP

RECORDS = suite("test", 1, 0, tags=("counting", "colors", "text"))
CONFIG = {
    "algorithm": {"type": "FlowGRPO", "weights": {"strict": 1.0}},
    "batches": {"iterations": 10, "budget_seconds": None},
}


def run_of(folder, lines=(), held_out=(), **record):
    """A run's folder with these lines of metrics and these measurements."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"config": CONFIG, "recipe": "toy"} | record))
    write_lines(folder / "metrics.jsonl", [{"seconds_trained": 2.0 * i + 2} | line for i, line in enumerate(lines)])
    write_lines(folder / "held_out.jsonl", held_out)
    return folder


def write_lines(file, lines):
    if lines:
        file.write_text("".join(json.dumps({"step": i} | line) + "\n" for i, line in enumerate(lines)))


def pictures_of(folder, records=RECORDS, steps=(BASE_STEP, 0, 2), per_prompt=2):
    """Stored pictures of these prompts, the first of each true; the scores of step s are those of its position."""
    store = PictureStore(Path(folder), "samples")
    store.begin(0, records, per_prompt)
    rng = np.random.default_rng(0)
    for i, step in enumerate(steps):
        pictures = [encode_picture(picture_of(record, k, rng)) for record in records for k in range(per_prompt)]
        scores = {"strict": [float((n + i) % 2) for n in range(len(pictures))]}
        store.write(step, pictures, {"scores": scores, "parts": {}})
    return store


def picture_of(record, k, rng):
    if k or record.get("tag") not in ("counting", "colors", "text"):
        return rng.integers(0, 255, (32, 32, 3), np.uint8)
    return render_image(record, 32, rng)


def groups_of(folder, record=RECORDS[0], step=2):
    """A stored group of four images with a tree."""
    store = PictureStore(Path(folder), "groups")
    store.begin(0)
    rng = np.random.default_rng(1)
    tree = [
        {"step": 0, "parents": [0], "rewards": [0.5]},
        {"step": 1, "parents": [0, 0], "rewards": [0.25, 0.75]},
        {"step": 3, "parents": [0, 0, 1, 1], "rewards": [0.0, 0.5, 0.5, 1.0]},
    ]
    group = {"record": record, "total": [0.0, 0.5, 0.5, 1.0], "rewards": {"strict": [0.0, 0.5, 0.5, 1.0]}, "parts": {}}
    group |= {"best": 3, "worst": 0, "tree": tree}
    store.write(step, [encode_picture(picture_of(record, k, rng)) for k in range(2)], {"groups": [group]})
    return store
