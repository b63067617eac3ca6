"""A small run of every method on the shipped pipeline, in a process or several: what evidence of faults is made of."""

import json
import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from afterflow.algorithms.awm import AWM
from afterflow.algorithms.base import Algorithm, explores
from afterflow.algorithms.branch_grpo import BranchGRPO
from afterflow.algorithms.crd import CRD
from afterflow.algorithms.dance_grpo import DanceGRPO
from afterflow.algorithms.ddpo import DDPO
from afterflow.algorithms.dgpo import DGPO
from afterflow.algorithms.diffusion_nft import DiffusionNFT
from afterflow.algorithms.dpo import DPO
from afterflow.algorithms.flow_awr import FlowAWR
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.flow_opd import FlowOPD
from afterflow.algorithms.lag import Lag
from afterflow.algorithms.mix_grpo import MixGRPO
from afterflow.algorithms.online_dpo import OnlineDPO
from afterflow.algorithms.pref_grpo import PrefGRPO
from afterflow.algorithms.sft import SFT
from afterflow.algorithms.soar import SOAR
from afterflow.algorithms.v_grpo import VGRPO
from afterflow.algorithms.windows import SlidingWindow
from afterflow.data.images import ShapesImages
from afterflow.data.pairs import SampledPairs
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.models.adapters import Full, LoRA, Teacher
from afterflow.models.sd3 import SD3
from afterflow.rewards.shapes_judge import ShapesJudge
from afterflow.sampling.training_times import TrainingTimes
from afterflow.train.checkpoint import list_checkpoints

WEIGHTS = {"shapes_partial": 1.0}
TAGS = ("counting", "colors")
METHODS: dict[str, Algorithm] = {
    "sft": SFT(dropout=0.1),
    "soar": SOAR(points=2),
    "dpo": DPO(beta=100.0),
    "ddpo": DDPO(WEIGHTS, steps=4, group=2, history=8, min_count=2),
    "flow_grpo": FlowGRPO(WEIGHTS, steps=4, group=4, beta=0.01),
    "dance_grpo": DanceGRPO(WEIGHTS, steps=4, group=4),
    "mix_grpo": MixGRPO(WEIGHTS, steps=5, group=4, window=SlidingWindow(width=2, every=2, idle=1)),
    "branch_grpo": BranchGRPO(WEIGHTS, steps=4, splits=(0, 1)),
    "pref_grpo": PrefGRPO(steps=4, group=4),
    "flow_opd": FlowOPD(steps=4, group=2),
    "nft": DiffusionNFT(WEIGHTS, steps=4, group=4, lag=Lag(start=0.5)),
    "awm": AWM(WEIGHTS, steps=6, group=4, times=TrainingTimes(2, "strata", shared="batch")),
    "v_grpo": VGRPO(WEIGHTS, steps=4, group=4),
    "flow_awr": FlowAWR(WEIGHTS, steps=4, group=4),
    "dgpo": DGPO(WEIGHTS, steps=4, group=4, times=TrainingTimes(2, shared="group")),
    "crd": CRD(WEIGHTS, steps=4, group=4),
    "online_dpo": OnlineDPO(WEIGHTS, steps=4, group=4, times=TrainingTimes(2, shared="group")),
}
CLOCKS = ("seconds",)


def run_of(method: str, iterations: int, **options) -> Run:
    algorithm = METHODS[method]
    exploring = explores(algorithm)
    fields = dict(
        tune=LoRA(rank=4, alpha=8) if exploring else Full(),
        name=method,
        iterations=iterations,
        batch=4,
        updates=2 if exploring and method != "flow_opd" else 1,
        chunk=8,
        learning_rate=1e-3,
        held_out=ShapesPrompts("test", count=4, tags=TAGS),
        eval_every=2,
        eval_rewards=("shapes_fidelity",),
        inference_steps=4,
        sample_every=2,
        save_every=1,
        threads=1,
    )
    data = ShapesPrompts(count=40, tags=TAGS) if exploring else ShapesImages(count=64, tags=TAGS)
    if algorithm.requirements.pairs:
        data = SampledPairs(ShapesPrompts(count=40, tags=TAGS), WEIGHTS, per_prompt=2, steps=4)
    judge = ShapesJudge(noise=0.1, bias=0.1) if method == "pref_grpo" else None
    teachers = (Teacher("guided", None, TAGS, guidance_scale=2.5),) if method == "flow_opd" else ()
    return Run(algorithm, data, SD3("tiny"), teachers=teachers, judge=judge).with_options(**(fields | options))


def work(run: Run) -> None:
    """Start the run, or go on with it."""
    execute(run, run.name, resume=bool(list_checkpoints(run.folder / "checkpoints")))


def start(script: str, arguments: list[str], folder: Path, processes: int = 1, **variables: str) -> subprocess.Popen:
    """This script's own process, or as many as torchrun starts, in a folder."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"} | variables
    command = [sys.executable, *launcher, str(Path(script).resolve()), *arguments]
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finished(process: subprocess.Popen) -> None:
    _, output = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run failed: {output.decode()[-2000:]}")


def metrics_of(folder: Path) -> list[dict]:
    """Without clocks."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith(CLOCKS)} for line in lines]


def tensors_of(folder: Path) -> dict[str, dict]:
    """What the run left; safetensors writes its header in any order."""
    files = [file for result in ("lora", "model", "best") for file in (folder / result).rglob("*.safetensors")]
    assert files
    return {str(file.relative_to(folder)): load_file(file) for file in sorted(files)}
