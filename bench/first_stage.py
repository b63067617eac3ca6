"""SOAR where it is meant: as the first stage after pretraining, on a model that has not converged.

    python bench/first_stage.py pretrain               # goes on where it was stopped, as the next does
    python bench/first_stage.py train --seeds 0 1 2
    python bench/first_stage.py report                 # bench/results/first_stage.json, and plot and table of the docs

The tiny pipeline's transformer is trained from random weights by its own recipe, at a constant rate, and taken after a
tenth and three tenths of the recipe's updates.  From each, SFT, SFT on as many states as SOAR has, and SOAR learn from
the same pictures, which are rendered, with all weights.  All are drawn in few and in many steps.

What SOAR is said to mend is measured in two ways, without guidance.

    error  A picture is put on the line to its noise at time START.  From there the model's own steps lead to t.  The
           squared error of the picture that it predicts there is compared with that on the line itself at t.  Even an
           exact velocity has a larger error on its own path, which leads to one of the pictures that the state may
           become.  So the shipped pipeline, which is trained to its end, is measured as a reference.
    noise  The model's own steps lead from pure noise to t, where it predicts the noise (the measure of
           arXiv:2308.15321), and so it does on the line.  The mean squares of both predictions are equal for an exact
           velocity, whatever the picture is.
"""

import argparse
import itertools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from harness import provenance
from safetensors.torch import load_file
from torch import Tensor
from trainings import SIDES, is_stored, store, train_to_end

from afterflow.algorithms.base import Supervised
from afterflow.algorithms.sft import SFT
from afterflow.algorithms.soar import SOAR
from afterflow.data.images import ShapesImages
from afterflow.envs.shapes.world import TAGS
from afterflow.evaluation.report import ShapesSettings
from afterflow.evaluation.shapes_suite import by_prompt, prompts_of_suite, suite_pictures, suite_prompts, verdicts
from afterflow.experiment.config import Run
from afterflow.experiment.serialization import to_json
from afterflow.models.adapters import Full
from afterflow.models.generate import encode_records
from afterflow.models.pipeline import Model, no_progress_bars
from afterflow.models.pipeline_files import TINY, weights_digest
from afterflow.models.sd3 import SD3
from afterflow.recipes import RECIPES
from afterflow.sampling.flow import interpolate, predict_noise, predict_x0
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
PATHS, PATH_STEPS = 512, 20
"""Pictures on which the exposure bias is measured, and the steps of a whole path."""
START, LAST = 0.7, 0.35
"""Time at which paths leave the line, and the last one at which they are looked at."""
REFERENCE = "shipped"
"""Name of the pipeline that was trained to its end, beside those of SHARES."""


def pretraining() -> Run:
    """The recipe's run from random weights, at a constant rate so that it may be taken at any time."""
    run = RECIPES["tiny_sd3_pretrain"]().stages[-1]  # type: ignore[union-attr]
    assert isinstance(run, Run)
    options = {"lr_schedule": "constant", "iterations": max(SHARES.values()), "sample_every": 0}
    saved = {"save_every": min(SHARES.values()), "keep_checkpoints": 20}
    return replace(run, model=SD3(str(RUNS / "start"))).with_options(name="first_stage/pretrain", **options, **saved)


def write_start(folder: Path) -> None:
    """Write the shipped pipeline with a transformer of random weights."""
    pipe = StableDiffusion3Pipeline.from_pretrained(TINY, torch_dtype=torch.float32)
    torch.manual_seed(0)
    pipe.transformer = SD3Transformer2DModel.from_config(pipe.transformer.config)
    write_whole(pipe, folder)


def write_whole(pipe: StableDiffusion3Pipeline, folder: Path) -> None:
    """Write a pipeline under another name first, so that a folder of this name is whole."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipe.save_pretrained(partial)
    partial.rename(folder)


def take_checkpoint(updates: int, folder: Path) -> None:
    """Write the pipeline as it was after so many updates of pretraining, with the averages of its weights."""
    pipe = StableDiffusion3Pipeline.from_pretrained(RUNS / "start", torch_dtype=torch.float32)
    values = load_file(pretraining().folder / "checkpoints" / f"step_{updates - 1:06d}" / "ema.safetensors")
    copy_values(dict(pipe.transformer.named_parameters()), values)
    write_whole(pipe, folder)


def pretrain() -> None:
    """Train from random weights, and write the pipelines of SHARES."""
    if not (RUNS / "start").is_dir():
        write_start(RUNS / "start")
    train_to_end(pretraining(), "first_stage")
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


def train(seeds: list[int]) -> None:
    """Train and measure what has no result yet."""
    measure_base(REFERENCE, "tiny")
    for share in SHARES:
        measure_base(share, str(RUNS / share))
    for seed in seeds:
        for share in SHARES:
            for method in METHODS:
                run, file = continuation(share, method, seed), RESULTS / f"{share}_{method}_{seed}.json"
                settings = MEASURED | {"config": to_json(run), "start": weights_digest(str(RUNS / share))}
                if not is_stored(file, settings):
                    seconds = train_to_end(run, "first_stage")
                    figures = measure(SD3(str(run.folder / "model")).load())
                    result = {"share": share, "method": method, "seed": seed, "seconds": seconds}
                    store(file, result | settings | figures | made())
                    print(file.stem, "is stored", flush=True)


def measure_base(share: str, path: str) -> None:
    """Measure a pipeline that nothing has continued, unless that is stored."""
    file, settings = RESULTS / f"{share}_base_0.json", MEASURED | {"start": weights_digest(path)}
    if not is_stored(file, settings):
        result = {"share": share, "method": "base", "seed": 0}
        store(file, result | settings | measure(SD3(path).load()) | made())


def made() -> dict:
    work = "python bench/first_stage.py"
    return provenance(f"{work} pretrain && {work} train --seeds 0 1 2 && {work} report")


MEASURED = {
    "suite": to_json(SUITE),
    "drawn_steps": list(DRAWN_STEPS),
    "paths": [PATHS, PATH_STEPS, START, LAST],
}
"""How pipelines are measured, as results hold it."""


def measure(model: Model) -> dict:
    """Figures of a pipeline prompt by prompt, in each number of steps, and its exposure bias."""
    return {"drawn": {str(steps): drawn(model, steps) for steps in DRAWN_STEPS}, "bias": bias_of_model(model)}


def drawn(model: Model, steps: int) -> dict[str, list[float]]:
    """Figures of every different prompt of the suite, drawn in so many steps, with four decimals."""
    records = suite_prompts(SUITE, SIDES)
    scores = verdicts(suite_pictures(model, records, replace(SUITE, steps=steps)), records)
    means = {name: scores[name].mean(1) for name in ("strict", "fidelity")}
    figures = by_prompt(means, records, prompts_of_suite(records))
    return {name: np.round(values, 4).tolist() for name, values in figures.items()}


def bias_of_model(model: Model) -> list[dict[str, float]]:
    """The exposure bias of a model on rendered pictures whose prompts were held out, in steps of its sampler's grid."""
    images = list(ShapesImages(PATHS, "test", tags=TAGS[1:]).images(7, SIDES))
    x0 = model.encode_images(np.stack([image.pixels() for image in images]))
    cond = encode_records(model, [image.record for image in images])
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(7))
    field = model.guided_velocity(1.0, len(x0))
    return exposure_bias(lambda x, t: field(x, t, cond), x0, noise, model.schedule.times(PATH_STEPS).tolist())


@torch.no_grad()
def exposure_bias(
    velocity: Callable[[Tensor, Tensor], Tensor], x0: Tensor, noise: Tensor, grid: Sequence[float]
) -> list[dict[str, float]]:
    """Return what a velocity predicts on its own path beside what it predicts on the line, at the times of a grid.

    At each time down to LAST: `line_noise` and `own_noise`, mean squares of predicted noise, and, from START on, `line`
    and `own`, squared errors of the predicted picture.

    Args:
        velocity: Function (x, t) → the velocity (B, ...).
        x0: Pictures (B, ...).
        noise: Noise of the same shape.
        grid: Falling times, from 1 on.
    """
    at = lambda time: torch.full((len(x0),), time)
    first = min(grid, key=lambda time: abs(time - START))
    free, from_line, points = noise, noise, []
    for now, then in itertools.pairwise(grid):
        if then < LAST - 1e-6:
            break
        free = free + (then - now) * velocity(free, at(now))
        line = interpolate(x0, noise, at(then))
        v_line = velocity(line, at(then))
        squares = {
            "line_noise": predict_noise(line, v_line, at(then)).square(),
            "own_noise": predict_noise(free, velocity(free, at(then)), at(then)).square(),
        }
        if now <= first:
            from_line = from_line + (then - now) * velocity(from_line, at(now))
            own = predict_x0(from_line, velocity(from_line, at(then)), at(then))
            squares |= {"line": (predict_x0(line, v_line, at(then)) - x0).square(), "own": (own - x0).square()}
        elif then == first:
            from_line = line
        points.append({"time": then} | {name: float(values.mean()) for name, values in squares.items()})
    return points


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
