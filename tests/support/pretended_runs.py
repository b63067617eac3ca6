"""What tests ask of a process that has the pretended device; it answers with numbers and words."""

import copy
import json
import logging
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import pretended_device
import tinies
import toy
from afterflow.algorithms.flow_opd import FlowOPD
from afterflow.cli.main import main
from afterflow.data.images import ImageFolder
from afterflow.data.prompts import PromptFile, ShapesPrompts
from afterflow.experiment.doctor import examine
from afterflow.experiment.execute import execute
from afterflow.models.pipeline import no_progress_bars
from afterflow.models.wrappers import in_chunks
from afterflow.rewards.base import RewardModels
from afterflow.sampling.conditioning import Pairs
from afterflow.sampling.device_copies import to_device
from afterflow.train.distributed import Processes
from pretended_device import WAITS, recording
from small_runs import METHODS, frames_of, small_run

EDITORS = ("flux_kontext", "qwen_image_edit", "wan_image")
"""Families that are given pictures."""


def start():
    """Switch the device on; what this process says is of no interest."""
    pretended_device.switch_on()
    no_progress_bars()
    logging.disable(logging.WARNING)


def outcome(work):
    """The kind of error that the work ends with, or None."""
    try:
        work()
    except (RuntimeError, TypeError) as error:
        return type(error).__name__
    return None


def outcomes():
    """What mixing the device with the CPU ends with, by the line."""
    there, here = torch.arange(6.0, device="pretend").view(2, 3), torch.arange(6.0).view(2, 3)
    index = torch.tensor([1, 0])
    lines = (
        "there + here",
        "there.add_(here)",
        "here.add_(there)",
        "here + there.sum()",
        "torch.cat([there, here])",
        "there @ here.T",
        "there.gather(1, index[:, None])",
        "there.index_select(0, index)",
        "nn.functional.embedding(index, there)",
        "here[index.to('pretend')]",
        "there.index_put_((index,), here)",
        "torch.where(there > 0, there, here)",
        "there.numpy()",
        "there.pin_memory()",
        "torch.randn(2, generator=torch.Generator(), device='pretend')",
        "there.cpu().copy_(there, non_blocking=True)",
        "here.expand(2, 2, 3).pin_memory()",
        "there + here.sum()",
        "there * 2 + there.sum()",
        "there[index]",
        "there[here > 2]",
        "there.masked_fill(there > 0, here.sum())",
        "there.copy_(here)",
        "here.copy_(there)",
        "torch.randn(2, generator=torch.Generator()).to('pretend')",
        "to_device(here[:1].expand(2, 3), 'pretend')",
    )
    values = {"torch": torch, "to_device": to_device, "nn": nn, "there": there, "here": here, "index": index}
    return {line: outcome(lambda line=line: eval(line, dict(values))) for line in lines}


def waits_by_line():
    """What the host waits for, by the line."""
    there, mask = torch.arange(6.0, device="pretend"), torch.arange(6, device="pretend") > 2
    lines = (
        "there[0].item()",
        "bool(mask.any())",
        "float(there.sum())",
        "there.equal(there)",
        "there.tolist()",
        "there.cpu()",
        "there[mask]",
        "mask.nonzero()",
        "there.unique()",
        "there.repeat_interleave(mask.long())",
        "torch.zeros(3).to('pretend')",
        "torch.tensor([1.0], device='pretend')",
        "there[torch.tensor([0, 1])]",
        "there.repeat_interleave(mask.long(), output_size=3)",
        "to_device(torch.zeros(3), 'pretend')",
        "torch.zeros(3, device='pretend')",
        "there[1:3] * 2",
        "there[mask.long()]",
        "there.masked_fill(mask, 0.0)",
        "there.clone().__setitem__(mask, 0.0)",
        "there + torch.tensor(1.0)",
    )
    kinds = {}
    for line in lines:
        with recording() as events:
            eval(line, {"torch": torch, "to_device": to_device, "there": there, "mask": mask})
        kinds[line] = [event.kind for event in events if event.kind in WAITS]
    return kinds


def for_the_toy(algorithm):
    """The method, with what the toy has: the reward "near", a prompt for a task, and no base model."""
    weights = {"weights": {"near": 1.0}} if "jpeg_compressibility" in algorithm.requirements.weights else {}
    routed = {"route": "prompt", "anchor": None} if isinstance(algorithm, FlowOPD) else {}
    return replace(algorithm, **weights, **routed)


def waits_of_the_toy(method, prompts, chunk, one_pass):
    """How often the host waits in two iterations of the toy: at the most in a step and for a loss, else by the line."""
    algorithm, device = for_the_toy(METHODS[method]), torch.device("pretend", 0)
    model = toy.MLP().to(device)
    still = copy.deepcopy(model).requires_grad_(False)
    wrap = lambda network: in_chunks(network, chunk)

    def pairs(step):
        drawn = toy.preferences(prompts, step)
        rejected = drawn.rejected.to(device) if algorithm.requirements.pairs else None
        return Pairs(drawn.x0.to(device), replace(drawn.cond, device=device), rejected=rejected)

    iterations = toy.learn(
        algorithm,
        model,
        2,
        reference=wrap(still),
        teachers=dict.fromkeys(toy.TASKS, wrap(toy.MLP(seed=1).to(device))),
        score=lambda leaves, *others: toy.score(leaves.cpu(), *others),
        chunk=chunk,
        updates=1,
        processes=Processes(Accelerator()),
        retained_rows=10**6 if one_pass else 0,
        wrap=wrap,
        prompts=lambda step: replace(toy.prompts(prompts), device=device),
        pairs=pairs,
    )
    with recording() as events:
        assert all(metrics["grad_norm"] > 0 for _, metrics in iterations)
    waits = [event for event in events if event.kind in WAITS]
    most_of = {phase: most(wait for wait in waits if wait.phase == phase) for phase in ("step", "loss")}
    return most_of | Counter(f"{wait.kind}, {wait.line}" for wait in waits if wait.phase == "iteration")


def edits(folder):
    """A folder of two requests, each about a picture, with the pictures that are to come of them."""
    folder.mkdir()
    pictures = np.random.default_rng(0).integers(0, 256, (2, 2, 32, 32, 3), dtype=np.uint8)
    lines = []
    for i, (before, after) in enumerate(pictures):
        for name, pixels in ((f"in_{i}.png", before), (f"out_{i}.png", after)):
            Image.fromarray(pixels).save(folder / name)
        lines.append({"prompt": f"request {i}", "input": f"in_{i}.png", "target": f"out_{i}.png", "tag": "counting"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def run_of(method, family, folder, **options):
    """A small run, its pipeline beside its results; the process now works in the folder."""
    os.chdir(folder)
    config, data = tinies.built(family, Path(folder) / "pipeline"), ()
    if family in EDITORS:
        about = edits(Path(folder) / "edits")
        data = PromptFile(str(about / "metadata.jsonl")), ImageFolder(str(about))
    return small_run(method, frames_of(method, config), *data, **options)


def metrics_of(folder):
    """The metrics of a run, without seconds."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "seconds" not in name} for line in lines]


def most(events):
    """The highest number of events in one step, or for one loss."""
    return max(Counter(event.unit for event in events).values(), default=0)


def trained(method, family, folder, **options):
    """Train, and tell the metrics, the waits, and how far the weights have moved."""
    run = run_of(method, family, folder, **options)
    with recording() as events:
        result = execute(run, method).folder
    factors = [factor for file in (result / "lora").glob("*.safetensors") for factor in load_file(file).items()]
    waits = [event for event in events if event.kind in WAITS]
    own = {phase: most(w for w in waits if w.phase == phase and not w.caller) for phase in ("step", "loss")}
    within = [wait for wait in waits if wait.phase in own and wait.caller]
    return {
        "metrics": metrics_of(result),
        "own": own,
        "within": sorted({wait.caller.partition(":")[0] for wait in within}),
        "most_within": most(within),
        "counts": sorted(Counter((e.phase, e.kind, e.line, e.caller) for e in events).items()),
        "moved": sum(x.abs().sum().item() for name, x in factors if "lora_B" in name),
    }


def whole_life(folder):
    """Train with evaluations and checkpoints, in one go and resumed; export, sample and evaluate what was trained."""
    run = run_of("nft", "sd3", folder, held_out=ShapesPrompts(count=2, split="test"), eval_every=1, eval_images=1)
    run = run.with_options(save_every=1, inference_steps=2, sample_every=2)
    at_once = execute(run.with_options(name="at_once"), "nft").folder
    execute(run.with_options(name="resumed", iterations=1), "nft")
    resumed = execute(run.with_options(name="resumed"), "nft", resume=True).folder
    small = ("--lora", str(at_once), "--steps", "2", "--images", "1")
    commands = (
        ["export", str(at_once)],
        ["sample", "pipeline", "a sign", "--out", "grid.png", *small],
        ["eval", "pipeline", "--against", "base", "--prompts", "4", "--draws", "10", "--json", "report.json", *small],
    )
    codes = [main(command) for command in commands]
    loras = [load_file(run / "lora" / "pytorch_lora_weights.safetensors") for run in (at_once, resumed)]
    return {
        "metrics": [metrics_of(run) for run in (at_once, resumed)],
        "held_out": [(run / "held_out.jsonl").read_text().splitlines() for run in (at_once, resumed)],
        "differences": [name for name, x in loras[0].items() if not x.equal(loras[1][name])],
        "codes": codes,
        "files": sorted(str(file.relative_to(folder)) for file in Path(folder).rglob("*.*")),
    }


def findings(folder):
    """What the doctor finds, by check."""
    run = run_of("flow_grpo", "sd3", folder, guidance_scale=3.0)
    return {finding.check: (finding.passed, finding.detail) for finding in examine(run)}


def scored_by_a_network(folder):
    """The metrics of a run whose reward is a network on the device."""
    run = run_of("flow_grpo", "sd3", folder, iterations=1)
    weights = {"clipscore": str(tinies.clip(Path(folder) / "clip", words=77))}
    models = RewardModels(weights=weights, device="pretend", ignore_canary=("clipscore",))
    run = replace(run, algorithm=replace(run.algorithm, weights={"clipscore": 1.0}), reward_models=models)
    return metrics_of(execute(run, "clip").folder)
