"""Where models run, where the cache of what they encode lies, and the blocks of a transformer."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..system.errors import ConfigError


def default_device() -> torch.device:
    """Return the accelerator where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cache_folder() -> Path:
    """Return the folder of encoded prompts and images: AFTERFLOW_CACHE, or ~/.cache/afterflow.

    ConfigError where there is no home to find it in.
    """
    path = os.path.expandvars(os.environ.get("AFTERFLOW_CACHE") or "~/.cache/afterflow")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"AFTERFLOW_CACHE: there is no home folder for {path}; set it to a whole path") from None


def write_cache_file(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write a file of the cache, so that another process reads all of it or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    save_file(tensors, partial)
    partial.replace(file)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks that a transformer repeats, which hold nearly all of its weights."""
    for part in module.children():
        if isinstance(part, nn.ModuleList):
            yield from part
