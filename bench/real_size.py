"""Speed of rollout and update at the size of a released model, with random weights: speed does not depend on them.

    python bench/real_size.py --arch sd35_medium --size 512 --json bench/results/real_size.json
    python bench/real_size.py --arch sd35_medium --size 512 --chunk 8 --count
    python bench/real_size.py --arch tiny
    python bench/real_size.py --cpu

For each method one iteration of a few prompts, timed by stage after one that warms up: images a second, seconds of an
iteration beside DanceGRPO's, and which share of the device's peak (dense bf16) the network's own FLOPs make up (MFU).
ratio_max is 1 where the update replays the rollout.  With --cpu it is real_size_cpu.py that runs, and times little.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
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
from afterflow.experiment.cost_estimate import trial_iteration
from afterflow.experiment.doctor import peak_flops
from afterflow.experiment.network_counts import count_passes
from afterflow.experiment.setup import compile_blocks
from afterflow.models.adapters import Full, LoRA, attach
from afterflow.models.base import default_device
from afterflow.models.pipeline import Model
from afterflow.models.pipeline_files import TINY
from afterflow.models.sd3 import SD3
from afterflow.models.wrappers import in_chunks
from afterflow.sampling.conditioning import Conditioning, Embedding, condition
from afterflow.sampling.seeds import generator
from afterflow.train.clock import Clock
from afterflow.train.explore import ExploreOptions

REWARD = {"reward": 1.0}
METHODS = {
    "flow_grpo": FlowGRPO(REWARD, steps=10, group=16, beta=0.0),
    "dance_grpo": DanceGRPO(REWARD, steps=20, group=16, fraction=1.0),
    "mix_grpo": MixGRPO(REWARD, steps=20, group=16),
    "branch_grpo": BranchGRPO(REWARD, steps=20),
    "branch_grpo_mix": replace(BranchGRPO(REWARD, steps=20), mix=SlidingWindow(every=1, order="random", idle=1)),
}


def outline(arch: str, size: int | None, folder: Path) -> Model:
    """The model without weights."""
    if arch == "tiny":
        return SD3(str(TINY)).load("meta")
    write_configurations(SD35_MEDIUM, folder)
    return SD3(str(folder), dtype="bfloat16", size=size).load("meta")


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


def timed(algorithm: OnPolicy, model: Model, cond: Conditioning, chunk: int, device: torch.device) -> dict[str, float]:
    """Seconds of the rollout and of the update, and rows of each, the padding of chunks included."""
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    models, parameters = Models(in_chunks(model.velocity(model.module), chunk)), list(model.module.parameters())
    for warm in (True, False):
        clock, ratios = Clock(), []
        with autocast:
            iteration = trial_iteration(algorithm, models, cond, ExploreOptions(0, model.latent_shape, chunk), clock)
            with clock("update"):
                for rows in iteration.updates[0][0]:
                    loss, metrics = algorithm.loss(models, iteration.rows[rows])
                    loss.backward()
                    ratios.append(float(metrics["ratio_max"]))
        for parameter in parameters:
            parameter.grad = None
        if warm and device.type == "cuda":
            torch.cuda.synchronize()
    seconds = clock.read()
    plan = algorithm.plan(0, generator(0))
    padded = lambda rows: -(-rows // chunk) * chunk
    images = len(cond) * plan.widths[-1]
    return {
        "images": images,
        "rollout": seconds["seconds/rollout"],
        "update": seconds["seconds/update"],
        "rows_rollout": sum(padded(len(cond) * width) for width in plan.widths[:-1]),
        "rows_update": padded(len(iteration.rows)),
        "ratio_max": max(ratios),
    }


def prepared(options: argparse.Namespace, folder: Path) -> tuple[Model, dict]:
    """Return the model without weights and with what is trained, and what its passes of a chunk need."""
    model = outline(options.arch, options.size, folder)
    attach(model, LoRA() if options.tune == "lora" else Full())
    if options.checkpointing:
        model.module.enable_gradient_checkpointing()
    activations, forward, backward = count_passes(model, options.chunk)
    return model, {
        "parameters": sum(parameter.numel() for parameter in model.module.parameters()),
        "gib_activations": activations / 2**30,
        "tflop_forward": forward / 1e12,
        "tflop_backward": backward / 1e12,
    }


def ready(options: argparse.Namespace, model: Model) -> Conditioning:
    """Give the model random weights on the device, compiled if asked, and return encoded prompts for it."""
    device = default_device()
    materialise(model, device)
    if options.compile:
        compile_blocks(model.module)
    return prompts(model, options.prompts, device)


def speed(
    options: argparse.Namespace, model: Model, counted: dict, cond: Conditioning, algorithm: OnPolicy
) -> dict[str, float]:
    """Return how fast a model that is ready draws and learns with a method."""
    device = default_device()
    timing, peak = timed(algorithm, model, cond, options.chunk, device), peak_flops(device)
    timing["images_per_second"] = timing["images"] / (timing["rollout"] + timing["update"])
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
    dance = results["dance_grpo"]["rollout"] + results["dance_grpo"]["update"]
    for timing in results.values():
        timing["over_dance_grpo"] = (timing["rollout"] + timing["update"]) / dance
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
