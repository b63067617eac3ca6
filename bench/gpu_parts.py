"""What bench/gpu.py measures: the parts, and the cases of each.  No weights are fetched: models have random ones."""

import argparse
import gc
import json
import os
import runpy
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import torch
from harness import seconds_of

from afterflow.experiment.cards import peak_flops, reset_peak_memory

if TYPE_CHECKING:
    from afterflow.algorithms.base import OnPolicy
    from afterflow.models.pipeline import Model

ROOT = Path(__file__).parents[1]
COMPILED_DEVIATION = 1e-5
"""How far from 1 ratios of compiled blocks may be in bf16."""
Case = tuple[str, Callable[[], dict]]


@dataclass(frozen=True)
class Part:
    """Measurements that share a process."""

    seconds: int
    """Seconds that its process may take at the least; it may also take what those before it have left."""
    cases: Callable[[bool], Iterator[Case]]
    """Yields its cases: a name and what measures it.  It is told whether this is a rehearsal."""
    about: str
    """What it shows."""


def doctor(rehearsal: bool) -> Iterator[Case]:
    """Yield what `afterflow doctor` finds of the shipped pipelines, in fp32 and bf16."""
    from afterflow.experiment.doctor import examine
    from afterflow.recipes import RECIPES

    def findings(recipe: str, precision: str) -> dict:
        made = list(examine(RECIPES[recipe]().with_options(mixed_precision=precision)))
        wrong = [f"{finding.check}: {finding.detail}" for finding in made if finding.passed is False]
        checks = {finding.check: [finding.passed, finding.detail] for finding in made}
        return {"checks": checks} | ({"failed": "; ".join(wrong)} if wrong else {})

    for recipe in ("shapes_flow_grpo", "moving_flow_grpo")[: 1 if rehearsal else 2]:
        for precision in ("no", "bf16"):
            yield f"{recipe}, {precision}", lambda recipe=recipe, precision=precision: findings(recipe, precision)


def ratios(rehearsal: bool) -> Iterator[Case]:
    """Yield the ratios of a replayed rollout by precision and by kernel of the attention."""
    from torch.nn.attention import SDPBackend

    names = ("MATH", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION")[: 2 if rehearsal else 4]
    for precision in ("float32", "bfloat16", "float16")[: 2 if rehearsal else 3]:
        model = cache(partial(short_model, rehearsal, precision))
        for name in names:
            backend = SDPBackend.__members__[name]
            yield f"{precision}, {name.lower()}", lambda model=model, backend=backend: ratio(model(), backend)


def short_model(rehearsal: bool, precision: str) -> "Model":
    """Return a model with random weights, two blocks and the widths of SD3.5 medium, and a LoRA."""
    from real_layers import shortened
    from real_size import materialise
    from released import RELEASED, write_configurations

    from afterflow.models.adapters import LoRA, attach
    from afterflow.models.base import default_device
    from afterflow.models.sd3 import SD3

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        write_configurations(shortened(RELEASED["SD3.5 medium"]).files, Path(folder))
        config = SD3("tiny") if rehearsal else SD3(folder, size=512)
        model = replace(config, dtype=precision).load("meta")
    attach(model, LoRA())
    materialise(model, default_device())
    return model


def ratio(model: "Model", backend: object) -> dict:
    """Return how far ratios are from 1 where Flow-GRPO replays its own rollout, before any update.

    The replay has gradients, as in training: a kernel that keeps what its backward pass needs may be another one.
    """
    from real_size import prompts, trained_once
    from torch.nn.attention import sdpa_kernel

    from afterflow.algorithms.flow_grpo import FlowGRPO

    algorithm = FlowGRPO({"reward": 1.0}, steps=4, group=4, beta=0.0)
    try:
        with sdpa_kernel(backend):
            made = trained_once(algorithm, model, prompts(model, 2, model.device), 4, model.module.dtype)
    except RuntimeError as error:
        if "No available kernel" not in str(error) and "No viable backend" not in str(error):
            raise
        return {"refused": "torch has no such kernel for this precision here"}
    return judged({"largest_deviation": made["ratio_deviation"]}, made["ratio_deviation"], 0.0)


def judged(result: dict, deviation: float, allowed: float) -> dict:
    """Return a result, failed where a ratio is farther from 1 than is allowed, or is NaN."""
    return result if deviation <= allowed else result | {"failed": f"a ratio is off by {deviation:.1e}"}


def speeds(checkpointing: bool, compiled: bool) -> Callable[[bool], Iterator[Case]]:
    """Return the cases of five methods at the size of SD3.5 medium, 512 px: images a second, and shares of the peak."""

    def cases(rehearsal: bool) -> Iterator[Case]:
        from real_size import METHODS, prepared, ready, speed, timed

        from afterflow.experiment.network_counts import network_counts

        options = argparse.Namespace(
            arch="tiny" if rehearsal else "sd35_medium",
            size=None if rehearsal else 512,
            tune="lora",
            chunk=chunk_of(checkpointing),
            prompts=1,
            checkpointing=checkpointing,
            compile=compiled,
        )
        model, counted = prepared(options, pipeline_folder(), network_counts)
        cond = ready(options, model)
        about = {"chunk": options.chunk, "peak_flops": peak_flops(model.device)}

        def first_passes() -> dict:
            short = replace(METHODS["flow_grpo"], steps=2, group=2)
            return {"seconds": seconds_of(lambda: timed(short, model, cond, options.chunk, warm_up=False))}

        def measured(algorithm: "OnPolicy") -> dict:
            timing = speed(options, model, counted, cond, algorithm, warm_up=False)
            return judged(timing, timing["ratio_deviation"], COMPILED_DEVIATION if compiled else 0.0)

        yield "counted", lambda: counted | about
        # All methods have passes of one shape, so that these warm up for all, and are compiled here.
        yield "first passes", first_passes
        for name, algorithm in list(short_methods().items())[: 1 if rehearsal and compiled else None]:
            yield name, lambda algorithm=algorithm: measured(algorithm)

    return cases


def pipeline_folder() -> Path:
    """Return the folder of SD3.5 medium's configuration files.  All parts share it, and so find each other's counts."""
    from afterflow.models.base import cache_folder

    folder = cache_folder() / "sd35_medium"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def short_methods() -> dict:
    """Return the methods that are timed, with short rollouts of eight images: a row takes as long in a long one."""
    from real_size import METHODS

    eight = lambda name: {"splits": (0, 2, 4)} if name.startswith("branch") else {"group": 8}
    return {name: replace(algorithm, steps=6, **eight(name)) for name, algorithm in METHODS.items()}


def chunk_of(checkpointing: bool) -> int:
    """Return how many rows of 512 px a pass may have, 1, 2, 4 or 8, so that eight images fill their passes.

    `--plan` counts 2.04 GiB of activations a row without checkpointing, and 4.5 GiB of weights and optimizer.
    """
    if not torch.cuda.is_available():
        return 4
    room = 0.8 * torch.cuda.get_device_properties(0).total_memory / 2**30 - 6
    return max(rows for rows in (1, 2, 4, 8) if rows == 1 or rows * (0.5 if checkpointing else 2.5) <= room)


def peak_gib() -> float | None:
    """Return the most memory that tensors had on the card since the last reset; None without one."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None


def reset_peak() -> None:
    """Count the peak of memory anew, from what is in use without the garbage of the case before."""
    gc.collect()
    reset_peak_memory()


def gib_now() -> float | None:
    """Return the memory that tensors have on the card; None without one."""
    return torch.cuda.memory_allocated() / 2**30 if torch.cuda.is_available() else None


def memory(rehearsal: bool) -> Iterator[Case]:
    """Yield the peak of memory of a whole iteration, optimizer included, beside what `--plan` counts for the run."""
    for method in ("flow_grpo", "diffusion_nft"):
        for checkpointing in (True, False):
            name = f"{method}, {'checkpointing' if checkpointing else 'plain'}"
            yield (
                name,
                lambda method=method, checkpointing=checkpointing: planned(rehearsal, method, checkpointing),
            )


def planned(rehearsal: bool, method: str, checkpointing: bool) -> dict:
    """Return the counted and the measured memory of an iteration of a method."""
    from real_size import config_of
    from real_size_cpu import Trial, count_needs, one_iteration, run_of

    from afterflow.models.base import default_device

    chunk = chunk_of(checkpointing)
    with tempfile.TemporaryDirectory() as folder:
        options = {"chunk": chunk, "gradient_checkpointing": checkpointing}
        run = run_of("SD3.5 medium", method, Path(folder), {"size": 512}, **options)
        run = replace(run, model=config_of("tiny" if rehearsal else "sd35_medium", 512, pipeline_folder()))
        counted = count_needs(run)[1] / 2**30
        reset_peak()
        before = gib_now()
        _, measured = one_iteration(Trial.build(run, default_device()))
    result = {"chunk": chunk, "counted_gib": counted, "grad_norm": measured["grad_norm"]}
    if before is None:
        return result
    used = peak_gib() - before
    return result | {"measured_gib": used, "measured_over_counted": used / counted}


def waits(rehearsal: bool) -> Iterator[Case]:
    """Yield how often the host waits in two iterations of tiny pipelines, beside the counts of a pretended device."""
    # It has the name of a module of the tests, which it imports.
    bench = runpy.run_path(str(ROOT / "bench" / "pretended_device.py"))
    cell, start = bench["cell"], bench["start"]
    stored = json.loads((ROOT / "bench" / "results" / "pretended_device.json").read_text())["cells"]
    of_sd3 = [f"{method}, sd3" for method in ("flow_grpo", "mix_grpo", "branch_grpo", "nft", "sft")]
    others = [f"flow_grpo, {family}" for family in ("wan", "flux2_klein", "qwen_image", "wan_pair")]
    if rehearsal:
        start()

    def compared(pair: str) -> dict:
        with waits_noted():
            counted = cell(*pair.split(", "))
        numbers = ("step", "loss", "network", "iteration")
        real, pretended = ({name: counts[name] for name in numbers} for counts in (counted, stored[pair]))
        more = [name for name in ("step", "loss") if real[name] > pretended[name]]
        result = {"real": real, "pretended": pretended, "lines": counted["lines"]}
        return result | ({"failed": f"more waits than counted: {', '.join(more)}"} if more else {})

    first, *rest = of_sd3 + others
    yield first, lambda: compared(first)
    yield "profiler, flow_grpo, sd3", profiled  # after a run that has loaded the kernels
    for pair in [] if rehearsal else rest:
        yield pair, lambda pair=pair: compared(pair)


@contextmanager
def waits_noted() -> Iterator[None]:
    """Note the waits that torch warns of, at the lines of afterflow that are being run, as the pretended device does.

    On a machine without a card nothing is noted here: the pretended device does.
    """
    from pretended_device import NUMBER, recorder

    if not torch.cuda.is_available():
        yield
        return

    def note(message: Warning | str, *about: object) -> None:
        if "synchronizing CUDA operation" in str(message):
            frame = sys._getframe(1)
            while frame is not None and frame.f_code.co_filename == warnings.__file__:
                frame = frame.f_back
            recorder.note(NUMBER, frame)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def profiled() -> dict:
    """Return how often CUDA was waited for and copied in two iterations of Flow-GRPO, as torch's profiler counts it.

    A run loads, encodes, times and saves around its iterations, as often for one as for three.
    """
    one, three = (profiled_calls(iterations) for iterations in (1, 3))
    more = {key: three.get(key, 0) - one.get(key, 0) for key in sorted({*one, *three})}
    return {"calls": {key: count for key, count in more.items() if count}}


def profiled_calls(iterations: int) -> dict[str, int]:
    """Return how often a run of so many iterations called CUDA, and copied, by name."""
    from torch.profiler import ProfilerActivity, profile

    from pretended_runs import trained

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with (
        tempfile.TemporaryDirectory() as folder,
        chdir(folder),  # `trained` changes into it; where it fails, others are measured after it
        patch.dict(os.environ, AFTERFLOW_CACHE=f"{folder}/cache"),  # what one run encoded, no other may find
        profile(activities=kinds) as profiler,
    ):
        trained("flow_grpo", "sd3", folder, iterations=iterations)
    counted = {event.key: event.count for event in profiler.key_averages()}
    return {key: count for key, count in counted.items() if key.startswith(("cuda", "Memcpy"))}


PARTS = {
    "doctor": Part(75, doctor, "afterflow doctor on the shipped pipelines, in fp32 and bf16"),
    "ratios": Part(45, ratios, "a replayed rollout has a ratio of 1, by precision and kernel of the attention"),
    "waits": Part(65, waits, "how often the host waits, beside the counts of the pretended device"),
    "memory": Part(60, memory, "peak of an iteration of SD3.5 medium's size, beside the plan"),
    "speed": Part(60, speeds(False, False), "images a second and share of the peak, five methods"),
    "speed, checkpointing": Part(60, speeds(True, False), "the same, activations computed again"),
    "speed, compiled": Part(80, speeds(False, True), "the same, blocks compiled"),
    "speed, compiled, checkpointing": Part(80, speeds(True, True), "the same, both"),
}
