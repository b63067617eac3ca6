"""The velocities that an algorithm calls: the policy and those beside it, in one precision and in the same chunks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial

from accelerate import Accelerator
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..algorithms.base import Models, explores
from ..algorithms.forward_process import learns_from_finished
from ..models.adapters import (
    LoRA,
    Parameters,
    Teacher,
    Wrapped,
    before_training,
    frozen,
    lagged_copy,
    without_adapters,
)
from ..models.base import blocks
from ..models.experts import Experts
from ..models.pipeline import Model
from ..models.wrappers import identity, in_chunks, in_context
from ..sampling.conditioning import Velocity
from ..train.distributed import Processes
from ..train.sharding import Sharding, shard_network
from .config import Run


@dataclass(frozen=True)
class VelocityFactory:
    """Makes the velocities that an algorithm calls, in the same precision and chunks for all."""

    run: Run
    model: Model
    processes: Processes

    def models(self) -> Models:
        """Return the policy, and those beside it that the algorithm requires."""
        network, scale = self.model.velocity(self.model.module), self.run.batches.guidance_scale
        if not explores(self.run.algorithm):
            return Models(
                self.precise(network), reference=self.unguided_reference(), guided=self.chunked(network, scale)
            )
        teachers = {teacher.name: self.teacher(teacher) for teacher in self.run.teachers}
        average, under_guidance = self.run.algorithm.requirements.explorer, self.chunked(network, scale)
        return Models(
            self.chunked(network, self.policy_scale),
            reference=self.reference(),
            teachers={task: teachers[teacher.name] for teacher in self.run.teachers for task in teacher.tasks},
            anchor=self.anchor(teachers),
            guided=under_guidance,
            lagged={name: self.switched(part, self.policy_scale) for name, (part, _) in self.lagged.items()},
            explorer=under_guidance if average is None else self.switched(self.lagged[average][0]),
        )

    @cached_property
    def lagged(self) -> dict[str, tuple[Wrapped, Parameters]]:
        """The averages of the policy that the algorithm requires, each with its parameters."""
        names = self.run.algorithm.requirements.lagged
        return {name: lagged_copy(self.model, self.run.tune, name, self.shards) for name in names}

    def copies(self) -> dict[str, Parameters]:
        """Return the parameters of the averages by name."""
        return {name: parameters for name, (_, parameters) in self.lagged.items()}

    def reference(self) -> Velocity | None:
        """Return the velocity that the algorithm holds the policy near to, where it does."""
        reference = self.run.algorithm.requirements.reference
        if reference is None:
            return None
        if reference.model == "average":
            part = self.lagged["average"][0]
        elif reference.model == "start":
            part = before_training(self.model, self.run.tune, self.shards)
        else:
            part = without_adapters(self.model, self.run.tune, self.shards)
        scale = self.policy_scale if reference.guidance_scale is None else reference.guidance_scale
        return self.switched(part, scale)

    @property
    def policy_scale(self) -> float:
        """The guidance scale of the policy that is trained: none where it learns from finished images."""
        return 1.0 if learns_from_finished(self.run.algorithm) else self.run.batches.guidance_scale

    def unguided_reference(self) -> Velocity | None:
        """Return the model before training without guidance, where an algorithm that images teach requires it."""
        if self.run.algorithm.requirements.reference is None:
            return None
        velocity, adapters = before_training(self.model, self.run.tune, self.shards)
        return in_context(self.precise(velocity), adapters)

    def teacher(self, teacher: Teacher) -> Velocity:
        """Return a teacher's velocity under its own guidance."""
        # Each process has all of its weights, and asks it about the tasks of its own prompts.
        velocity, adapters = load_teacher(self.run, self.model, teacher)
        scale = teacher.guidance(self.run.batches.guidance_scale)
        return in_context(self.chunked(velocity, scale, identity), adapters)

    def anchor(self, teachers: Mapping[str, Velocity]) -> Velocity | None:
        """Return the velocity that all samples stay near to: a teacher's, or the base model's."""
        name = self.run.algorithm.requirements.anchor
        if name == "base":
            return self.switched(without_adapters(self.model, self.run.tune, self.shards))
        return teachers.get(name) if name is not None else None

    def switched(self, part: Wrapped, scale: float | None = None) -> Velocity:
        """Return a velocity whose adapters are switched around all chunks of a call, not for each.

        scale: its guidance scale; None takes the run's.
        """
        velocity, adapters = part
        scale = self.run.batches.guidance_scale if scale is None else scale
        return in_context(self.chunked(velocity, scale), adapters)

    def chunked(self, velocity: Velocity, scale: float, count: Callable[[int], int] | None = None) -> Velocity:
        """Return a velocity under guidance, computed in chunks.

        With sharded weights all processes take the same number of chunks; `count` may say otherwise.
        """
        count = count or (self.processes.all_max if self.processes.sharded else identity)
        self.model.check_guidance(self.model.folder, scale)
        guidance = self.model.guide(self.precise(velocity), scale)
        return in_chunks(guidance, self.run.batches.chunk, count)

    def precise(self, velocity: Velocity) -> Velocity:
        """Return a velocity computed in the run's mixed precision."""
        checkpointing = self.run.optimization.gradient_checkpointing
        return in_context(velocity, partial(precision, self.processes.accelerator, checkpointing))

    def shards(self, network: nn.Module) -> nn.Module:
        """Return a copy of the network as it is, or in shards where weights are sharded.

        Its weights are gathered whenever a block runs: no backward pass of its own would let them go, and averages
        change in their shards alone.
        """
        return shard_model(self.run, self.processes, network, "full") if self.processes.sharded else identity(network)


def load_teacher(run: Run, model: Model, teacher: Teacher) -> Wrapped:
    """Return a teacher's velocity: beside a trained LoRA another adapter, beside trained weights another model."""
    if teacher.lora is None:
        return without_adapters(model, run.tune)
    if isinstance(run.tune, LoRA):
        return frozen(model, teacher.lora, f"teacher_{teacher.name}")
    other = run.model.load(next(model.module.parameters()).device)
    other.load_lora(teacher.lora)
    return other.velocity(other.module.requires_grad_(False)), nullcontext


@contextmanager
def precision(accelerator: Accelerator, checkpointing: bool) -> Iterator[None]:
    """Compute in the run's mixed precision inside the context."""
    # On CPUs the fused attention is slow backwards in bf16: a step of the tiny pipeline takes 1.4 times as long.  But
    # what checkpointing computes again comes after this context has ended, and must be the same attention.
    slow = accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16" and not checkpointing
    with accelerator.autocast(), sdpa_kernel(SDPBackend.MATH) if slow else nullcontext():
        yield


def shard_model(run: Run, processes: Processes, network: nn.Module, mode: Sharding) -> nn.Module:
    """Return the network, each process holding a part of its weights."""
    device = processes.accelerator.device
    if isinstance(network, Experts):
        network.all_needed = processes.all_any
    return shard_network(network, blocks(network), mode, device, processes.count)
