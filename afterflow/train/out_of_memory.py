"""Errors of memory allocators, turned into advice."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..system.errors import TrainingStopped
from .clock import Clock

REMEDIES = {
    "encoding of prompts": (
        "take --model.dtype bfloat16, keep the base in fewer bits with --model.quantize, or lower "
        "--model.max-sequence-length; text encoders lie beside the network while they encode"
    ),
    "rollout": "lower --chunk, set --offload, or keep the base in fewer bits with --model.quantize",
    "decode": "lower --batch, or the images of a prompt (--algorithm.group)",
    "reward": "lower --reward-models.batch, or score elsewhere: --reward-models.device or --reward-models.servers",
    "update": "set --gradient-checkpointing, lower --chunk, or take --optimizer adamw_8bit",
    "evaluation": "lower --eval-images or --chunk",
    "pictures": "lower --chunk, or draw none with --sample-every 0",
    "credit": "lower --chunk, or have fewer teachers",
    "loading or saving": "take --model.dtype bfloat16 or --model.quantize",
}
"""What to change, by the stage that ran out of memory."""
CPU_ALLOCATOR = "DefaultCPUAllocator"
"""Name in torch's message when a CPU has no memory left; the error is a plain RuntimeError."""


@contextmanager
def explain_out_of_memory(clock: Clock) -> Iterator[None]:
    """Turn an out-of-memory error of the block into TrainingStopped, with the stage and what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and CPU_ALLOCATOR not in str(error):
            raise
        stage = clock.failed or "loading or saving"
        message = (str(error) or "MemoryError").partition("\n")[0]
        advice = f"{REMEDIES[stage]}; afterflow train RECIPE --plan counts what is needed ({message})"
        raise TrainingStopped(f"out of memory in {stage}: {advice}") from error
