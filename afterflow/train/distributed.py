"""Communication among the processes of a run.  With one process nothing is sent."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
from torch import Tensor, nn

from ..system.environment import check_cpu, check_environment, check_precision
from ..system.errors import ConfigError, TrainingStopped
from ..system.launcher import check_launcher, launched_processes, local_rank
from .sharding import local_shard
from .signals import Preempted

MESSAGE_TIMEOUT = timedelta(hours=12)
"""How long a process waits for a message of another; torchrun ends the processes whose peers have died."""
BUCKET_SIZE = 25_000_000
"""Gradient entries that are summed in one message: enough to fill the wire, little beside a model."""


class Processes:
    """The processes of a run, and this one among them: everything that needs another process goes through here."""

    def __init__(self, accelerator: Accelerator | None = None, sharded: bool = False, grad_partitions: int = 1) -> None:
        """Describe the processes that `accelerator` joins; None stands for this process alone, which trains nothing."""
        self._accelerator = accelerator
        self.rank, self.count = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
        self.main = self.rank == 0
        """Whether this process writes files."""
        self.grad_partitions = max(grad_partitions, self.count)
        """Number of fixed partitions of a batch, over all processes; their gradients are summed in fp64."""
        self.local_partitions = self.grad_partitions // self.count
        """Number of partitions that this process computes."""
        self.sharded = sharded and self.count > 1
        """Whether every weight is split among the processes; then all must run their forward passes together."""

    @property
    def accelerator(self) -> Accelerator:
        """The accelerator of a run that trains."""
        assert self._accelerator is not None
        return self._accelerator

    def main_first(self) -> AbstractContextManager[None]:
        """Return a context that the first process of every machine is through with before the others begin it."""
        return self.accelerator.local_main_process_first() if self.count > 1 else nullcontext()

    def partition_rows(self, total: int) -> list[Tensor]:
        """Return one (n,) long tensor for each local partition: which of `total` rows belong to it, in order."""
        partitions = torch.arange(total).tensor_split(self.grad_partitions)
        first = self.rank * self.local_partitions
        return list(partitions[first : first + self.local_partitions])

    def evaluation_rows(self, total: int) -> Tensor:
        """Return the rows that this process draws for an evaluation, (n,) long, with the same n on every process.

        Where `total` is not a multiple of the number of processes, the last row is repeated.  `all_gather_rows` drops
        the repeats.
        """
        size = -(-total // self.count)
        return torch.arange(self.rank * size, (self.rank + 1) * size).clamp(max=total - 1)

    def all_gather_objects(self, value: Any) -> list[Any]:
        """Return the `value` of every process, by rank; it travels as JSON."""
        if self.count == 1:
            return [value]
        encoded = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        return [json.loads(part.cpu().numpy().tobytes()) for part in self._gather_parts(encoded)]

    def all_gather_rows(self, local_rows: Tensor, total: int) -> Tensor:
        """Join the rows of every process, (n, ...) → (total, ...), on the device of `local_rows`."""
        if self.count == 1:
            return local_rows
        return torch.cat(self._gather_parts(local_rows))[:total].to(local_rows.device)

    def _gather_parts(self, local_rows: Tensor) -> list[Tensor]:
        sent = local_rows.contiguous().to(self.accelerator.device)
        gather = lambda rows: cast(Tensor, self.accelerator.gather(rows))
        counts = gather(torch.tensor([len(local_rows)], device=sent.device)).tolist()
        padded = self.accelerator.pad_across_processes(sent)
        return [part[:count] for part, count in zip(gather(padded).chunk(self.count), counts)]

    def run_on_all(self, work: Callable[[], Any]) -> list[Any]:
        """Run `work` on every process and return what each one returned, by rank, as JSON holds it.

        Where it fails on one process, all stop: that one raises its error, the others TrainingStopped with the
        message.  Preempted is raised on all where one was preempted and none failed.
        """
        if self.count == 1:
            return [work()]
        reply: dict[str, Any] = {}
        error: BaseException | None = None
        try:
            reply["value"] = work()
        except (Exception, Preempted) as caught:
            error = caught
            reply = {"failed": str(caught) or type(caught).__name__, "preempted": isinstance(caught, Preempted)}
        replies = self.all_gather_objects(reply)
        if error is not None and not reply["preempted"]:
            raise error
        for rank, other in enumerate(replies):
            if "failed" in other and not other["preempted"]:
                raise TrainingStopped(f"process {rank}: {other['failed']}")
        if any("failed" in other for other in replies):
            raise Preempted
        return [other["value"] for other in replies]

    def all_max(self, number: int) -> int:
        """Return the highest `number` of all processes."""
        return max(self.all_gather_objects(number))

    def all_any(self, flags: Sequence[bool]) -> list[bool]:
        """Return for each flag whether it is set on any process."""
        return [any(column) for column in zip(*self.all_gather_objects(list(flags)))]

    @torch.no_grad()
    def add_gradients(self, parameters: Sequence[nn.Parameter], sums: Mapping[nn.Parameter, Tensor]) -> None:
        """Make every gradient the sum over partitions and processes; one that no process has stays None.

        sums: fp64 sums over this process's partitions, where it has several.  In fp64 the order does not matter: sums
        of few fp32 numbers are exact unless they are 2^26 apart.
        """
        if self.sharded or (self.count == 1 and not sums):  # shards are added up in the backward pass
            return
        local = lambda p: sums[p] if p in sums else torch.zeros_like(p) if p.grad is None else p.grad
        has = torch.tensor([p in sums or p.grad is not None for p in parameters], dtype=torch.int32)
        if self.count > 1:
            has = has.to(self.accelerator.device)
            torch.distributed.all_reduce(has, torch.distributed.ReduceOp.MAX)
        for bucket in parameter_buckets([p for p, some in zip(parameters, has.tolist()) if some], BUCKET_SIZE):
            flat = torch.cat([local(p).flatten().double() for p in bucket])
            if self.count > 1:
                torch.distributed.all_reduce(flat)
            for p, total in zip(bucket, flat.split([p.numel() for p in bucket])):
                p.grad = total.view_as(p).to(p.dtype)

    @torch.no_grad()
    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
        """Shorten the gradients to a norm of at most `max_norm` and return the norm they had.

        With several partitions the norm is summed in fp64, so that shards and a single process agree on it.
        """
        if self.grad_partitions == 1:
            norm = self.accelerator.clip_grad_norm_(list(parameters), max_norm)
            assert norm is not None
            return norm
        self.accelerator.unscale_gradients()
        grads = [local_shard(p.grad) for p in parameters if p.grad is not None]
        squares = torch.stack([grad.double().square().sum() for grad in grads]).sum()
        if self.sharded:
            torch.distributed.all_reduce(squares)
        norm = squares.sqrt()
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0).float()
        for grad in grads:
            grad.mul_(scale)
        return norm


ALONE = Processes()
"""One process, which trains nothing."""


def parameter_buckets(parameters: Iterable[nn.Parameter], max_size: int) -> Iterator[list[nn.Parameter]]:
    """Yield the parameters in their order, at most `max_size` numbers at a time, or a single one that has more."""
    bucket: list[nn.Parameter] = []
    for p in parameters:
        if bucket and sum(q.numel() for q in bucket) + p.numel() > max_size:
            yield bucket
            bucket = []
        bucket.append(p)
    if bucket:
        yield bucket


def select_device() -> None:
    """Give every launched process an accelerator of its own, before anything is loaded onto one."""
    if launched_processes() > 1 and torch.cuda.is_available():
        if local_rank() >= torch.cuda.device_count():
            seen = f"{torch.cuda.device_count()} GPUs are visible"
            raise ConfigError(f"LOCAL_RANK = {local_rank()}, and {seen}; launch as many processes a machine as GPUs")
        torch.cuda.set_device(local_rank())


def make_accelerator(mixed_precision: str, **options: Any) -> Accelerator:
    """Make the accelerator of a run; ConfigError where a launcher was configured for what would not happen."""
    check_environment()
    check_launcher()
    check_precision(mixed_precision)
    check_cpu(torch.cuda.is_available())
    if launched_processes() > 1:
        # Others wait in a message while the first downloads weights or encodes images, or a reward is slow.
        options["kwargs_handlers"] = [InitProcessGroupKwargs(timeout=MESSAGE_TIMEOUT)]
    # Without this flag, accelerate takes a CPU process for a run of its own, whatever the launcher has set.  On a Mac
    # it takes the graphics processor, where models are not loaded.
    cpu = not torch.cuda.is_available() and (launched_processes() > 1 or torch.backends.mps.is_available())
    # No variable decides on the accumulation of gradients, which accelerate asks the environment about even for 1.
    accelerator = Accelerator(
        mixed_precision=mixed_precision, cpu=cpu, gradient_accumulation_plugin=GradientAccumulationPlugin(1), **options
    )
    if accelerator.num_processes != launched_processes():
        raise ConfigError(
            f"{launched_processes()} processes were launched, and accelerate sees {accelerator.num_processes}; launch "
            "with torchrun or accelerate launch"
        )
    return accelerator
