"""The parts of a run, loaded: its model, who is asked beside it, its optimizer, and where it goes on."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors import SafetensorError
from torch import nn
from torch._inductor import config as inductor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..algorithms.base import Models, explores
from ..models.adapters import LoRA, Wrapped, as_it_is, attach, before_training, frozen, trainable, without_adapters
from ..models.base import Model, blocks
from ..models.teacher import Teacher
from ..models.wrappers import as_many, guided, in_chunks, in_context
from ..sampling.conditioning import Velocity
from ..sampling.seeds import number
from ..system.errors import TrainingStopped
from ..train import checkpoint as state
from ..train.distributed import Processes, make_accelerator
from ..train.ema import Ema
from ..train.reward_history import RewardHistory
from ..train.sharding import gather_network, reshard, shard_network
from .compatibility import upgrade
from .config import Run
from .run_folder import RunFolder
from .serialization import differences, to_json


@dataclass(frozen=True)
class Session:
    """The parts of a run, loaded."""

    run: Run
    model: Model
    models: Models
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    processes: Processes
    memory: RewardHistory | None
    first: int
    """The iteration to begin with."""

    def save(self, step: int) -> None:
        """A checkpoint of the state after iteration `step`; TrainingStopped where the disk does not take it."""
        folder, scaler = self.run.folder / "checkpoints", self.processes.accelerator.scaler
        weights = state.WeightState(self.parameters, self.optimizer, self.ema, scaler, self.memory, self.processes)
        try:
            state.save_checkpoint(folder, step, weights, self.run.checkpoints.keep_checkpoints)
        except (OSError, SafetensorError) as error:
            kept = state.list_checkpoints(folder)
            last = f"{kept[-1].name} is whole" if kept else "there is none before it"
            raise TrainingStopped(f"step {step}: the checkpoint could not be written ({error}); {last}") from error

    @property
    def kind(self) -> str:
        """The folder's name of what is trained."""
        return "lora" if isinstance(self.run.tune, LoRA) else "model"

    def leave(self, folder: Path) -> None:
        """Write what is trained, averaged, as diffusers loads it: a LoRA's folder, or a pipeline's."""
        with self.averaged():
            network = gather_network(self.model.module) if self.processes.sharded else self.model.module
            if not self.processes.main:
                return
            if isinstance(self.run.tune, LoRA):
                self.model.save_lora(folder)
            else:
                assert network is not None
                self.model.save_pipeline(folder, network)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the policy is the one that is evaluated and saved."""
        with nullcontext() if self.ema is None else self.ema.applied(self.parameters):
            reshard(self.model.module)
            yield
        reshard(self.model.module)


def prepare(run: Run, resume: bool) -> Session:
    """Load the model, attach what is trained, and go back to the last checkpoint when asked."""
    saved = RunFolder(run.folder).checkpoints()
    if resume and not saved:
        raise ValueError(f"{run.folder}: no checkpoint to resume from; start the run anew")
    if saved and not resume:
        raise ValueError(
            f"{run.folder} already holds a run{others(run)}; give this one another --name, or go on with --resume"
        )
    if run.distribution.threads:
        torch.set_num_threads(run.distribution.threads)
    AcceleratorState._reset_state()  # a process may train several runs, each in a precision of its own
    accelerator = make_accelerator(
        run.optimization.mixed_precision,
        log_with=None if run.logging.tracker == "none" else run.logging.tracker,
        project_dir=run.folder,
    )
    if run.optimization.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("mixed_precision = fp16 does nothing on a CPU; take bf16 or no")
    processes = Processes(accelerator, run.distribution.shard != "none", run.distribution.grad_partitions)
    check_processes(run, processes, [checkpoint.name for checkpoint in saved])
    with accelerator.local_main_process_first():  # what the first downloads or makes, others find
        model = run.model.load(accelerator.device)
    if run.optimization.gradient_checkpointing:
        model.module.enable_gradient_checkpointing()  # type: ignore[operator]
    if run.distribution.compile:
        compile_blocks(model.module)
    run = on_own_grid(run, model)
    with torch.random.fork_rng():
        torch.manual_seed(number(run.seed, "adapter"))  # peft draws a new LoRA from the global generator
        parameters = attach(model, run.tune)
    # Before the checkpoint is loaded: the reference is where training began, not where it goes on.
    models = velocities(run, model, processes)
    if processes.sharded:
        in_shards(run, processes, model.module)
        parameters = trainable(model.module)
    optimizer = adamw(run, parameters.values())
    ema = Ema(parameters, run.optimization.ema_decay) if run.optimization.ema_decay is not None else None
    history = run.algorithm.requirements.history
    memory = RewardHistory(history) if history else None
    weights = state.WeightState(parameters, optimizer, ema, accelerator.scaler, memory, processes)
    first = state.load_checkpoint(saved[-1], weights) if resume else 0
    run.folder.mkdir(parents=True, exist_ok=True)
    return Session(run, model, models, parameters, accelerator.prepare(optimizer), ema, processes, memory, first)


def others(run: Run) -> str:
    """How the run that its folder holds is another one."""
    folder = RunFolder(run.folder)
    if not folder.record_file.is_file():
        return ""
    apart = differences(upgrade(folder.record()["config"]), to_json(run))
    more = f" and {len(apart) - 3} more" if len(apart) > 3 else ""
    return f" with other options ({'; '.join(apart[:3])}{more})" if apart else ""


def check_processes(run: Run, processes: Processes, saved: Sequence[str]) -> None:
    """ValueError where so many processes cannot do this run."""
    n = processes.count
    if run.distribution.shard != "none" and n == 1:
        raise ValueError(
            f"shard = {run.distribution.shard}: one process has nobody to share with; launch several, or leave it out"
        )
    if processes.grad_partitions % n:
        raise ValueError(f"grad_partitions = {run.distribution.grad_partitions}: {n} processes need a multiple of {n}")
    if run.batches.batch < n:
        raise ValueError(f"batch = {run.batches.batch}: {n} processes need at least one prompt or image each")
    if processes.sharded and run.batches.batch % n:
        raise ValueError(f"batch = {run.batches.batch}: where weights are sharded, all {n} processes need equally many")
    if run.distribution.compile and processes.sharded:
        raise ValueError("compile has never been tried with shard; leave one of them out")
    for rank, others in enumerate(processes.all_gather_objects(list(saved))):
        if others != list(saved):
            raise ValueError(
                f"{run.folder}: process {rank} finds other checkpoints there than process {processes.rank}; put runs/ "
                "on a disk that all machines share"
            )


def compile_blocks(network: nn.Module) -> None:
    """Compile what a transformer repeats; blocks of a kind share it."""
    # Else passes with and without gradients round to bf16 in different places, and ratios are off by 2e-4.
    inductor.emulate_precision_casts = True
    for block in blocks(network):
        block.compile()


def in_shards(run: Run, processes: Processes, network: nn.Module) -> nn.Module:
    return shard_network(
        network, blocks(network), run.distribution.shard, processes.accelerator.device, processes.count
    )


def adamw(run: Run, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    options = {
        "lr": run.optimization.learning_rate,
        "betas": run.optimization.adam_betas,
        "eps": run.optimization.adam_eps,
        "weight_decay": run.optimization.weight_decay,
    }
    if run.optimization.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **options)
    from bitsandbytes.optim.adamw import AdamW8bit

    return AdamW8bit(parameters, **options)


def on_own_grid(run: Run, model: Model) -> Run:
    """The run with the model's own schedule, or its shift, where its algorithm names none."""
    own = {"schedule": model.schedule, "shift": model.schedule.warp}
    missing = {name: value for name, value in own.items() if getattr(run.algorithm, name, value) is None}
    return replace(run, algorithm=replace(run.algorithm, **missing)) if missing else run  # type: ignore[arg-type]


def velocities(run: Run, model: Model, processes: Processes) -> Models:
    """The policy and whom else the algorithm asks for, in the same precision and chunks."""
    accelerator = processes.accelerator
    precise = lambda velocity: in_context(
        velocity, partial(precision, accelerator, run.optimization.gradient_checkpointing)
    )
    in_step = processes.all_max if processes.sharded else as_many

    def drawing(velocity: Velocity, scale: float, most: Callable[[int], int]) -> Velocity:
        return in_chunks(guided(precise(velocity), scale, model.combine), run.batches.chunk, most)

    # Adapters are switched around all chunks of a call, not for each.
    def beside(part: Wrapped, scale: float, most: Callable[[int], int]) -> Velocity:
        return in_context(drawing(part[0], scale, most), part[1])

    spread = partial(in_shards, run, processes) if processes.sharded else as_it_is
    field, own = model.velocity(model.module), run.batches.guidance_scale
    if not explores(run.algorithm):
        return Models(precise(field), guided=drawing(field, own, in_step))
    asks = run.algorithm.requirements
    teachers = {}
    for teacher in run.teachers:
        # Each process has all of its weights, and asks it about the tasks of its own prompts.
        teachers[teacher.name] = beside(specialist(run, model, teacher), teacher.guidance(own), as_many)
    anchor = teachers.get(asks.anchor)
    if asks.anchor == "base":
        anchor = beside(without_adapters(model, run.tune, spread), own, in_step)
    return Models(
        drawing(field, own, in_step),
        reference=beside(before_training(model, run.tune, spread), own, in_step) if asks.reference else None,
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
