"""The set-up of a run: model, adapters, velocities, optimizer and the checkpoint it goes on from."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from torch import nn

from ..algorithms.base import Models
from ..models.adapters import (
    LoRA,
    Parameters,
    attach,
    check_loras,
    trainable_parameters,
)
from ..models.base import blocks, warn_of_slow_bf16
from ..models.families import check_guidance
from ..models.fp32_streams import keep_streams_in_fp32
from ..models.pipeline import Model
from ..sampling.seeds import number
from ..system.atomic_files import apply_umask, make_folder, write_text_atomically, writing
from ..system.errors import CheckpointError, ConfigError, TrainingStopped
from ..system.own_folders import remove_own
from ..system.side_outputs import failure_words
from ..train.checkpoint import WeightState, check_own_checkpoints, load_checkpoint, save_checkpoint
from ..train.distributed import Processes, make_accelerator
from ..train.ema import Ema
from ..train.lagged import LaggedPolicy
from ..train.reward_history import RewardHistory
from ..train.sharding import gather_network, reshard
from .compatibility import upgrade
from .config import AnyAlgorithm, Run, on_model_schedule
from .run_folder import RECORD_MARK, RunFolder, is_of_run
from .serialization import differences, to_json
from .velocities import VelocityFactory, shard_model

COMPILED_VARIANTS = 64
"""Variants of a block that are compiled, of all its kinds, adapters and passes together."""


@dataclass(frozen=True)
class TrainingSetup:
    """A run, loaded and ready to train."""

    run: Run
    algorithm: AnyAlgorithm
    """The run's algorithm, on the model's own schedule where it names none."""
    model: Model
    models: Models
    """The velocities that the algorithm calls."""
    weights: WeightState
    """What training changes, and what a checkpoint holds."""
    first: int
    """The iteration to begin with."""

    @classmethod
    def build(cls, run: Run, resume: bool) -> "TrainingSetup":
        """Load the model, attach what is trained, and return to the last checkpoint when asked.

        ConfigError or CheckpointError is raised where the run cannot be trained here, before anything is loaded where
        that is possible.
        """
        checkpoints = check_folder(run, resume)
        processes = start_processes(run, checkpoints)
        check_loras(run.model, run.tune, run.teachers)
        model = load_model(run, processes)
        algorithm = on_model_schedule(run.algorithm, model.schedule)
        with torch.random.fork_rng():
            torch.manual_seed(number(run.seed, "adapter"))  # peft draws a new LoRA from the global generator
            parameters = attach(model, run.tune)
        # Before the checkpoint is loaded: the reference is where training began, not where it goes on.
        factory = VelocityFactory(run, model, processes)
        models = factory.models()
        weights = weight_state(run, model, parameters, processes, factory.copies())
        first = load_checkpoint(checkpoints[-1], weights) if resume else 0
        make_folder(run.folder)
        weights = replace(weights, optimizer=processes.accelerator.prepare(weights.optimizer))
        return cls(run, algorithm, model, models, weights, first)

    @property
    def processes(self) -> Processes:
        """The processes that train the run."""
        return self.weights.processes

    @property
    def result_name(self) -> str:
        """The name of the result's folder: lora, or model for a pipeline."""
        return "lora" if isinstance(self.run.tune, LoRA) else "model"

    def save(self, step: int, texts: Mapping[str, str] | None = None) -> None:
        """Save a checkpoint after iteration `step`, with more files in it by name.

        TrainingStopped is raised where it cannot be written.
        """
        folder, keep = RunFolder(self.run.folder), self.run.checkpoints.keep_checkpoints
        try:
            save_checkpoint(folder.checkpoint_folder, step, self.weights, keep, texts)
        except OSError as error:
            why = f"step {step}: the checkpoint could not be written ({failure_words(error)})"
            raise TrainingStopped(f"{why}; {folder.advice()}") from error

    def export(self, folder: Path) -> None:
        """Write what is trained, averaged, as diffusers loads it: a LoRA's folder, or a pipeline's."""
        with self.averaged():
            network = gather_network(self.model.module) if self.processes.sharded else self.model.module
            if not self.processes.main:
                return
            with writing(folder):
                if isinstance(self.run.tune, LoRA):
                    self.model.save_lora(folder)
                else:
                    assert network is not None
                    self.model.save_pipeline(folder, network)
                apply_umask(folder)

    def replace_export(self, result: Path) -> None:
        """Write what is trained to a folder of a run's results: whole, or what was there before stays.

        OutputError where it cannot be written, and where a folder of that name is not of a run.
        """
        partial = result.with_suffix(".partial")

        def begin() -> None:
            if self.processes.main:
                remove_own(partial, is_of_run, RECORD_MARK)
                make_folder(partial)
                # First, so that a folder that is never finished says whose it is.
                record = RunFolder(self.run.folder).record_file.read_text(encoding="utf-8")
                write_text_atomically(partial / RECORD_MARK, record)

        if self.processes.sharded:  # where the first fails, the others would wait for its shards
            self.processes.run_on_all(begin)
        else:
            begin()
        self.export(partial)
        if self.processes.main:
            with writing(result):
                remove_own(result, is_of_run, RECORD_MARK)
                partial.rename(result)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the policy its averaged weights, which are evaluated and saved, inside the context."""
        ema = self.weights.ema
        with nullcontext() if ema is None else ema.applied(self.weights.parameters):
            reshard(self.model.module)
            yield
        reshard(self.model.module)


def check_folder(run: Run, resume: bool) -> list[Path]:
    """Return the checkpoints in the run's folder.

    CheckpointError is raised where there are none to resume from, or some that would be written over.
    """
    folder = RunFolder(run.folder)
    folder.check_safe()
    check_own_checkpoints(folder.checkpoint_folder)
    for above in run.folder.parents[:-2]:
        if is_of_run(above):
            raise ConfigError(f"{run.folder} would lie in the folder of the run {above}; take another --name")
    checkpoints = folder.checkpoints()
    if resume and not checkpoints:
        raise CheckpointError(folder.without_checkpoints())
    if not resume and (checkpoints or folder.result() is not None):
        goes_on = ", or go on with --resume" if checkpoints else ""
        advice = f"give this one another --name{goes_on}"
        raise CheckpointError(f"{run.folder} already holds a run{other_options(run)}; {advice}")
    return checkpoints


def other_options(run: Run) -> str:
    """Return how the run that the folder holds differs from this one."""
    folder = RunFolder(run.folder)
    if not folder.record_file.is_file():
        return ""
    try:
        changes = differences(upgrade(folder.record()["config"]), to_json(run))
    except ConfigError:  # of a version that this one cannot read
        return " of another version of afterflow"
    more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
    return f" with other options ({'; '.join(changes[:3])}{more})" if changes else ""


def start_processes(run: Run, checkpoints: Sequence[Path]) -> Processes:
    """Return the processes of the run, each on its device.  ConfigError where they cannot do this run."""
    AcceleratorState._reset_state()  # a process may train several runs, each in a precision of its own
    accelerator = make_accelerator(
        run.optimization.mixed_precision,
        log_with=None if run.logging.tracker == "none" else run.logging.tracker,
        project_dir=run.folder,
    )
    if run.optimization.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ConfigError("mixed_precision = fp16 does nothing on a CPU; take bf16 or no")
    if run.optimization.mixed_precision == "bf16" and accelerator.is_main_process:
        warn_of_slow_bf16(accelerator.device, "mixed_precision = bf16", "no")
    processes = Processes(accelerator, run.distribution.shard != "none", run.distribution.grad_partitions)
    check_processes(run, processes)
    check_same_checkpoints(run, processes, [checkpoint.name for checkpoint in checkpoints])
    return processes


def check_processes(run: Run, processes: Processes) -> None:
    """Check that so many processes can do this run.  ConfigError says what to change."""
    n, shard, batch = processes.count, run.distribution.shard, run.batches.batch
    if shard != "none" and n == 1:
        raise ConfigError(f"shard = {shard}: one process has nobody to share with; launch several, or leave it out")
    if processes.grad_partitions % n:
        raise ConfigError(f"grad_partitions = {run.distribution.grad_partitions}: {n} processes need a multiple of {n}")
    if batch < n:
        raise ConfigError(f"batch = {batch}: {n} processes need at least one prompt or image each")
    if processes.sharded and batch % n:
        raise ConfigError(f"batch = {batch}: where weights are sharded, all {n} processes need equally many")
    if run.distribution.compile and processes.sharded:
        raise ConfigError("compile has never been tried with shard; leave one of them out")


def check_same_checkpoints(run: Run, processes: Processes, names: list[str]) -> None:
    """Check that all processes see the same checkpoints.  CheckpointError where they do not share a disk."""
    for rank, rank_names in enumerate(processes.all_gather_objects(names)):
        if rank_names != names:
            raise CheckpointError(
                f"{run.folder}: process {rank} finds other checkpoints there than process {processes.rank}; put runs/ "
                "on a disk that all machines share"
            )


def load_model(run: Run, processes: Processes) -> Model:
    """Return the run's model on this process's device, with checkpointing and compilation as asked."""
    check_guidance(run.model, run.batches.guidance_scale)
    with processes.main_first():  # what the first downloads or makes, others find
        model = run.model.load(processes.accelerator.device)
    if run.optimization.gradient_checkpointing:
        model.module.enable_gradient_checkpointing()  # type: ignore[operator]
    if fp32_streams(run):
        keep_streams_in_fp32(model.module, model.streams, model.end_layers)
    if run.distribution.compile:
        compile_blocks(model.module)
    return model


def fp32_streams(run: Run) -> bool:
    """Return whether residual streams stay fp32 in the run's mixed precision."""
    choice = run.optimization.fp32_streams
    return run.optimization.mixed_precision != "no" and (run.batches.updates > 1 if choice is None else choice)


def compile_blocks(network: nn.Module) -> None:
    """Compile what a transformer repeats; blocks of a kind share it."""
    # Kinds of blocks, adapters, and passes with and without gradients have variants of their own, and what goes beyond
    # the limit, which is 8, is not compiled: it would then round otherwise than the rest of the same loss.
    torch._dynamo.config.recompile_limit = max(COMPILED_VARIANTS, torch._dynamo.config.recompile_limit)
    for block in blocks(network):
        # Else passes with and without gradients round to bf16 in different places, and ratios are off by 2e-4.
        block.compile(options={"emulate_precision_casts": True})


def weight_state(
    run: Run, model: Model, parameters: Parameters, processes: Processes, copies: Mapping[str, Parameters]
) -> WeightState:
    """Return the trained weights, in shards if asked, with a new optimizer, averages and history.

    Args:
        run: The run.
        model: Its model.
        parameters: What is trained.
        processes: The processes of the run.
        copies: The parameters of each lagged policy, by name.
    """
    if processes.sharded:
        shard_model(run, processes, model.module, run.distribution.shard)
        parameters = trainable_parameters(model.module)
    decay, requirements = run.optimization.ema_decay, run.algorithm.requirements
    history = requirements.history
    return WeightState(
        parameters,
        make_optimizer(run, parameters.values()),
        Ema(parameters, decay) if decay is not None else None,
        processes.accelerator.scaler,
        RewardHistory(history) if history else None,
        {name: LaggedPolicy(values, requirements.lagged[name]) for name, values in copies.items()},
        processes,
    )


def make_optimizer(run: Run, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return AdamW over the parameters, with averages in 8 bits if asked."""
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
