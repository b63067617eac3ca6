"""What torchrun and accelerate tell the processes that they start, before torch is imported."""

import os


def launched_processes() -> int:
    """How many processes they have started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    """Which of them this is."""
    return int(os.environ.get("RANK", "0"))
