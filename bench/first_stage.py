"""SOAR where it is meant: as the first stage after pretraining, on a model that has not converged.

    python bench/first_stage.py pretrain               # goes on where it was stopped, as the next does
    python bench/first_stage.py train --seeds 0 1 2
    python bench/first_stage.py report                 # bench/results/first_stage.json, and plot and table of the docs

The tiny pipeline's transformer is trained from random weights by its own recipe, at a constant rate, and taken after a
tenth and three tenths of the recipe's updates.  From each, SFT, SFT on as many states as SOAR has, and SOAR learn from
the same pictures, which are rendered, with all weights.  All are drawn in few and in many steps.

What SOAR is said to mend is measured directly.  A picture is put on the line to its noise at time t0; from there the
model's own steps lead to t.  There it predicts the picture, and so it does on the line itself at t.  The exposure bias
is by how much the first prediction is further from the picture than the second: the ratio of their squared errors.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from harness import provenance, read_json
from safetensors.torch import load_file

from afterflow.algorithms.base import Supervised
from afterflow.algorithms.sft import SFT
from afterflow.algorithms.soar import SOAR
from afterflow.data.images import ShapesImages
from afterflow.envs.shapes.world import TAGS
from afterflow.evaluation.report import ShapesSettings
from afterflow.evaluation.shapes_suite import by_prompt, prompts_of_suite, suite_pictures, suite_prompts, verdicts
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.experiment.run_folder import RunFolder
from afterflow.experiment.serialization import to_json
from afterflow.experiment.train_subprocess import check_same, has_ended
from afterflow.models.adapters import Full
from afterflow.models.generate import encode_records
from afterflow.models.pipeline import Model, no_progress_bars
from afterflow.models.pipeline_files import TINY
from afterflow.models.sd3 import SD3
from afterflow.recipes import RECIPES
from afterflow.sampling.flow import interpolate, predict_x0
from afterflow.system.atomic_files import write_text_atomically
from afterflow.train.ema import copy_values

RESULTS = Path(__file__).parent / "results" / "first_stage"
RUNS = Path("runs/first_stage")
SHARES = {"10": 4000, "30": 12_000}
"""Percents of the recipe's pretraining → updates, of 40 500."""
GUIDANCE = 2.5
METHODS: dict[str, Supervised] = {
    "sft": SFT(),
    "sft_matched": SFT(num_noises=3),
    "soar": SOAR(points=2, correction=0.5, rollout_guidance=GUIDANCE),
    "soar_paper": SOAR(rollout_guidance=GUIDANCE),
}
ITERATIONS = 300
SUITE = ShapesSettings(prompts=280, images=2, guidance=GUIDANCE)
DRAWN_STEPS = (5, 20)
SIDES = (32, 32)
PATHS, PATH_STEPS = 512, 20
"""Pictures on which the exposure bias is measured, and the steps of a whole path, of which each takes a part."""
STARTS = (0.95, 0.85, 0.7)
"""Times at which paths leave the line."""


def pretraining() -> Run:
    """The recipe's run from random weights, at a constant rate so that it may be taken at any time."""
    run = RECIPES["tiny_sd3_pretrain"]().stages[-1]  # type: ignore[union-attr]
    assert isinstance(run, Run)
    options = {"lr_schedule": "constant", "iterations": max(SHARES.values()), "sample_every": 0}
    saved = {"save_every": min(SHARES.values()), "keep_checkpoints": 3}
    return replace(run, model=SD3(str(RUNS / "start"))).with_options(name="first_stage/pretrain", **options, **saved)


def write_start(folder: Path) -> None:
    """Write the shipped pipeline with a transformer of random weights."""
    pipe = StableDiffusion3Pipeline.from_pretrained(TINY, torch_dtype=torch.float32)
    torch.manual_seed(0)
    pipe.transformer = SD3Transformer2DModel.from_config(pipe.transformer.config)
    pipe.save_pretrained(folder)


def take_checkpoint(updates: int, folder: Path) -> None:
    """Write the pipeline as it was after so many updates of pretraining, with the averages of its weights."""
    pipe = StableDiffusion3Pipeline.from_pretrained(RUNS / "start", torch_dtype=torch.float32)
    values = load_file(pretraining().folder / "checkpoints" / f"step_{updates - 1:06d}" / "ema.safetensors")
    copy_values(dict(pipe.transformer.named_parameters()), values)
    pipe.save_pretrained(folder)


def pretrain() -> None:
    """Train from random weights, and write the pipelines of SHARES."""
    if not (RUNS / "start").is_dir():
        write_start(RUNS / "start")
    run_to_its_end(pretraining())
    for share, updates in SHARES.items():
        if not (RUNS / share).is_dir():
            take_checkpoint(updates, RUNS / share)


def continuation(share: str, method: str, seed: int) -> Run:
    """One method from one share of pretraining."""
    run = RECIPES["shapes_sft"]()
    assert isinstance(run, Run)
    options = {"iterations": ITERATIONS, "seed": seed, "name": f"first_stage/{share}_{method}_{seed}"}
    quiet = {"held_out": None, "eval_every": 0, "eval_rewards": (), "sample_every": 0, "keep_checkpoints": 1}
    run = replace(run, algorithm=METHODS[method], model=SD3(str(RUNS / share)), tune=Full())
    data = ShapesImages(count=8000, tags=TAGS[1:])
    return run.with_options(data=data, learning_rate=3e-4, mixed_precision="no", **options, **quiet)


def run_to_its_end(run: Run) -> None:
    """Train a run, or go on with it."""
    check_same(run)
    if not has_ended(run.folder, run):
        execute(run, "first_stage", resume=bool(RunFolder(run.folder).checkpoints()))


def result_file(share: str, method: str, seed: int = 0) -> Path:
    return RESULTS / f"{share}_{method}_{seed}.json"


def train(seeds: list[int]) -> None:
    """Train and measure what has no result yet."""
    for share in SHARES:
        if not result_file(share, "base").is_file():
            store(share, "base", 0, RUNS / share, {})
    for seed in seeds:
        for share in SHARES:
            for method in METHODS:
                run = continuation(share, method, seed)
                stored = read_json(str(result_file(share, method, seed)))
                if stored and stored["config"] != to_json(run):
                    raise SystemExit(f"{result_file(share, method, seed)} is of other settings; delete it")
                if not stored:
                    run_to_its_end(run)
                    seconds = RunFolder(run.folder).metrics()[-1]["seconds_trained"]
                    store(share, method, seed, run.folder / "model", {"config": to_json(run), "seconds": seconds})


def store(share: str, method: str, seed: int, folder: Path, about: dict) -> None:
    """Measure a pipeline, and store its figures prompt by prompt."""
    model = SD3(str(folder)).load()
    measured = {"drawn": {str(steps): drawn(model, steps) for steps in DRAWN_STEPS}, "bias": exposure_bias(model)}
    result = {"share": share, "method": method, "seed": seed, **about, **measured, "suite": to_json(SUITE)}
    RESULTS.mkdir(parents=True, exist_ok=True)
    made = provenance("python bench/first_stage.py pretrain && python bench/first_stage.py train --seeds 0 1 2")
    write_text_atomically(result_file(share, method, seed), json.dumps(result | made) + "\n")
    print(share, method, seed, "is stored", flush=True)


def drawn(model: Model, steps: int) -> dict[str, list[float]]:
    """Figures of every different prompt of the suite, drawn in so many steps, with four decimals."""
    records = suite_prompts(SUITE, SIDES)
    scores = verdicts(suite_pictures(model, records, replace(SUITE, steps=steps)), records)
    means = {name: scores[name].mean(1) for name in ("strict", "fidelity")}
    figures = by_prompt(means, records, prompts_of_suite(records))
    return {name: np.round(values, 4).tolist() for name, values in figures.items()}


@torch.no_grad()
def exposure_bias(model: Model) -> list[dict[str, float]]:
    """Squared errors of predicted pictures on the line and on the model's own path, by start and end of the path.

    The pictures are rendered from prompts that were held out, and the steps are those of the sampler's grid.
    """
    images = list(ShapesImages(PATHS, "test", tags=TAGS[1:]).images(7, SIDES))
    x0 = model.encode_images(np.stack([image.pixels() for image in images]))
    cond = encode_records(model, [image.record for image in images])
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(7))
    velocity = model.guided_velocity(1.0, len(x0))
    grid = [float(time) for time in model.schedule.times(PATH_STEPS)]
    found = []
    for wanted in STARTS:
        first = min(range(len(grid)), key=lambda i: abs(grid[i] - wanted))
        own = interpolate(x0, noise, torch.full((len(x0),), grid[first]))
        for now, then in zip(grid[first:-2], grid[first + 1 : -1]):
            t, s = (torch.full((len(x0),), time) for time in (now, then))
            own = own + (then - now) * velocity(own, t, cond)
            errors = [
                float((predict_x0(x, velocity(x, s, cond), s) - x0).square().mean())
                for x in (interpolate(x0, noise, s), own)
            ]
            found.append({"start": grid[first], "time": then, "line": errors[0], "own": errors[1]})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=("pretrain", "train", "report"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    no_progress_bars()
    if options.work == "pretrain":
        pretrain()
    elif options.work == "train":
        train(options.seeds)
    else:
        from first_stage_report import write_report

        write_report()


if __name__ == "__main__":
    main()
