"""Speed of rollout and update at the size of a released model, with random weights: speed does not depend on them.

    python bench/real_size.py --arch sd35_medium --size 512 --json bench/results/real_size.json
    python bench/real_size.py --arch sd35_medium --size 512 --chunk 8 --count
    python bench/real_size.py --arch tiny
    python bench/real_size.py --cpu

For each method one iteration of a few prompts, timed by stage after one that warms up: images a second where passes
are full, seconds of an image beside DanceGRPO's, and which share of the device's peak (dense bf16) the network's own
FLOPs make up (MFU), without those that checkpointing computes again.  Where the update replays the rollout, ratio_max
is 1 and ratio_deviation 0.  With --cpu it is real_size_cpu.py that runs, and times little.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from harness import make_parser, provenance, write_json
from released import SD35_MEDIUM, write_configurations
from torch import nn

from afterflow.algorithms.base import Models, OnPolicy
from afterflow.algorithms.branch_grpo import BranchGRPO
from afterflow.algorithms.dance_grpo import DanceGRPO
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.mix_grpo import MixGRPO
from afterflow.algorithms.windows import SlidingWindow
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment.cards import peak_flops
from afterflow.experiment.config import Run
from afterflow.experiment.cost_estimate import trial_iteration
from afterflow.experiment.doctor import padded_rows
from afterflow.experiment.network_counts import NetworkCounts, count_network
from afterflow.experiment.setup import compile_blocks
from afterflow.models.adapters import Full, LoRA, attach
from afterflow.models.base import default_device
from afterflow.models.pipeline import Model
from afterflow.models.pipeline_files import TINY
from afterflow.models.sd3 import SD3
from afterflow.models.wrappers import in_chunks, in_context
from afterflow.sampling.conditioning import Conditioning, Embedding, Velocity, condition
from afterflow.sampling.seeds import generator
from afterflow.train.clock import Clock
from afterflow.train.explore import ExploreOptions, Iteration

REWARD = {"reward": 1.0}
METHODS = {
    "flow_grpo": FlowGRPO(REWARD, steps=10, group=16, beta=0.0),
    "dance_grpo": DanceGRPO(REWARD, steps=20, group=16, fraction=1.0),
    "mix_grpo": MixGRPO(REWARD, steps=20, group=16),
    "branch_grpo": BranchGRPO(REWARD, steps=20),
    "branch_grpo_mix": replace(BranchGRPO(REWARD, steps=20), mix=SlidingWindow(every=1, order="random", idle=1)),
}


def config_of(arch: str, size: int | None, folder: Path) -> SD3:
    """Return the configuration of a model whose files lie in a folder; they are written where they do not yet."""
    if arch == "tiny":
        return SD3(str(TINY))
    if not (folder / "model_index.json").is_file():
        write_configurations(SD35_MEDIUM, folder)
    return SD3(str(folder), dtype="bfloat16", size=size)


def materialise(model: Model, device: torch.device, allocate: Callable[[nn.Module], object] | None = None) -> None:
    """Random weights; buffers, which are sines and cosines, are random as well.

    allocate: gives the network memory for its tensors; None leaves that to torch.
    """
    model.device = device
    if allocate is None:
        model.module.to_empty(device=device)
    else:
        allocate(model.module)
    with torch.no_grad():
        for tensor in [*model.module.parameters(), *model.module.buffers()]:
            tensor.normal_(0, 0.02)
    # Qwen-Image keeps its turns, complex numbers of length 1, beside its buffers.
    for part in model.module.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, torch.Tensor) and value.is_meta:
                angles = torch.randn(value.shape, device=device)
                setattr(part, name, torch.polar(torch.ones_like(angles), angles))


def prompts(model: Model, count: int, device: torch.device, edits: bool = False) -> Conditioning:
    """Random encoded prompts, each about a picture where it `edits`."""
    length, width, pooled = model.text_shape
    sequence = torch.randn(count, length, width, device=device)
    pictures = None
    if edits:
        pictures = torch.randn(count, 1, *model.input_shape, device=device)
    embedding = Embedding(
        sequence, None if pooled is None else torch.randn(count, pooled, device=device), pictures=pictures
    )
    return condition(embedding, embedding.rows(slice(0, 1)), [{"prompt": str(i)} for i in range(count)])


def precise(velocity: Velocity, device: torch.device, dtype: torch.dtype) -> Velocity:
    """Return a velocity computed in a precision below fp32, each call in a context of its own, as in training.

    A context around rollout and update gives the update what the rollout has cast without gradients: torch kept that
    until its pull request 165068.
    """
    if dtype == torch.float32:
        return velocity
    return in_context(velocity, partial(torch.autocast, device.type, dtype))


def trained_once(
    algorithm: OnPolicy, model: Model, cond: Conditioning, chunk: int, dtype: torch.dtype
) -> dict[str, float]:
    """Return the seconds of a rollout and of its update, the update's rows, and how far ratios are from 1."""
    models = Models(in_chunks(precise(model.velocity(model.module), model.device, dtype), chunk))
    model.module.zero_grad()  # of an iteration that has failed
    clock = Clock()
    iteration = trial_iteration(algorithm, models, cond, ExploreOptions(0, model.latent_shape, chunk), clock)
    with clock("update"):
        ratios = replayed(algorithm, models, iteration)
    model.module.zero_grad()
    return {
        "rollout": clock.seconds["rollout"],
        "update": clock.seconds["update"],
        "rows": len(iteration.rows),
        "ratio_max": ratios[:, 1].max().item(),
        "ratio_deviation": (ratios - 1).abs().max().item(),
    }


def replayed(algorithm: OnPolicy, models: Models, iteration: Iteration) -> torch.Tensor:
    """Carry out the backward passes of an update; return mean and largest ratio of each, (n, 2), NaN where one is."""
    metrics = []
    for rows in iteration.updates[0][0]:
        loss, measured = algorithm.loss(models, iteration.rows[rows])
        loss.backward()
        metrics.append([float(measured[name]) for name in ("ratio_mean", "ratio_max")])
    return torch.tensor(metrics, dtype=torch.float64)


def timed(algorithm: OnPolicy, model: Model, cond: Conditioning, chunk: int, warm_up: bool = True) -> dict[str, float]:
    """Return seconds of rollout and update, and rows of each, the padding of chunks included; images a second.

    A pass of few states is padded, and takes as long as a full one.  With more prompts passes are full, so images a
    second are those of full passes: from the seconds of a row and the rows without padding.
    warm_up: whether an iteration that is not timed comes first.
    """
    dtype = torch.bfloat16 if model.device.type == "cuda" else torch.float32
    for _ in range(1 + warm_up):
        made = trained_once(algorithm, model, cond, chunk, dtype)
    plan = algorithm.plan(0, generator(0))
    timing = {
        "images": len(cond) * plan.widths[-1],
        "rollout": made["rollout"],
        "update": made["update"],
        "rows_rollout": padded_rows(plan, len(cond), chunk),
        "rows_update": -(-made["rows"] // chunk) * chunk,
        "ratio_max": made["ratio_max"],
        "ratio_deviation": made["ratio_deviation"],
    }
    rows = {"rollout": len(cond) * sum(plan.widths[:-1]), "update": made["rows"]}
    seconds = sum(count * timing[stage] / timing[f"rows_{stage}"] for stage, count in rows.items())
    return timing | {"images_per_second": timing["images"] / seconds}


def prepared(
    options: argparse.Namespace, folder: Path, count: Callable[[Run], NetworkCounts] = count_network
) -> tuple[Model, dict]:
    """Return the model without weights and with what is trained, and what its passes of a chunk need.

    count: counts what the network of a run needs.
    """
    config = config_of(options.arch, options.size, folder)
    model = config.load("meta")
    attach(model, tuned(options))
    if options.checkpointing:
        model.module.enable_gradient_checkpointing()
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    return model, {"parameters": parameters} | counted_passes(options, config, count)


def tuned(options: argparse.Namespace) -> LoRA | Full:
    """Return what is trained."""
    return LoRA() if options.tune == "lora" else Full()


def counted_passes(options: argparse.Namespace, config: SD3, count: Callable[[Run], NetworkCounts]) -> dict[str, float]:
    """Return what a chunk's passes need in the precision they compute in, as `--plan` counts it.

    What checkpointing computes again is no work of the network's own, so that it is counted beside the backward pass.
    """
    mixed = config.dtype == "bfloat16" or default_device().type == "cuda"
    run = Run(FlowGRPO({"jpeg_compressibility": 1.0}), ShapesPrompts(), config, tuned(options))
    run = run.with_options(chunk=options.chunk, mixed_precision="bf16" if mixed else "no")
    plain = count(run)
    computed = count(run.with_options(gradient_checkpointing=True)) if options.checkpointing else plain
    return {
        "gib_activations": computed.saved / 2**30,
        "tflop_forward": plain.forward / 1e12,
        "tflop_backward": plain.backward / 1e12,
        "tflop_recomputed": (computed.backward - plain.backward) / 1e12,
    }


def ready(options: argparse.Namespace, model: Model) -> Conditioning:
    """Give the model random weights on the device, compiled if asked, and return encoded prompts for it."""
    device = default_device()
    materialise(model, device)
    if options.compile:
        compile_blocks(model.module)
    return prompts(model, options.prompts, device)


def speed(
    options: argparse.Namespace,
    model: Model,
    counted: dict,
    cond: Conditioning,
    algorithm: OnPolicy,
    warm_up: bool = True,
) -> dict[str, float]:
    """Return how fast a model that is ready draws and learns with a method."""
    timing, peak = timed(algorithm, model, cond, options.chunk, warm_up), peak_flops(model.device)
    if peak is not None:
        forward, backward = (1e12 * counted[name] / options.chunk for name in ("tflop_forward", "tflop_backward"))
        timing["mfu_rollout"] = timing["rows_rollout"] * forward / timing["rollout"] / peak
        timing["mfu_update"] = timing["rows_update"] * (forward + backward) / timing["update"] / peak
    return timing


def measure(options: argparse.Namespace) -> dict:
    device = default_device()
    with tempfile.TemporaryDirectory() as folder:
        model, counted = prepared(options, Path(folder))
        if options.count:
            return counted | {"command": " ".join(["python", *sys.argv])}
        cond, results = ready(options, model), {}
        for name, algorithm in METHODS.items():
            results[name] = timing = speed(options, model, counted, cond, algorithm)
            print(name, {key: round(value, 4) for key, value in timing.items()}, file=sys.stderr)
    for timing in results.values():
        timing["over_dance_grpo"] = results["dance_grpo"]["images_per_second"] / timing["images_per_second"]
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    about = {
        key: getattr(options, key) for key in ("arch", "size", "tune", "chunk", "prompts", "checkpointing", "compile")
    }
    about |= {"gib": memory, "peak_flops": peak_flops(device), "torch": torch.__version__}
    return {"methods": results, **counted, **about, **provenance()}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--arch", choices=["tiny", "sd35_medium"], default="tiny")
    parser.add_argument("--size", type=int, default=None, help="pixels of a side")
    parser.add_argument("--tune", choices=["lora", "full"], default="lora")
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--checkpointing", action="store_true", help="compute activations again in the backward pass")
    parser.add_argument("--count", action="store_true", help="count memory and FLOPs of a chunk, and run nothing")
    parser.add_argument("--compile", action="store_true", help="the repeated blocks, for rollout and update alike")
    parser.add_argument("--cpu", action="store_true", help="whole released networks on this CPU, see real_size_cpu.py")
    options = parser.parse_args()
    if options.cpu:
        from real_size_cpu import STORED, measure_all

        sys.exit(min(1, measure_all([], STORED if options.json == "-" else options.json)))
    write_json(measure(options), options.json)


if __name__ == "__main__":
    main()
