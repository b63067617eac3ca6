"""Environment that torchrun and accelerate give to the processes they start, read without importing torch."""

import os


def launched_processes() -> int:
    """Return the number of processes that the launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    """Return the rank of this process among them."""
    return int(os.environ.get("RANK", "0"))
