"""A run under way: its parts joined, followed and saved.  Only here do borders meet algorithms."""

import json
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .algorithms.base import Models, OnPolicy, Supervised
from .cond import Cond
from .data.images import Images
from .data.prompts import check_turns, rows
from .evaluate import decoded, encoded, finished_in_parts, spread
from .imageset import image_pairs
from .models.base import Model
from .models.teacher import Teacher
from .models.tune import LoRA, Wrapped, attach, before_training, frozen, without_adapters
from .models.wrappers import guided, in_chunks, in_context
from .preferences import win_rates
from .record import to_json
from .rewards import NEEDS
from .run import Run, learning_rate
from .scoring import ask, both_orders, compare, scorer
from .seeds import generator, number
from .shapes.prompts import validate
from .train import state
from .train.budget import Budget
from .train.clock import Clock
from .train.ema import Ema
from .train.explore import Iteration, explore, supervised
from .train.log import MetricsFile, grid, write_record
from .train.loop import train
from .train.memory import Memory
from .train.progress import Progress

SHOWN = 8
"""Prompts of the sample pictures, four images each."""


def execute(run: Run, recipe: str, resume: bool = False) -> Path:
    """Train as configured; the run's folder, with `lora/` or `model/` in it when done.

    ValueError before anything is trained when the configuration cannot be run, Stopped when training cannot go on.
    """
    records = prompt_records(run)
    held_out = held_out_records(run)
    session = prepare(run, resume)
    write_record(run.folder, to_json(run), recipe, run.seed)
    if run.track != "none":
        session.accelerator.init_trackers("afterflow", {"run": json.dumps(to_json(run))})
    clock = Clock()
    budget = Budget(run.iterations, run.budget_seconds)
    source, prompts = examples(session, records, clock)
    check_before_sampling(session, prompts)
    steps = train(
        run.algorithm,
        session.models,
        source,
        session.parameters,
        session.optimizer,
        session.accelerator,
        max_grad_norm=run.max_grad_norm,
        learning_rate=learning_rate(run, budget),
        ema=session.ema,
        seed=run.seed,
        clock=clock,
    )
    follow(session, steps, Window(session, prompts, held_out), budget)
    with session.averaged():
        if isinstance(run.tune, LoRA):
            session.model.save_lora(run.folder / "lora")
        else:
            session.model.save_pipeline(run.folder / "model")
    session.accelerator.end_training()
    return run.folder


@dataclass(frozen=True)
class Session:
    """The parts of a run, loaded."""

    run: Run
    model: Model
    models: Models
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    accelerator: Accelerator
    memory: Memory | None
    first: int
    """The iteration to begin with."""

    def save(self, step: int) -> None:
        """A checkpoint of the state after iteration `step`."""
        scaler, keep = self.accelerator.scaler, self.run.keep
        folder = self.run.folder / "checkpoints"
        state.save(folder, step, self.parameters, self.optimizer, self.ema, scaler, self.memory, keep)

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the policy is the one that is evaluated and saved."""
        return nullcontext() if self.ema is None else self.ema.applied(self.parameters)


def prepare(run: Run, resume: bool) -> Session:
    """Load the model, attach what is trained, and go back to the last checkpoint when asked."""
    saved = state.checkpoints(run.folder / "checkpoints")
    if resume and not saved:
        raise ValueError(f"{run.folder}: no checkpoint to resume from; start the run anew")
    if saved and not resume:
        raise ValueError(f"{run.folder} already holds a run; give this one another --name, or go on with --resume")
    if run.threads:
        torch.set_num_threads(run.threads)
    AcceleratorState._reset_state()  # a process may train several runs, each in a precision of its own
    accelerator = Accelerator(
        mixed_precision=run.mixed_precision,
        log_with=None if run.track == "none" else run.track,
        project_dir=run.folder,
    )
    if accelerator.num_processes > 1:
        raise ValueError(f"{accelerator.num_processes} processes would each train alone; start one, without a launcher")
    if run.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("mixed_precision = fp16 does nothing on a CPU; take bf16 or no")
    model = run.model.load(accelerator.device)
    with torch.random.fork_rng():
        torch.manual_seed(number(run.seed, "adapter"))  # peft draws a new LoRA from the global generator
        parameters = attach(model, run.tune)
    optimizer = torch.optim.AdamW(
        parameters.values(), run.learning_rate, run.betas, run.adam_eps, run.weight_decay, fused=True
    )
    ema = Ema(parameters, run.ema) if run.ema is not None else None
    # Before the checkpoint is loaded: the reference is where training began, not where it goes on.
    models = velocities(run, model, accelerator)
    history = run.algorithm.asks.history if isinstance(run.algorithm, OnPolicy) else 0
    memory = Memory(history) if history else None
    first = state.load(saved[-1], parameters, optimizer, ema, accelerator.scaler, memory) if resume else 0
    run.folder.mkdir(parents=True, exist_ok=True)
    return Session(run, model, models, parameters, accelerator.prepare(optimizer), ema, accelerator, memory, first)


def velocities(run: Run, model: Model, accelerator: Accelerator) -> Models:
    """The policy and whom else the algorithm asks for, in the same precision and chunks."""
    precise = lambda velocity: in_context(velocity, partial(precision, accelerator))
    drawing = lambda velocity, scale=run.guidance_scale: in_chunks(guided(precise(velocity), scale), run.chunk)
    field = model.velocity(model.module)
    if not isinstance(run.algorithm, OnPolicy):
        return Models(precise(field), guided=drawing(field))
    # Adapters are switched around all chunks of a call, not for each.
    wrapped = lambda part, scale=run.guidance_scale: in_context(drawing(part[0], scale), part[1])
    asks = run.algorithm.asks
    teachers = {}
    for teacher in run.teachers:
        scale = run.guidance_scale if teacher.guidance_scale is None else teacher.guidance_scale
        teachers[teacher.name] = wrapped(specialist(run, model, teacher), scale)
    anchor = wrapped(without_adapters(model, run.tune)) if asks.anchor == "base" else teachers.get(asks.anchor)
    return Models(
        drawing(field),
        reference=wrapped(before_training(model, run.tune)) if asks.reference else None,
        teachers={task: teachers[teacher.name] for teacher in run.teachers for task in teacher.tasks},
        anchor=anchor,
    )


def specialist(run: Run, model: Model, teacher: Teacher) -> Wrapped:
    """A teacher's velocity: beside a LoRA that is trained another adapter, beside trained weights another model."""
    if teacher.lora is None:
        return without_adapters(model, run.tune)
    if isinstance(run.tune, LoRA):
        return frozen(model, teacher.lora, f"teacher_{teacher.name}")
    other = run.model.load(next(model.module.parameters()).device)
    other.load_lora(teacher.lora)
    return other.velocity(other.module.requires_grad_(False)), nullcontext


@contextmanager
def precision(accelerator: Accelerator) -> Iterator[None]:
    """The mixed precision of the run."""
    # On CPUs the fused attention is slow backwards in bf16: a step of the tiny pipeline takes 1.4 times as long.
    slow = accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16"
    with accelerator.autocast(), sdpa_kernel(SDPBackend.MATH) if slow else nullcontext():
        yield


def check_before_sampling(session: Session, prompts: Cond) -> None:
    """ValueError for a judge that answers nonsense, and for a budget too short for the rollout of one iteration."""
    run, algorithm = session.run, session.run.algorithm
    if not isinstance(algorithm, OnPolicy):
        return
    if run.judge is not None:
        like = torch.zeros(2, *session.model.latent_shape, device=prompts.index.device)
        blank, record = session.model.decode(like)[None], [prompts.prompts[0]]
        compare(run.judge, blank, record, both_orders(1, 2), generator(run.seed, "probe"))
    if run.budget_seconds is not None:
        plan = algorithm.plan(0, generator(run.seed, 0, "plan"))
        passes = plan.evaluations * plan.widths[-1] * run.batch / run.chunk
        rows = prompts[torch.arange(run.chunk) % len(prompts)]
        x = torch.zeros(run.chunk, *session.model.latent_shape, device=prompts.index.device)
        forward = lambda: session.models.policy(x, x.new_ones(run.chunk), rows)
        with torch.no_grad():
            forward()  # the first pass also warms up
            start = time.perf_counter()
            forward()
        least = passes * (time.perf_counter() - start)
        if least > run.budget_seconds:
            takes = f"the rollout of one iteration takes about {least:.2g} s"
            raise ValueError(f"budget_seconds = {run.budget_seconds:g}: {takes}; raise it, or lower batch")


def needs(run: Run, names: Iterable[str]) -> dict[str, Callable]:
    """What these rewards, and the judge, ask of a record."""
    asked = {name: NEEDS[name] for name in names if name in NEEDS}
    return asked if run.judge is None else asked | {"the judge": validate}


def prompt_records(run: Run) -> list[dict]:
    """The prompts to explore, each fit for every reward; none where images come with theirs."""
    if isinstance(run.data, Images) or not isinstance(run.algorithm, OnPolicy):
        return []
    records, route = run.data.records(run.seed, needs(run, run.algorithm.asks.rewards)), run.algorithm.asks.route
    check_turns(records, run.turns)
    if route is not None:
        check_routes(records, route, [task for teacher in run.teachers for task in teacher.tasks])
    return records


def check_routes(records: Sequence[dict], route: str, tasks: Sequence[str]) -> None:
    """ValueError for a prompt without a task, and for a task without a teacher."""
    for record in records:
        if not isinstance(record.get(route), str):
            raise ValueError(f"prompt {record['prompt']!r} has no task under {route!r}, so no teacher; write one to it")
        if record[route] not in tasks:
            task = f"the task {record[route]!r} of prompt {record['prompt']!r}"
            raise ValueError(f"{task} has no teacher; there are teachers for {', '.join(tasks)}")


def held_out_records(run: Run) -> list[dict]:
    """The prompts to evaluate on, each fit for every reward that is measured there."""
    return [] if run.held_out is None else run.held_out.records(run.seed, needs(run, run.watched))


def known_records(run: Run) -> dict[str, dict]:
    """The run's own prompts, held out or not, by their text."""
    return {record["prompt"]: record for record in [*held_out_records(run), *prompt_records(run)]}


def examples(session: Session, records: Sequence[dict], clock: Clock) -> tuple[Iterator[Iteration], Cond]:
    """The iterations to train on, and the encoded prompts they are about."""
    run, model = session.run, session.model
    if isinstance(run.data, Images):
        assert isinstance(run.algorithm, Supervised)
        pairs, prompts = image_pairs(run, run.data, model)
        return supervised(run.algorithm, pairs, session.first, run.iterations, run.chunk), prompts
    assert isinstance(run.algorithm, OnPolicy)
    prompts = encoded(model, records)
    source = explore(
        run.algorithm,
        session.models,
        lambda step: prompts[rows(records, run.turns, step, run.batch, run.seed)],
        scorer(model, run.algorithm, run.judge),
        model.latent_shape,
        session.first,
        run.iterations,
        seed=run.seed,
        updates=run.updates,
        chunk=run.chunk,
        clock=clock,
        memory=session.memory,
    )
    return source, prompts


class Window:
    """What a user looks at while training goes on: pictures from the same noise, rewards of held-out prompts."""

    def __init__(self, session: Session, prompts: Cond, held_out: Sequence[dict]) -> None:
        self.session = session
        # Prompts of a tag stand together, so the shown ones are spread over all of them.
        self.shown = prompts[torch.linspace(0, len(prompts) - 1, min(SHOWN, len(prompts))).long()]
        self.held_out = encoded(session.model, held_out) if held_out else None
        self.base = self._base_pictures() if self.held_out is not None and session.run.judge is not None else None

    def _base_pictures(self) -> np.ndarray:
        """What the held-out prompts look like before training; kept, because a resumed run has no such model."""
        assert self.held_out is not None
        file = self.session.run.folder / "held_out_base.npy"
        if self.session.first == 0:
            np.save(file, self.pictures(self.held_out, self.session.run.eval_images))
        elif not file.is_file():
            raise ValueError(f"{file} is gone, and with it the base of the win rate; start the run anew")
        return np.load(file, allow_pickle=False)

    def finished(self, cond: Cond, per_prompt: int) -> Tensor:
        """Latents (P, per_prompt, ...) by the averaged policy."""
        session, model = self.session, self.session.model
        run, velocity = session.run, session.models.guided or session.models.policy
        with session.averaged():
            return finished_in_parts(velocity, model, cond, per_prompt, run.inference_steps, run.seed, run.chunk)

    def pictures(self, cond: Cond, per_prompt: int) -> np.ndarray:
        """uint8 (P, per_prompt, H, W, 3) by the averaged policy."""
        return decoded(self.session.model, self.finished(cond, per_prompt))

    def save_samples(self, step: int) -> None:
        images = self.pictures(self.shown, 4)
        captions = [record["prompt"] for record in self.shown.records() for _ in range(4)]
        sheet = grid(images.reshape(-1, *images.shape[2:]), captions, 8, max(1, 96 // images.shape[2]))
        folder = self.session.run.folder / "samples"
        folder.mkdir(exist_ok=True)
        sheet.save(folder / f"step_{step:06d}.png")

    def evaluate(self) -> dict[str, float]:
        """The mean of each reward over the held-out prompts, and how much pictures differ."""
        run, start = self.session.run, time.perf_counter()
        assert self.held_out is not None
        latents, records = self.finished(self.held_out, run.eval_images), self.held_out.records()
        images = decoded(self.session.model, latents)
        means = {name: ask(name, images, records).mean().item() for name in run.watched} | spread(latents)
        means = {f"eval/{name}": value for name, value in means.items()}
        if self.base is not None:
            means["eval/win_rate"] = self._win_rate(images, records)
        return means | {"seconds/eval": time.perf_counter() - start}

    def _win_rate(self, images: np.ndarray, records: Sequence[dict]) -> float:
        """How often the judge prefers the picture (P, K, H, W, 3) to the base's from the same noise."""
        judge, K = self.session.run.judge, images.shape[1]
        assert judge is not None and self.base is not None
        both = np.stack([images, self.base], 2).reshape(-1, 2, *images.shape[2:])
        of_pair = [record for record in records for _ in range(K)]
        # The same flaws of the judge at every iteration, so that a curve shows the policy alone.
        judged = compare(judge, both, of_pair, both_orders(len(both), 2), generator(self.session.run.seed, "held out"))
        return win_rates(judged)[:, 0].mean().item()


def follow(session: Session, steps: Iterator[tuple[int, dict[str, float]]], window: Window, budget: Budget) -> None:
    """Log, draw and save while the iterations go by; Ctrl-C ends after the one under way."""
    run, start = session.run, time.perf_counter()
    log = MetricsFile(run.folder / "metrics.jsonl", session.first)
    budget.used = log.before.get("seconds_trained", 0.0)
    if session.first and budget.ends(session.first - 1):
        return
    before = start
    with interruptible() as interrupted, Progress(run.name, budget, session.first) as progress:
        for step, metrics in steps:
            budget.used += time.perf_counter() - before
            last = budget.ends(step) or bool(interrupted)
            if due(run.eval_every, step, last):
                metrics |= window.evaluate()
            metrics |= {"seconds": time.perf_counter() - start, "seconds_trained": budget.used}
            log.write(step, metrics)
            session.accelerator.log(metrics, step)
            progress.show(step, metrics)
            if due(run.sample_every, step, last):
                window.save_samples(step)
            if last or (step + 1) % run.save_every == 0:
                session.save(step)
            if interrupted:
                print(f"Stopped after iteration {step}; go on with: afterflow train --resume {run.folder}")
            if last:
                break
            before = time.perf_counter()
    log.close()


def due(every: int, step: int, last: bool) -> bool:
    return every > 0 and (step % every == 0 or last)


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """A list that Ctrl-C fills, instead of tearing down whatever is under way; a second Ctrl-C does tear it down."""
    signals: list[int] = []

    def note(number: int, frame: object) -> None:
        signals.append(number)
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield signals
    finally:
        signal.signal(signal.SIGINT, previous)
