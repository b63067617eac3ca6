"""Recipes of real models, one iteration each in their own settings, on tiny random models and rewards.

    python bench/smoke.py --json bench/results/smoke.json [RECIPE ...]

That shows that a recipe's method, rewards, judge, data and options work together, from the first prompt to the saved
LoRA; it says nothing of what is learnt.  What is not the recipe's own: the weights of the model and of the rewards, the
pictures' size, how many prompts there are and how many an iteration takes, one iteration instead of hundreds, a server
that always prefers the first image, and bf16 where the recipe says fp16, which a CPU does not compute in.
"""

import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import torch
from harness import make_parser, provenance, read_json, write_json
from PIL import Image

from afterflow.data.geneval_prompts import MixedPrompts
from afterflow.data.images import ImageFolder
from afterflow.data.pairs import PairFolder
from afterflow.data.prompts import PromptFile
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.experiment.stages import Chain, Merge, Samples, execute_chain
from afterflow.models.flux2_klein import Flux2Klein
from afterflow.models.pipeline import no_progress_bars
from afterflow.recipes import RECIPES, editing, klein_z_image, papers, papers_forward
from afterflow.rewards.base import RewardModels

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from fake_server import said, serving
from tinies import aesthetic, built, clip, image_reward, mask2former

REPLACED = "weights of model and rewards, size, prompts, batch, iterations, inference_steps, min_reward, fp16 by bf16"
FAMILY = {"SD3": "sd3", "Flux": "flux", "Wan": "wan", "Flux2Klein": "flux2_klein", "ZImage": "z_image"}
FAMILY |= {"QwenImageEdit": "qwen_image_edit"}
PROMPTS = ("a red heart", "a blue circle above a ring", "two green stars", "a sign")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("recipes", nargs="*", help="all of real models unless named")
    options = parser.parse_args()
    torch.set_num_threads(1)
    no_progress_bars()
    modules = (papers.__name__, papers_forward.__name__, klein_z_image.__name__, editing.__name__)
    names = options.recipes or [name for name, recipe in RECIPES.items() if recipe.__module__ in modules]
    about = {"date": date.today().isoformat()} | provenance()
    del about["command"]
    results = read_json(options.json).get("recipes", {})
    for name in names:
        start = time.perf_counter()
        smoke(name)
        results[name] = {"seconds": round(time.perf_counter() - start, 1), "replaced": REPLACED, **about}
        print(name, results[name]["seconds"], flush=True)
        write_json({"command": "python bench/smoke.py", "recipes": results}, options.json, indent=1, show=False)


def smoke(name: str) -> None:
    """Run the recipe in a folder of its own; whatever fails is raised."""
    before = Path.cwd()
    with (
        tempfile.TemporaryDirectory() as home,
        serving(answer) as s,
    ):
        os.chdir(home)
        os.environ["AFTERFLOW_CACHE"] = str(Path(home) / "cache")
        try:
            write_data()
            rewards = tiny_rewards()
            recipe = RECIPES[name]()
            if isinstance(recipe, Run):
                folders = [execute(small(recipe, rewards, s[0]), name).folder]
            else:
                stages = tuple(
                    stage if isinstance(stage, Merge | Samples) else small(stage, rewards, s[0])
                    for stage in recipe.stages
                )
                execute_chain(Chain(recipe.name, stages))
                folders = [stage.folder for stage in stages]
            for folder in folders:
                if not (folder / "lora" / "pytorch_lora_weights.safetensors").is_file():
                    raise SystemExit(f"{name}: {folder} has no LoRA")
        finally:
            os.chdir(before)


def answer(body: dict, number: int) -> dict:
    """A verdict for judges, and ratings of an edit that differ."""
    return said(f'<answer>Image 1 is better</answer> {{"done": {number % 11}, "preserved": {number % 7}}}')


def write_data() -> None:
    """What the recipes expect of a user: files of prompts, and a folder of images."""
    Path("prompts").mkdir()
    for kind in ("pickscore", "hpd", "video"):
        Path(f"prompts/{kind}.txt").write_text("\n".join(PROMPTS))
    Path("prompts/evaluation_metadata.jsonl").write_text(json.dumps({"prompt": "a photo of a bench"}))
    Path("images").mkdir()
    lines, rng = [], np.random.default_rng(0)
    for i, prompt in enumerate(PROMPTS):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(f"images/{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": prompt}))
    Path("images/metadata.jsonl").write_text("\n".join(lines))
    Path("edits").mkdir()
    for i in range(len(PROMPTS)):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(f"edits/{i}.png")
    edits = [{"input": f"{i}.png", "prompt": f"make it {prompt}"} for i, prompt in enumerate(PROMPTS)]
    Path("edits/prompts.jsonl").write_text("\n".join(map(json.dumps, edits)))
    Path("pairs").mkdir()
    for i in range(2 * len(PROMPTS)):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(f"pairs/{i}.png")
    pairs = [{"prompt": p, "chosen": f"{2 * i}.png", "rejected": f"{2 * i + 1}.png"} for i, p in enumerate(PROMPTS)]
    Path("pairs/pairs.jsonl").write_text("\n".join(json.dumps(pair) for pair in pairs))


def tiny_rewards() -> RewardModels:
    weights = {name: str(clip(name)) for name in ("clipscore", "pickscore", "hpsv2")}
    Path("image_reward").mkdir()
    weights["image_reward"] = str(image_reward(Path("image_reward"))[0])
    weights["geneval_hf"] = str(mask2former("mask2former"))
    aesthetic("aesthetic.safetensors")
    return RewardModels(weights=weights | {"aesthetic": "aesthetic.safetensors"})


def small(run: Run, rewards: RewardModels, server: str) -> Run:
    """The same on tiny models, for one iteration."""
    model = built(FAMILY[type(run.model).__name__], "pipeline")
    weights = rewards.weights | {"vlm_edit": f"{server}#judge"}
    if isinstance(model, Flux2Klein):
        model = replace(model, size=64)  # its own pipeline refuses smaller input pictures
    data = run.data
    if isinstance(data, ImageFolder | PairFolder):
        data = replace(data, min_reward=dict.fromkeys(data.min_reward, -100.0))
    elif isinstance(data, MixedPrompts):
        data = replace(data, parts=tuple(few(part) for part in data.parts))
    else:
        data = few(data)
    return run.with_options(
        model=model,
        data=data,
        judge=None if run.judge is None else replace(run.judge, url=server, model="judge"),
        held_out=None if run.evaluation.held_out is None else few(run.evaluation.held_out),
        eval_every=min(run.evaluation.eval_every, 1),
        iterations=1,
        batch=4,
        inference_steps=4,
        mixed_precision="no" if run.optimization.mixed_precision == "no" else "bf16",
        # Weights of rewards that a run has not are refused, and random ones are blind.
        reward_models=replace(
            rewards, weights={k: v for k, v in weights.items() if is_of(k, run)}, ignore_canary=run.rewards
        ),
    )


def is_of(weights: str, run: Run) -> bool:
    """Whether a run has a reward that reads weights of this name; GenEval's rules have several."""
    return any(name == weights or name.startswith(f"{weights}_") for name in run.rewards)


def few(prompts):
    return prompts if isinstance(prompts, PromptFile) else replace(prompts, count=17)


if __name__ == "__main__":
    main()
