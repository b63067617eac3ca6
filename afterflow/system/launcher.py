"""Environment that torchrun and accelerate give to the processes they start, read without importing torch."""

import os

from .errors import ConfigError

NEEDED = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables of a process that a launcher started; some without the others would leave processes waiting."""
OTHER_LAUNCHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
"""Numbers of processes that mpirun and srun set; what they start does not know of each other."""
REMEDY = "start with torchrun or accelerate launch, or unset them all"


def launched_processes() -> int:
    """Return the number of processes that the launcher has started.  ConfigError where that is no number."""
    return _whole("WORLD_SIZE", 1, least=1)


def launched_rank() -> int:
    """Return the rank of this process among them.  ConfigError where that is no number."""
    return _whole("RANK", 0)


def local_rank() -> int:
    """Return the rank of this process among those of its machine.  ConfigError where that is no number."""
    return _whole("LOCAL_RANK", 0)


def check_launcher() -> None:
    """Raise ConfigError where the launcher's variables are there in part, are no numbers, or do not fit together."""
    count, rank, local = launched_processes(), launched_rank(), local_rank()
    _whole("MASTER_PORT", 1, least=1)
    present = [name for name in NEEDED if name in os.environ]
    # Clusters set WORLD_SIZE=1 and an address for a process that is alone; ranks are set by launchers only.
    if count > 1 or {"RANK", "LOCAL_RANK"} & set(present):
        missing = [name for name in NEEDED if not os.environ.get(name)]
        if missing:
            raise ConfigError(f"{', '.join(present)} is set, and {', '.join(missing)} is not; {REMEDY}")
    if rank >= count or local >= count:
        raise ConfigError(f"RANK = {rank}, LOCAL_RANK = {local}: ranks are below WORLD_SIZE = {count}; {REMEDY}")
    for name in OTHER_LAUNCHERS:
        if "WORLD_SIZE" not in os.environ and _whole(name, 1) > 1:
            raise ConfigError(
                f"{name} = {os.environ[name]}: processes of mpirun or srun would each train alone in one folder; "
                "start one process a machine with it, and let that start torchrun"
            )


def _whole(name: str, default: int, least: int = 0) -> int:
    """Return the whole number in a variable, or `default` where it is not set."""
    text = os.environ.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise ConfigError(f"{name} = {text!r} in the environment is not a whole number from {least} on; {REMEDY}")
    return int(text)
