"""The parts of a run, loaded: its model, who is asked beside it, its optimizer, and where it goes on."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch._inductor import config as inductor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .algorithms.base import Models, OnPolicy
from .models.base import Model, blocks
from .models.teacher import Teacher
from .models.tune import LoRA, Wrapped, attach, before_training, frozen, without_adapters
from .models.wrappers import guided, in_chunks, in_context
from .run import Run
from .seeds import number
from .train import state
from .train.ema import Ema
from .train.memory import Memory


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

    @property
    def kind(self) -> str:
        """The folder's name of what is trained."""
        return "lora" if isinstance(self.run.tune, LoRA) else "model"

    def leave(self, folder: Path) -> None:
        """Write what is trained, averaged, as diffusers loads it: a LoRA's folder, or a pipeline's."""
        with self.averaged():
            if isinstance(self.run.tune, LoRA):
                self.model.save_lora(folder)
            else:
                self.model.save_pipeline(folder)

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
    if run.gradient_checkpointing:
        model.module.enable_gradient_checkpointing()  # type: ignore[operator]
    if run.compile:
        compile_blocks(model.module)
    run = on_own_grid(run, model)
    with torch.random.fork_rng():
        torch.manual_seed(number(run.seed, "adapter"))  # peft draws a new LoRA from the global generator
        parameters = attach(model, run.tune)
    optimizer = adamw(run, parameters.values())
    ema = Ema(parameters, run.ema) if run.ema is not None else None
    # Before the checkpoint is loaded: the reference is where training began, not where it goes on.
    models = velocities(run, model, accelerator)
    history = run.algorithm.asks.history if isinstance(run.algorithm, OnPolicy) else 0
    memory = Memory(history) if history else None
    first = state.load(saved[-1], parameters, optimizer, ema, accelerator.scaler, memory) if resume else 0
    run.folder.mkdir(parents=True, exist_ok=True)
    return Session(run, model, models, parameters, accelerator.prepare(optimizer), ema, accelerator, memory, first)


def compile_blocks(network: nn.Module) -> None:
    """Compile what a transformer repeats; blocks of a kind share it."""
    # Else passes with and without gradients round to bf16 in different places, and ratios are off by 2e-4.
    inductor.emulate_precision_casts = True
    for block in blocks(network):
        block.compile()


def adamw(run: Run, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    options = {"lr": run.learning_rate, "betas": run.betas, "eps": run.adam_eps, "weight_decay": run.weight_decay}
    if run.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **options)
    from bitsandbytes.optim.adamw import AdamW8bit

    return AdamW8bit(parameters, **options)


def on_own_grid(run: Run, model: Model) -> Run:
    """The run with the model's own schedule, or its shift, where its algorithm names none."""
    own = {"schedule": model.schedule, "shift": model.schedule.warp}
    missing = {name: value for name, value in own.items() if getattr(run.algorithm, name, value) is None}
    return replace(run, algorithm=replace(run.algorithm, **missing)) if missing else run  # type: ignore[arg-type]


def velocities(run: Run, model: Model, accelerator: Accelerator) -> Models:
    """The policy and whom else the algorithm asks for, in the same precision and chunks."""
    precise = lambda velocity: in_context(velocity, partial(precision, accelerator, run.gradient_checkpointing))
    drawing = lambda velocity, scale=run.guidance_scale: in_chunks(
        guided(precise(velocity), scale, model.combine), run.chunk
    )
    field = model.velocity(model.module)
    if not isinstance(run.algorithm, OnPolicy):
        return Models(precise(field), guided=drawing(field))
    # Adapters are switched around all chunks of a call, not for each.
    wrapped = lambda part, scale=run.guidance_scale: in_context(drawing(part[0], scale), part[1])
    asks = run.algorithm.asks
    teachers = {}
    for teacher in run.teachers:
        teachers[teacher.name] = wrapped(specialist(run, model, teacher), teacher.guidance(run.guidance_scale))
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
def precision(accelerator: Accelerator, checkpointing: bool) -> Iterator[None]:
    """The mixed precision of the run."""
    # On CPUs the fused attention is slow backwards in bf16: a step of the tiny pipeline takes 1.4 times as long.  But
    # what checkpointing computes again comes after this context has ended, and must be the same attention.
    slow = accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16" and not checkpointing
    with accelerator.autocast(), sdpa_kernel(SDPBackend.MATH) if slow else nullcontext():
        yield
