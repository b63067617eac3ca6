"""Flow-OPD beside its teachers and beside what else could be done: merge only, SFT, cascade, mixed rewards.

    python bench/generalist.py --seeds 0 1 2
    python bench/generalist.py shapes_generalist shapes_mixed_grpo --seeds 0

Every seed has teachers of its own, which its chains share.  Writes bench/results/generalist.json: for each recipe and
seed strict of every task beside its teacher's, the average, fidelity, and seconds of training: `own`, what only this
recipe trained, and `total`, its teachers included.  What is done already is not done again.
"""

import argparse
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from harness import provenance

from afterflow.evaluation.comparison import base_of
from afterflow.evaluation.report import ShapesSettings
from afterflow.evaluation.shapes_suite import beside_teachers, judge, shapes_report, strict_of_teachers, suite_pictures
from afterflow.experiment.config import Run
from afterflow.experiment.serialization import from_json, to_json
from afterflow.experiment.stages import Chain, Merge, Samples, execute_chain
from afterflow.models.base import default_device
from afterflow.models.pipeline import no_progress_bars
from afterflow.models.sd3 import SD3
from afterflow.recipes import RECIPES
from afterflow.recipes.generalist import TASKS

RESULT = Path(__file__).parent / "results" / "generalist.json"
NAMES = (
    "shapes_generalist",
    "shapes_generalist_no_anchor",
    "shapes_generalist_quality_anchor",
    "shapes_generalist_from_base",
    "shapes_merge_only",
    "shapes_sft_teachers",
    "shapes_cascade",
    "shapes_mixed_grpo",
    "shapes_mixed_grpo_turns",
    "shapes_generalist_nft",
    "shapes_mixed_nft",
)
TEACHERS = {task: f"shapes_teacher_{task}" for task in TASKS}
"""Task → the run of its teacher."""
NFT_TEACHERS = {task: f"shapes_nft_teacher_{task}" for task in TASKS} | {"text": "shapes_guard_teacher_text"}
"""The same of the recipes whose teachers learn by DiffusionNFT."""
MODEL = SD3("tiny")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", choices=[*NAMES, []], help="all of them without a name")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prompts", type=int, default=350)
    parser.add_argument("--images", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    no_progress_bars()
    settings = ShapesSettings(prompts=options.prompts, images=options.images)
    for seed in options.seeds:
        for name in options.recipes or NAMES:
            results = stored(settings)
            if str(seed) not in results["recipes"].get(name, {}):
                result = one(seeded(name, seed), seed, settings)
                results = stored(settings)  # another process may have added to it meanwhile
                results["recipes"].setdefault(name, {})[str(seed)] = result
                RESULT.write_text(json.dumps(results) + "\n")
    averages = {
        name: {seed: result["taught"]["average"]["tuned"]["value"] for seed, result in of_name.items()}
        for name, of_name in stored(settings)["recipes"].items()
    }
    print(json.dumps(averages))


def stored(settings: ShapesSettings) -> dict:
    """What the file holds so far; SystemExit when that is of other settings."""
    about = {"suite": to_json(settings), "command": "python bench/generalist.py --seeds 0 1 2"}
    results = json.loads(RESULT.read_text()) if RESULT.is_file() else about | {"recipes": {}}
    if any(results[name] != value for name, value in about.items()):
        raise SystemExit(f"{RESULT} holds another setting; move it away")
    return results


def seeded(name: str, seed: int) -> Chain:
    """A recipe as a chain whose stages are all of one seed, in folders of their own."""
    made = RECIPES[name]()
    stages = made.stages if isinstance(made, Chain) else (made,)
    renamed = []
    for stage in stages:
        text = json.dumps(to_json(stage))
        for other in stages:
            text = text.replace(f'"runs/{other.name}/', f'"runs/{other.name}_{seed}/')
        again = from_json(type(stage), json.loads(text))
        renamed.append(replace(again, name=f"{stage.name}_{seed}", seed=seed))
    return Chain(f"{name}_{seed}", tuple(renamed))


def one(chain: Chain, seed: int, settings: ShapesSettings) -> dict:
    """Do what is left of the chain, and judge its last LoRA beside the teachers of the same seed."""
    folder = execute_chain(chain)
    base = base_of(MODEL, settings)
    pictures = suite_pictures(adapted(folder / "lora"), base.records, settings)
    judged = judge(pictures, base.records, base.features)
    comparison = shapes_report(settings, base.records, judged, base.judged, base.truth, (str(folder), MODEL.path))
    with_nft = chain.name.startswith(("shapes_generalist_nft", "shapes_mixed_nft"))
    teachers = tuple((NFT_TEACHERS if with_nft else TEACHERS).items())
    taught = beside_teachers(settings, base.records, judged.strict.mean(1), of_teachers(teachers, seed, settings))
    seconds = {stage.name: trained(stage) for stage in chain.stages}
    without_teachers = {name: value for name, value in seconds.items() if "_teacher_" not in name}
    return {
        "report": to_json(comparison),
        "taught": {tag: to_json(scores) for tag, scores in taught.items()},
        "seconds": {"own": sum(without_teachers.values()), "total": sum(seconds.values()), "stages": seconds},
        **provenance(),
    }


@cache
def of_teachers(teachers: tuple[tuple[str, str], ...], seed: int, settings: ShapesSettings) -> np.ndarray:
    """(P,): strict of the teacher of each record's tag, NaN where it has none."""
    loras = {tag: str(folder_of(run, seed) / "lora") for task, run in teachers for tag in TASKS[task]}
    return strict_of_teachers(base_of(MODEL, settings).records, settings, loras, adapted)


def folder_of(teacher: str, seed: int) -> Path:
    """The folder of a teacher; SystemExit where nobody has trained it yet."""
    folder = Path("runs") / f"{teacher}_{seed}"
    if not (folder / "lora").is_dir():
        raise SystemExit(
            f"{folder} is not there; a chain with these teachers comes first: python bench/generalist.py "
            f"shapes_merge_only shapes_generalist_nft --seeds {seed}"
        )
    return folder


def adapted(lora: str | Path):
    model = MODEL.load(default_device())
    model.load_lora(lora)
    return model


def trained(stage: Run | Merge | Samples) -> float:
    """Seconds of training; drawing samples and merging are not counted."""
    if not isinstance(stage, Run):
        return 0.0
    return json.loads((stage.folder / "metrics.jsonl").read_text().splitlines()[-1])["seconds_trained"]


if __name__ == "__main__":
    main()
