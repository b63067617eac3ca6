"""A run: its configuration, and how its parts are joined.  Only here do borders meet algorithms."""

import dataclasses
import json
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from .algorithms.base import Models, OnPolicy, Supervised
from .algorithms.flow_grpo import FlowGRPO
from .algorithms.sft import SFT
from .cond import Cond, Pairs, condition
from .data.images import ShapesImages, empty_tokens
from .data.prompts import PromptFile, ShapesPrompts, batch
from .evaluate import pictures, starting_noise
from .models.base import Model
from .models.sd3 import SD3
from .models.tiny import TinyParts
from .models.tune import Full, LoRA, attach, reference
from .models.wrappers import guided, in_chunks, in_context
from .names import unknown
from .record import to_json
from .rewards import NEEDS, REWARDS
from .train import state
from .train.clock import Clock
from .train.ema import Ema
from .train.explore import explore, supervised
from .train.log import MetricsFile, grid, write_record
from .train.loop import train
from .train.progress import Progress

Algorithm = SFT | FlowGRPO


@dataclass(frozen=True)
class Run:
    algorithm: Algorithm
    data: ShapesPrompts | PromptFile | ShapesImages
    model: SD3 | TinyParts = SD3()
    tune: LoRA | Full = LoRA()
    name: str = "run"
    """The run is kept in runs/NAME."""
    iterations: int = 100
    batch: int = 16
    """Prompts per iteration, or images per update of supervised training."""
    updates: int = 1
    """Optimizer updates per iteration; after the first the rollout is no longer quite on-policy."""
    chunk: int = 64
    """Rows of one forward pass, the same in rollout and update (ratios are then exactly 1 at first)."""
    guidance_scale: float = 1.0
    """Classifier-free guidance in rollout, update and pictures; 1 is without (half the work)."""
    learning_rate: float = 3e-4
    decay: Literal["constant", "cosine", "late"] = "constant"
    """cosine: the learning rate falls to a tenth over the run; late: over its last fifth, in a straight line."""
    warmup: int = 0
    """Iterations over which the learning rate rises from 0."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4
    adam_eps: float = 1e-8
    max_grad_norm: float = 1.0
    ema: float | None = 0.9
    """Decay per update of the average that is evaluated and saved; None: the last weights are."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    seed: int = 0
    threads: int | None = None
    """CPU threads of torch; None leaves its own choice."""
    inference_steps: int = 20
    """ODE steps of the sample pictures."""
    sample_every: int = 20
    """Iterations between sample pictures; 0: never."""
    save_every: int = 50
    keep: int = 2
    """Checkpoints kept."""
    track: Literal["none", "tensorboard", "wandb", "trackio"] = "none"

    def __post_init__(self) -> None:
        for name in ("iterations", "batch", "updates", "chunk", "save_every", "keep", "inference_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 1")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate = {self.learning_rate}: it must be positive")
        if isinstance(self.algorithm, Supervised) != isinstance(self.data, ShapesImages):
            need = "images with prompts" if isinstance(self.algorithm, Supervised) else "prompts"
            raise ValueError(f"{type(self.algorithm).__name__} learns from {need}, not from {type(self.data).__name__}")
        if isinstance(self.algorithm, OnPolicy):
            if not self.algorithm.weights:
                raise ValueError("algorithm.weights is empty: name at least one reward and its weight")
            for name in self.algorithm.weights:
                if name not in REWARDS:
                    raise unknown("reward", name, REWARDS)

    @property
    def folder(self) -> Path:
        return Path("runs") / self.name


def learning_rate(run: Run) -> Callable[[int], float]:
    """The rate of each iteration."""

    def rate(step: int) -> float:
        done = step / run.iterations
        fall = {"constant": 0.0, "cosine": 0.5 - 0.5 * math.cos(math.pi * done), "late": max(0.0, 5 * done - 4)}
        return run.learning_rate * min(1.0, (step + 1) / (run.warmup + 1)) * (1 - 0.9 * fall[run.decay])

    return rate


def policy(run: Run, model: Model, accelerator: Accelerator) -> Callable:
    """Velocity → Velocity: the wrappers that rollout, update, reference and pictures share."""
    return lambda v: in_chunks(guided(in_context(v, accelerator.autocast), run.guidance_scale), run.chunk)


def execute(run: Run, recipe: str, resume: bool = False) -> Path:
    """Train as configured; the run's folder, with `lora/` or `model/` in it when done.

    ValueError before anything is loaded or written when the configuration cannot be run, Stopped when training
    cannot go on.
    """
    records = prompt_records(run)
    saved = state.checkpoints(run.folder / "checkpoints")
    if resume and not saved:
        raise ValueError(f"{run.folder}: no checkpoint to resume from; start the run anew")
    if run.threads:
        torch.set_num_threads(run.threads)
    accelerator = Accelerator(
        mixed_precision=run.mixed_precision,
        log_with=None if run.track == "none" else run.track,
        project_dir=run.folder,
    )
    model = run.model.load(accelerator.device)
    parameters = attach(model, run.tune)
    optimizer = torch.optim.AdamW(
        parameters.values(), run.learning_rate, run.betas, run.adam_eps, run.weight_decay, fused=True
    )
    ema = Ema(parameters, run.ema) if run.ema is not None else None
    wrap = policy(run, model, accelerator)
    needs = isinstance(run.algorithm, OnPolicy) and run.algorithm.needs_reference
    models = Models(wrap(model.velocity(model.module)), wrap(reference(model, run.tune)) if needs else None)
    first = state.load(saved[-1], parameters, optimizer, ema) if resume else 0
    optimizer = accelerator.prepare(optimizer)
    config = to_json(run)
    run.folder.mkdir(parents=True, exist_ok=True)
    write_record(run.folder, config, recipe, run.seed)
    if run.track != "none":
        accelerator.init_trackers("afterflow", {"run": json.dumps(config)})

    clock = Clock()
    if isinstance(run.data, ShapesImages):
        pairs, shown = image_pairs(run, run.data, model)
        source = supervised(pairs, first, run.iterations, run.chunk)
    else:
        assert isinstance(run.algorithm, OnPolicy)
        shown = encoded(model, records)
        source = explore(
            run.algorithm,
            models,
            lambda step: shown[batch(len(records), step, run.batch, run.seed)],
            scorer(model, run.algorithm.weights),
            model.latent_shape,
            first,
            run.iterations,
            seed=run.seed,
            updates=run.updates,
            chunk=run.chunk,
            clock=clock,
            context=nullcontext,
        )
    iterations = train(
        run.algorithm,
        models,
        source,
        parameters,
        optimizer,
        accelerator,
        max_grad_norm=run.max_grad_norm,
        learning_rate=learning_rate(run),
        ema=ema,
        seed=run.seed,
        clock=clock,
    )
    follow(run, iterations, first, model, models, parameters, optimizer, ema, shown[torch.arange(8)], accelerator)
    with ema.applied(parameters) if ema is not None else nullcontext():
        if isinstance(run.tune, LoRA):
            model.save_lora(run.folder / "lora")
        else:
            model.save_pipeline(run.folder / "model")
    accelerator.end_training()
    return run.folder


def prompt_records(run: Run) -> list[dict]:
    """The prompts to explore, each fit for every reward; none where images come with theirs."""
    if isinstance(run.data, ShapesImages) or not isinstance(run.algorithm, OnPolicy):
        return []
    return run.data.records(run.seed, {name: NEEDS[name] for name in run.algorithm.weights if name in NEEDS})


def encoded(model: Model, records: Sequence[dict]) -> Cond:
    """One row per record."""
    texts = [record["prompt"] for record in records]
    embedding, empty = model.encode(texts), model.encode([""])
    return condition(embedding, empty, records)


def image_pairs(run: Run, data: ShapesImages, model: Model) -> tuple[Callable[[int], Pairs], Cond]:
    """Each iteration's batch of latents with prompts, all encoded beforehand; and the prompts."""
    images, records = data.draw(run.seed)
    latents = model.encode_images(images)
    place = {record["prompt"]: i for i, record in enumerate({r["prompt"]: r for r in records}.values())}
    cond = encoded(model, [{"prompt": prompt} for prompt in place])
    index = torch.tensor([place[record["prompt"]] for record in records])

    def pairs(step: int) -> Pairs:
        rows = batch(len(index), step, run.batch, run.seed)
        chosen = cond[index[rows]]
        padding = empty_tokens(data.empty_tokens, step, run.seed)
        return Pairs(latents[rows.to(latents.device)], dataclasses.replace(chosen, padding=padding))

    return pairs, cond


def scorer(model: Model, names: Mapping[str, float]):
    """Decode finished latents and ask every reward."""

    def score(leaves: Tensor, records: Sequence[dict], clock: Clock) -> dict[str, Tensor]:
        P, G = leaves.shape[:2]
        with clock("decode"):
            images = model.decode(leaves.flatten(0, 1))
        each = [record for record in records for _ in range(G)]
        with clock("reward"):
            return {
                name: torch.from_numpy(np.asarray(REWARDS[name](images, each), np.float32)).view(P, G).to(leaves.device)
                for name in names
            }

    return score


def follow(run, iterations, first, model, models, parameters, optimizer, ema, shown, accelerator) -> None:
    """Log, draw and save while the iterations go by; Ctrl-C ends after the one under way."""
    metrics_file = MetricsFile(run.folder / "metrics.jsonl", first)
    noise = starting_noise(shown, 4, model.latent_shape, run.seed)
    interrupted = []
    previous = signal.signal(signal.SIGINT, lambda *_: interrupted.append(True))
    start = time.perf_counter()
    try:
        with Progress(run.name, first, run.iterations) as progress:
            for step, metrics in iterations:
                metrics["seconds"] = time.perf_counter() - start
                metrics_file.write(step, metrics)
                if run.track != "none":
                    accelerator.log(metrics, step)
                progress.show(step, metrics)
                last = step == run.iterations - 1 or interrupted
                if run.sample_every and (step % run.sample_every == 0 or last):
                    with ema.applied(parameters) if ema is not None else nullcontext():
                        images = pictures(models.policy, model, shown, noise, run.inference_steps)
                    captions = [record["prompt"] for record in shown.records() for _ in range(4)]
                    picture = grid(images.reshape(-1, *images.shape[2:]), captions, 8, max(1, 96 // images.shape[2]))
                    (run.folder / "samples").mkdir(exist_ok=True)
                    picture.save(run.folder / "samples" / f"step_{step:06d}.png")
                if (step + 1) % run.save_every == 0 or last:
                    saved = state.save(run.folder / "checkpoints", step, parameters, optimizer, ema, run.keep)
                if interrupted:
                    print(f"stopped after iteration {step}; go on with: afterflow train --resume {run.folder}")
                    break
    finally:
        signal.signal(signal.SIGINT, previous)
        metrics_file.close()
