"""Out of memory, said so that one can do something about it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..system.errors import TrainingStopped
from .clock import Clock

REMEDIES = {
    "rollout": "lower --chunk, set --offload, or keep the base in fewer bits with --model.quantize",
    "decode": "lower --batch, or the images of a prompt (--algorithm.group)",
    "reward": "lower --reward-models.batch, or score elsewhere: --reward-models.device or --reward-models.servers",
    "update": "set --gradient-checkpointing, lower --chunk, or take --optimizer adamw_8bit",
    "evaluation": "lower --eval-images or --chunk",
    "pictures": "lower --chunk, or draw none with --sample-every 0",
    "credit": "lower --chunk, or have fewer teachers",
    "loading or saving": "take --model.dtype bfloat16 or --model.quantize",
}
CPU_ALLOCATOR = "DefaultCPUAllocator"
"""What torch names when a CPU has no memory left; it raises a plain RuntimeError."""


@contextmanager
def explain_out_of_memory(clock: Clock) -> Iterator[None]:
    """TrainingStopped, with the stage and what to change, instead of an allocator's words."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = isinstance(error, MemoryError | torch.OutOfMemoryError) or CPU_ALLOCATOR in str(error)
        if not known:
            raise
        stage = clock.failed or "loading or saving"
        said = (str(error) or "MemoryError").partition("\n")[0]
        way = f"{REMEDIES[stage]}; afterflow train RECIPE --plan counts what is needed ({said})"
        raise TrainingStopped(f"out of memory in {stage}: {way}") from error
