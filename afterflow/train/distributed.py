"""What the processes of a run tell each other.  With one process there is nobody to tell, and nothing is sent."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn

from ..system.errors import TrainingStopped
from ..system.launcher import launched
from .sharding import own
from .signals import Reclaimed

PATIENCE = timedelta(hours=12)
"""How long a process waits for another that lives; torchrun ends those whose fellows have died."""
BUCKET = 25_000_000
"""Numbers that are added up in one message: enough to fill the wire, little beside a model."""


class Processes:
    """Each has a share of an iteration's prompts; all that depends on others goes through here."""

    def __init__(self, accelerator: Accelerator | None = None, sharded: bool = False, lanes: int = 1) -> None:
        """None: this one alone, and nothing is trained."""
        self._accelerator = accelerator
        self.rank, self.count = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
        self.main = self.rank == 0
        """Whether this one writes files."""
        self.lanes_of_all = max(lanes, self.count)
        """Parts of a batch whose gradients are added up apart, and then in double precision."""
        self.own = self.lanes_of_all // self.count
        """Lanes of this process."""
        self.sharded = sharded and self.count > 1
        """Whether each keeps a part of every weight: forward passes are then taken in step."""

    @property
    def accelerator(self) -> Accelerator:
        assert self._accelerator is not None
        return self._accelerator

    def lanes(self, total: int) -> list[Tensor]:
        """(n,) long each: which of `total` things are in this process's lanes, in their order."""
        each = torch.arange(total).tensor_split(self.lanes_of_all)
        return list(each[self.rank * self.own : (self.rank + 1) * self.own])

    def even_share(self, total: int) -> Tensor:
        """(n,) long: the same number for each, the last thing several times where it must be; see `joined`."""
        each = -(-total // self.count)
        return torch.arange(self.rank * each, (self.rank + 1) * each).clamp(max=total - 1)

    def all_gather_objects(self, value: Any) -> list[Any]:
        """What each process says, as JSON: by rank."""
        if self.count == 1:
            return [value]
        said = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        return [json.loads(part.cpu().numpy().tobytes()) for part in self._parts(said)]

    def all_gather_rows(self, mine: Tensor, total: int) -> Tensor:
        """Rows of each process, (n, ...) → those of all, (total, ...), on their device."""
        return mine if self.count == 1 else torch.cat(self._parts(mine))[:total].to(mine.device)

    def _parts(self, mine: Tensor) -> list[Tensor]:
        there = mine.contiguous().to(self.accelerator.device)
        gather = lambda rows: cast(Tensor, self.accelerator.gather(rows))
        counts = gather(torch.tensor([len(mine)], device=there.device)).tolist()
        padded = self.accelerator.pad_across_processes(there)
        return [part[:count] for part, count in zip(gather(padded).chunk(self.count), counts)]

    def run_on_all(self, work: Callable[[], Any]) -> list[Any]:
        """What `work` returns on each process, for JSON; where it fails on one, all stop and say why."""
        if self.count == 1:
            return [work()]
        mine: dict[str, Any] = {}
        error: BaseException | None = None
        try:
            mine["said"] = work()
        except (Exception, Reclaimed) as caught:
            error = caught
            mine = {"failed": str(caught) or type(caught).__name__, "left": isinstance(caught, Reclaimed)}
        everyone = self.all_gather_objects(mine)
        if error is not None and not mine["left"]:
            raise error
        for rank, other in enumerate(everyone):
            if "failed" in other and not other["left"]:
                raise TrainingStopped(f"process {rank}: {other['failed']}")
        if any("failed" in other for other in everyone):
            raise Reclaimed
        return [other["said"] for other in everyone]

    def all_max(self, number: int) -> int:
        """The highest of all processes."""
        return max(self.all_gather_objects(number))

    @torch.no_grad()
    def add_gradients(self, parameters: Sequence[nn.Parameter], sums: Mapping[nn.Parameter, Tensor]) -> None:
        """Make each gradient the sum over lanes and processes; one that nobody has stays None.

        sums: fp64, of this process's lanes, where it has several.  In fp64 the order does not matter: sums of few fp32
        numbers are exact unless they are 2^26 apart.
        """
        if self.sharded or (self.count == 1 and not sums):  # shards are added up in the backward pass
            return
        mine = lambda p: sums[p] if p in sums else torch.zeros_like(p) if p.grad is None else p.grad
        has = torch.tensor([p in sums or p.grad is not None for p in parameters], dtype=torch.int32)
        if self.count > 1:
            has = has.to(self.accelerator.device)
            torch.distributed.all_reduce(has, torch.distributed.ReduceOp.MAX)
        for bucket in buckets([p for p, some in zip(parameters, has.tolist()) if some], BUCKET):
            flat = torch.cat([mine(p).flatten().double() for p in bucket])
            if self.count > 1:
                torch.distributed.all_reduce(flat)
            for p, total in zip(bucket, flat.split([p.numel() for p in bucket])):
                p.grad = total.view_as(p).to(p.dtype)

    @torch.no_grad()
    def clip(self, parameters: Sequence[nn.Parameter], most: float) -> Tensor:
        """Shorten the gradients to a norm of `most`; the norm they had.

        Where there are lanes it is summed in fp64, so that it is that of all shards and of one process alike.
        """
        if self.lanes_of_all == 1:
            norm = self.accelerator.clip_grad_norm_(list(parameters), most)
            assert norm is not None
            return norm
        self.accelerator.unscale_gradients()
        grads = [own(p.grad) for p in parameters if p.grad is not None]
        squares = torch.stack([grad.double().square().sum() for grad in grads]).sum()
        if self.sharded:
            torch.distributed.all_reduce(squares)
        norm = squares.sqrt()
        scale = (most / (norm + 1e-6)).clamp(max=1.0).float()
        for grad in grads:
            grad.mul_(scale)
        return norm


def buckets(parameters: Iterable[nn.Parameter], most: int) -> Iterator[list[nn.Parameter]]:
    """Parameters in their order, `most` numbers at a time, or one that has more."""
    bucket: list[nn.Parameter] = []
    for p in parameters:
        if bucket and sum(q.numel() for q in bucket) + p.numel() > most:
            yield bucket
            bucket = []
        bucket.append(p)
    if bucket:
        yield bucket


def take_device() -> None:
    """Each process its own accelerator, before anything is loaded onto one."""
    if launched() > 1 and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def accelerator_of(mixed_precision: str, **about: Any) -> Accelerator:
    """ValueError where a launcher was asked for what would not happen."""
    for variable, what in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(variable, "false").lower() in ("1", "true"):
            raise ValueError(
                f"the launcher's configuration asks for {what}, which afterflow does not read; launch without it, and "
                "shard the weights with --shard full (or zero2)"
            )
    if launched() > 1:
        # Others wait in a message while the first downloads weights or encodes images, or a reward is slow.
        about["kwargs_handlers"] = [InitProcessGroupKwargs(timeout=PATIENCE)]
    # Told nothing, accelerate takes a CPU process for a run of its own, whatever the launcher says.
    cpu = launched() > 1 and not torch.cuda.is_available()
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=cpu, **about)
    if accelerator.num_processes != launched():
        raise ValueError(f"{launched()} processes were launched, and accelerate sees {accelerator.num_processes}")
    return accelerator
