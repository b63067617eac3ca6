"""The device, the cache folder and the blocks of a transformer.  The base classes of families are in pipeline.py."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..system.atomic_files import apply_umask, make_folder, replacing
from ..system.errors import ConfigError, OutputError
from ..system.once import say_once
from ..system.side_outputs import failure_words
from .experts import networks_of

_log = logging.getLogger(__name__)


def default_device() -> torch.device:
    """Return the accelerator where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_fast_bf16() -> bool:
    """Whether this machine's CPU has instructions for bf16, without which it takes ten times as long as fp32."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def warn_of_slow_bf16(device: torch.device, option: str, instead: str) -> None:
    """Say once that bf16 is slow where an option asks a CPU for it that has no instructions for it."""
    if device.type == "cpu" and not has_fast_bf16():
        message = f"{option}: this CPU has no instructions for bf16, which takes it about ten times as long as fp32"
        say_once(_log, option, f"{message}; take {instead}")


def cache_folder() -> Path:
    """Return the folder of encoded prompts and images, and of counts: AFTERFLOW_CACHE, or ~/.cache/afterflow.

    ConfigError where there is no home to find it in.
    """
    path = os.path.expandvars(os.environ.get("AFTERFLOW_CACHE") or "~/.cache/afterflow")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"AFTERFLOW_CACHE: there is no home folder for {path}; set it to a whole path") from None


def latents_file(inputs: Sequence[Any]) -> Path:
    """Return the file of the cache for latents that these inputs decide; its name is a digest of them."""
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()
    return cache_folder() / "latents" / f"{digest[:32]}.safetensors"


def write_cache_file(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write a file of the cache, so that another process reads all of it or none.

    What cannot be written is warned of and computed again another time.
    """
    with caching(file):
        make_folder(file.parent)
        with replacing(file) as partial:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
            apply_umask(partial)


@contextmanager
def caching(file: Path) -> Iterator[None]:
    """Warn, once, where the block cannot write a file of the cache."""
    try:
        yield
    except OutputError as error:
        what = f"cache {file.parent}"
        say_once(_log, what, f"nothing is kept in the cache {file.parent}, see AFTERFLOW_CACHE: {failure_words(error)}")


def read_cache_file(file: Path) -> dict[str, Tensor] | None:
    """Return the tensors in a file of the cache; None where there is none that can be read."""
    try:
        return load_file(file) if file.is_file() else None
    except (OSError, SafetensorError) as error:
        _log.warning(f"{file} in the cache cannot be read and is made anew: {error}")
        return None


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks that a transformer repeats, or each of a pair; they hold nearly all of its weights."""
    for network in networks_of(module):
        for part in network.children():
            if isinstance(part, nn.ModuleList):
                yield from part
