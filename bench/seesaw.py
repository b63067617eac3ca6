"""The seesaw: two tasks in conflict, learnt by mixed rewards, by mixed prompts and by Flow-OPD, at equal cost.

    python bench/seesaw.py train --seeds 0 1 2    # goes on where it was stopped
    python bench/seesaw.py report                 # bench/results/seesaw.json, and plot and table of the docs
    python bench/claims.py; python bench/evidence.py

The tasks and their runs are those of afterflow/recipes/seesaw.py.  A run is as many iterations as make its seconds on
one quiet core, so that results do not depend on what else runs.  Flow-OPD's two specialists and its student have as
many seconds together as a mixed run has alone.  All draw the same held-out prompts, and are scored for both tasks
prompt by prompt, in bench/results/seesaw/METHOD_SEED.json.

The seconds of an iteration are counted: its forward and backward passes, at what teaching_cost.py has measured of each,
and for each image what methods.py has measured of shapes_nft beside its passes (decoding, rewards, the rest).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from harness import provenance, read_json
from trainings import SIDES, store, work_parser

from afterflow.algorithms.flow_opd import FlowOPD
from afterflow.algorithms.forward_process import ForwardProcess
from afterflow.data.prompts import ShapesPrompts
from afterflow.envs.shapes.style import style_parts
from afterflow.evaluation.report import ShapesSettings
from afterflow.evaluation.shapes_suite import by_prompt, prompts_of_suite, suite_pictures, suite_prompts, verdicts
from afterflow.experiment.config import Run
from afterflow.experiment.serialization import to_json
from afterflow.experiment.stages import Chain, Merge, execute_chain
from afterflow.models.adapters import LoRA, Teacher
from afterflow.models.base import default_device
from afterflow.models.pipeline import Model, no_progress_bars
from afterflow.models.sd3 import SD3
from afterflow.recipes import RECIPES
from afterflow.recipes.seesaw import RANK, SEESAW_TASKS

RESULTS = Path(__file__).parent / "results" / "seesaw"
TOTAL, TEACHER, STUDENT = 240, 90, 60
"""Seconds of a mixed run, of a specialist that teaches, and of a student."""
WIDE = 32
"""A rank that has room for both tasks."""
WIDE_RATES = {"DiffusionNFT": 7e-4, "FlowOPD": 2e-3}
"""Learning rates at that rank, by algorithm: those of afterflow/recipes, less for a task alone."""
SUITE = ShapesSettings(prompts=252, images=4)
MODEL = SD3("tiny")


@dataclass(frozen=True)
class Method:
    """One way to learn both tasks, or one of them."""

    says: str
    """What it is, for tables."""
    stage: Callable[[int], Run | Merge]
    """Makes its last stage, of a seed."""
    seconds: int
    """Seconds of training of that stage."""
    after: tuple[str, ...] = ()
    """Methods whose LoRA it uses, in order."""


def prompts(share: float, seed: int, name: str, seconds: int = TOTAL, rank: int = RANK, start: str = "") -> Run:
    """A run whose prompts are a share of style's, each with the reward of its own task; 0 and 1 are specialists."""
    run = RECIPES["shapes_seesaw_prompts"]()
    quarters = round(4 * share)
    tags = (4 - quarters) * SEESAW_TASKS["composition"] + quarters * SEESAW_TASKS["style"]
    lora = LoRA(rank=rank, alpha=2 * rank, start=lora_of(start, seed) if start else None)
    run = replace(run, data=ShapesPrompts(count=167 * len(tags), tags=tags), tune=lora)
    return counted(at_rank(run, rank), seed, name, seconds)


def rewards(share: float, seed: int, name: str, rank: int = RANK) -> Run:
    """A run on all prompts whose reward is a weighted sum of both tasks' rewards."""
    run = RECIPES["shapes_seesaw_rewards"]()
    verdict = (1 - share) / 2
    weights = {"shapes_strict": verdict, "shapes_partial": verdict, "shapes_style": share}
    run = replace(run, algorithm=replace(run.algorithm, weights=weights), tune=LoRA(rank=rank, alpha=2 * rank))
    return counted(at_rank(run, rank), seed, name, TOTAL)


def at_rank(run: Run, rank: int) -> Run:
    """The run at the learning rate that its rank stands."""
    return run if rank == RANK else run.with_options(learning_rate=WIDE_RATES[type(run.algorithm).__name__])


def merge(seed: int, name: str, rank: int = RANK, prefix: str = "") -> Merge:
    """Both specialists' LoRAs, added up and cut to the rank of one."""
    loras = tuple(lora_of(f"{prefix}teacher_{task}", seed) for task in SEESAW_TASKS)
    return Merge(loras, name=folder_name(name, seed), rank=rank)


def student(seed: int, name: str, rank: int = RANK, prefix: str = "", anchor: bool = True) -> Run:
    """Flow-OPD from the merge, near the base model; or from the base model and near nothing."""
    run = RECIPES["shapes_seesaw_opd"]().stages[-1]  # type: ignore[union-attr]
    assert isinstance(run, Run) and isinstance(run.algorithm, FlowOPD)
    teachers = tuple(
        Teacher(task, lora_of(f"{prefix}teacher_{task}", seed), tags) for task, tags in SEESAW_TASKS.items()
    )
    lora = LoRA(rank=rank, alpha=rank, start=lora_of(f"{prefix}merge", seed) if anchor else None)
    algorithm = run.algorithm if anchor else replace(run.algorithm, beta=0.0)
    run = replace(run, algorithm=algorithm, teachers=teachers, tune=lora)
    return counted(at_rank(run, rank), seed, name, STUDENT)


def counted(run: Run, seed: int, name: str, seconds: int) -> Run:
    """The run under the name of a method, with the iterations of its seconds."""
    iterations = max(1, round(seconds / iteration_seconds(run)))
    # The same on every CPU, with bf16 or without.
    options = {"name": folder_name(name, seed), "seed": seed, "iterations": iterations, "mixed_precision": "no"}
    return run.with_options(**options, sample_every=0, save_every=25, keep_checkpoints=1)


def iteration_seconds(run: Run) -> float:
    """Seconds of an iteration on a quiet core."""
    forward, both, rest = image_seconds()
    without, trained = passes(run)
    return run.batches.batch * run.algorithm.group * (forward * without + both * trained + rest)  # type: ignore


def passes(run: Run) -> tuple[int, int]:
    """Passes of the network for an image: without a gradient, and with one."""
    algorithm = run.algorithm
    if isinstance(algorithm, FlowOPD):
        fixed = 2 if algorithm.beta > 0 else 1  # the teacher, and the anchor
        return algorithm.steps + fixed * (algorithm.steps - 1), algorithm.steps - 1
    assert isinstance(algorithm, ForwardProcess)
    return algorithm.steps + 2 * algorithm.num_times, algorithm.num_times  # the old policy, and the reference


@cache
def image_seconds() -> tuple[float, float, float]:
    """Seconds of a forward pass of an image, of one with its backward pass, and of the rest of an image."""
    results = RESULTS.parent
    costs = json.loads((results / "teaching_cost.json").read_text())
    predicted = {name: method["predicted"] / costs["images"] for name, method in costs["methods"].items()}
    both = predicted["sft"]
    forward = predicted["soar_2_points"] - 3 * both
    known = RECIPES["shapes_nft"]()
    assert isinstance(known, Run) and isinstance(known.algorithm, ForwardProcess)
    without, trained = passes(known)
    measured = json.loads((results / "methods" / "times.json").read_text())["seconds"]["shapes_nft"]
    rest = measured / (known.batches.batch * known.algorithm.group) - forward * without - both * trained
    return forward, both, rest


def folder_name(name: str, seed: int) -> str:
    return f"seesaw_{name}_{seed}"


def lora_of(name: str, seed: int) -> str:
    return f"runs/{folder_name(name, seed)}/lora"


TEACHERS = ("teacher_composition", "teacher_style")
WIDE_TEACHERS = tuple(f"wide_{name}" for name in TEACHERS)
METHODS = {
    "teacher_composition": Method("teacher of composition", partial(prompts, 0.0, seconds=TEACHER), TEACHER),
    "teacher_style": Method("teacher of style", partial(prompts, 1.0, seconds=TEACHER), TEACHER),
    "merge": Method("merge of both teachers", merge, 0, TEACHERS),
    "opd": Method("Flow-OPD from the merge", student, STUDENT, (*TEACHERS, "merge")),
    "rewards_50": Method("mixed rewards, half style", partial(rewards, 0.5), TOTAL),
    "prompts_50": Method("mixed prompts, half style", partial(prompts, 0.5), TOTAL),
    "composition": Method("composition alone", partial(prompts, 0.0), TOTAL),
    "style": Method("style alone", partial(prompts, 1.0), TOTAL),
    "cascade": Method(
        "composition, then style",
        partial(prompts, 1.0, seconds=TOTAL - TEACHER, start=TEACHERS[0]),
        TOTAL - TEACHER,
        TEACHERS[:1],
    ),
    "cascade_back": Method(
        "style, then composition",
        partial(prompts, 0.0, seconds=TOTAL - TEACHER, start=TEACHERS[1]),
        TOTAL - TEACHER,
        TEACHERS[1:],
    ),
    "opd_free": Method("Flow-OPD from the base, no anchor", partial(student, anchor=False), STUDENT, TEACHERS),
    "rewards_25": Method("mixed rewards, a quarter style", partial(rewards, 0.25), TOTAL),
    "rewards_75": Method("mixed rewards, three quarters style", partial(rewards, 0.75), TOTAL),
    "prompts_25": Method("mixed prompts, a quarter style", partial(prompts, 0.25), TOTAL),
    "prompts_75": Method("mixed prompts, three quarters style", partial(prompts, 0.75), TOTAL),
    "wide_teacher_composition": Method(
        f"rank {WIDE}: teacher of composition", partial(prompts, 0.0, seconds=TEACHER, rank=WIDE), TEACHER
    ),
    "wide_teacher_style": Method(
        f"rank {WIDE}: teacher of style", partial(prompts, 1.0, seconds=TEACHER, rank=WIDE), TEACHER
    ),
    "wide_merge": Method(f"rank {WIDE}: merge", partial(merge, rank=WIDE, prefix="wide_"), 0, WIDE_TEACHERS),
    "wide_opd": Method(
        f"rank {WIDE}: Flow-OPD",
        partial(student, rank=WIDE, prefix="wide_"),
        STUDENT,
        (*WIDE_TEACHERS, "wide_merge"),
    ),
    "wide_prompts_50": Method(f"rank {WIDE}: mixed prompts", partial(prompts, 0.5, rank=WIDE), TOTAL),
    "wide_rewards_50": Method(f"rank {WIDE}: mixed rewards", partial(rewards, 0.5, rank=WIDE), TOTAL),
}
"""Name → method, in the order in which they are trained: what has a result soon is of use soon."""


def stage_of(name: str, seed: int) -> Run | Merge:
    return METHODS[name].stage(seed, name=name)  # type: ignore[call-arg]


def total_seconds(name: str) -> int:
    """Seconds of training of a method, with those of the methods that it uses."""
    return sum(METHODS[part].seconds for part in (*METHODS[name].after, name))


def train_methods(names: list[str], seeds: list[int]) -> None:
    """Train and judge what has no result yet, one after another."""
    if not result_file("base").is_file():
        store_figures("base", {"figures": judge(MODEL.load(default_device()))})
    for seed in seeds:
        for name in names:
            stages = tuple(stage_of(part, seed) for part in (*METHODS[name].after, name))
            if is_stored(name, seed, stages):
                continue
            folder = execute_chain(Chain(f"seesaw_{name}", stages))
            model = MODEL.load(default_device())
            model.load_lora(folder / "lora")
            result = {
                "name": name,
                "seed": seed,
                "stages": [to_json(stage) for stage in stages],
                "figures": judge(model),
            }
            store_figures(f"{name}_{seed}", result)
            print(name, seed, "is stored", flush=True)


def is_stored(name: str, seed: int, stages: tuple[Run | Merge, ...]) -> bool:
    """Whether the result is there.  SystemExit where it is that of other settings."""
    file = result_file(f"{name}_{seed}")
    stored = read_json(str(file))
    settings = {"stages": [to_json(stage) for stage in stages], "suite": to_json(SUITE)}
    # The first results do not name the suite, which was this one.
    if stored and {name: stored.get(name, settings[name]) for name in settings} != settings:
        raise SystemExit(f"{file} is of other settings; delete it")
    return bool(stored)


def result_file(name: str) -> Path:
    return RESULTS / f"{name}.json"


def store_figures(name: str, result: dict) -> None:
    made = provenance("python bench/seesaw.py train --seeds 0 1 2")
    store(result_file(name), result | {"suite": to_json(SUITE)} | made)


def judge(model: Model) -> dict[str, list[float]]:
    """Figures of every different prompt of the suite, with four decimals: what it shows, its style and its look."""
    records = suite_prompts(SUITE, SIDES)
    pictures = suite_pictures(model, records, SUITE)
    scores = verdicts(pictures, records)
    style = style_parts(pictures.reshape(-1, *pictures.shape[2:])).style.reshape(pictures.shape[:2])
    of_records = {"strict": scores["strict"], "style": style, "fidelity": scores["fidelity"]}
    means = {name: values.mean(1) for name, values in of_records.items()}
    figures = by_prompt(means, records, prompts_of_suite(records))
    return {name: np.round(values, 4).tolist() for name, values in figures.items()}


def main() -> None:
    options = work_parser(__doc__, ("train", "report"), list(METHODS)).parse_args()
    torch.set_num_threads(1)
    no_progress_bars()
    if options.work == "train":
        train_methods(options.names or list(METHODS), options.seeds)
    else:
        from seesaw_report import write_report

        write_report()


if __name__ == "__main__":
    main()
