"""Speed of rollout and update at the size of a released model, with random weights: speed does not depend on them.

    python bench/real_size.py --arch sd35_medium --size 512 --json bench/results/real_size.json
    python bench/real_size.py --arch sd35_medium --size 512 --chunk 8 --count
    python bench/real_size.py --arch tiny

For each method one iteration of a few prompts, timed by stage after one that warms up: images a second, seconds of an
iteration beside DanceGRPO's, and which share of the device's peak (dense bf16) the network's own FLOPs make up (MFU).
ratio_max is 1 where the update replays the rollout.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from afterflow.algorithms.base import Models, OnPolicy
from afterflow.algorithms.branch_grpo import BranchGRPO
from afterflow.algorithms.dance_grpo import DanceGRPO
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.mix_grpo import MixGRPO
from afterflow.algorithms.windows import SlidingWindow
from afterflow.experiment.cost_estimate import passes, tried
from afterflow.experiment.doctor import PEAK
from afterflow.experiment.provenance import git_commit, hardware
from afterflow.experiment.setup import compile_blocks
from afterflow.models.adapters import Full, LoRA, attach
from afterflow.models.base import default_device
from afterflow.models.pipeline import TINY, PipelineModel
from afterflow.models.sd3 import SD3
from afterflow.models.wrappers import in_chunks
from afterflow.sampling.conditioning import Conditioning, Embedding, condition
from afterflow.sampling.seeds import generator
from afterflow.train.clock import Clock

REWARD = {"reward": 1.0}
METHODS = {
    "flow_grpo": FlowGRPO(REWARD, steps=10, group=16, beta=0.0),
    "dance_grpo": DanceGRPO(REWARD, steps=20, group=16, fraction=1.0),
    "mix_grpo": MixGRPO(REWARD, steps=20, group=16),
    "branch_grpo": BranchGRPO(REWARD, steps=20),
    "branch_grpo_mix": replace(BranchGRPO(REWARD, steps=20), mix=SlidingWindow(every=1, order="random", idle=1)),
}
SD35_MEDIUM = {
    "model_index.json": {
        "_class_name": "StableDiffusion3Pipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "tokenizer_3": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    },
    "scheduler/scheduler_config.json": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    "text_encoder/config.json": {"max_position_embeddings": 77},
    "text_encoder_3/config.json": {},
    "transformer/config.json": {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 384,
        "dual_attention_layers": list(range(13)),
        "qk_norm": "rms_norm",
    },
    "vae/config.json": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 16,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
}
"""Stable Diffusion 3.5 medium as its configuration files have it."""


def outline(arch: str, size: int | None, place: Path) -> PipelineModel:
    """The model without weights."""
    if arch == "tiny":
        return SD3(str(TINY)).load("meta")
    for name, content in SD35_MEDIUM.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(json.dumps(content))
    return SD3(str(place), dtype="bfloat16", size=size).load("meta")


def materialise(model: PipelineModel, device: torch.device) -> None:
    """Random weights; buffers, which are sines and cosines, are random as well."""
    model.device = device
    model.module.to_empty(device=device)
    with torch.no_grad():
        for tensor in [*model.module.parameters(), *model.module.buffers()]:
            tensor.normal_(0, 0.02)


def prompts(model: PipelineModel, count: int, device: torch.device) -> Conditioning:
    length, width, pooled = model.text_shape
    sequence = torch.randn(count, length, width, device=device)
    embedding = Embedding(sequence, None if pooled is None else torch.randn(count, pooled, device=device))
    return condition(embedding, embedding.rows(slice(0, 1)), [{"prompt": str(i)} for i in range(count)])


def timed(
    algorithm: OnPolicy, model: PipelineModel, cond: Conditioning, chunk: int, device: torch.device
) -> dict[str, float]:
    """Seconds of the rollout and of the update, and rows of each, the padding of chunks included."""
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    models, parameters = Models(in_chunks(model.velocity(model.module), chunk)), list(model.module.parameters())
    for warm in (True, False):
        clock, ratios = Clock(), []
        with autocast:
            found = tried(algorithm, models, cond, model.latent_shape, 0, chunk, clock)
            with clock("update"):
                for rows in found.updates[0][0]:
                    loss, metrics = algorithm.loss(models, found.rows[rows])
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
        "rows_update": padded(len(found.rows)),
        "ratio_max": max(ratios),
    }


def measure(options: argparse.Namespace) -> dict:
    device = default_device()
    peak = next((p for name, p in PEAK.items() if device.type == "cuda" and name in torch.cuda.get_device_name()), None)
    with tempfile.TemporaryDirectory() as place:
        model = outline(options.arch, options.size, Path(place))
        attach(model, LoRA() if options.tune == "lora" else Full())
        if options.checkpointing:
            model.module.enable_gradient_checkpointing()
        kept, forward, backward = passes(model, options.chunk)
        counted = {
            "parameters": sum(parameter.numel() for parameter in model.module.parameters()),
            "gib_activations": kept / 2**30,
            "tflop_forward": forward / 1e12,
            "tflop_backward": backward / 1e12,
        }
        if options.count:
            return counted | {"command": " ".join(["python", *sys.argv])}
        materialise(model, device)
        if options.compile:
            compile_blocks(model.module)
        cond, found = prompts(model, options.prompts, device), {}
        for name, algorithm in METHODS.items():
            each = timed(algorithm, model, cond, options.chunk, device)
            each["images_per_second"] = each["images"] / (each["rollout"] + each["update"])
            if peak is not None:
                each["mfu_rollout"] = each["rows_rollout"] * forward / options.chunk / each["rollout"] / peak
                each["mfu_update"] = each["rows_update"] * (forward + backward) / options.chunk / each["update"] / peak
            found[name] = each
            print(name, {key: round(value, 4) for key, value in each.items()}, file=sys.stderr)
    dance = found["dance_grpo"]["rollout"] + found["dance_grpo"]["update"]
    for each in found.values():
        each["over_dance_grpo"] = (each["rollout"] + each["update"]) / dance
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    about = {
        key: getattr(options, key) for key in ("arch", "size", "tune", "chunk", "prompts", "checkpointing", "compile")
    }
    told = {"gib": memory, "peak_flops": peak, "torch": torch.__version__, "command": " ".join(["python", *sys.argv])}
    return {"methods": found, **counted, **about, **told, "git_commit": git_commit(), "hardware": hardware()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=["tiny", "sd35_medium"], default="tiny")
    parser.add_argument("--size", type=int, default=None, help="pixels of a side")
    parser.add_argument("--tune", choices=["lora", "full"], default="lora")
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--checkpointing", action="store_true", help="compute activations again in the backward pass")
    parser.add_argument("--count", action="store_true", help="count memory and FLOPs of a chunk, and run nothing")
    parser.add_argument("--compile", action="store_true", help="the repeated blocks, for rollout and update alike")
    parser.add_argument("--json", default="-", help="file, or - for standard output")
    options = parser.parse_args()
    line = json.dumps(measure(options))
    if options.json != "-":
        Path(options.json).write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
