"""What a model offers the rest of afterflow: everything of one family that is specific to diffusers.

Times, velocities and images are in our convention here and only here converted: t = 1 is noise, v = ε - x_0,
images are uint8 (B, H, W, 3), clips of F frames uint8 (B, F, H, W, 3).
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..sampling.conditioning import Embedding, Velocity
from ..sampling.schedules import Schedule
from .lora.files import StoredLoRA
from .wrappers import Combine, guided, in_chunks, linear_guidance


def default_device() -> torch.device:
    """Return the accelerator where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cache_folder() -> Path:
    """Return the folder of encoded prompts and images: AFTERFLOW_CACHE, or ~/.cache/afterflow."""
    return Path(os.environ.get("AFTERFLOW_CACHE", Path.home() / ".cache" / "afterflow"))


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


class Model(ABC):
    """A network that predicts velocities, with what surrounds it: encoders of prompts, an autoencoder, LoRA files."""

    module: nn.Module
    """The network that is trained; adapters attach to it."""
    schedule: Schedule
    """The sampling grid that the pipeline's own scheduler prescribes."""
    latent_shape: tuple[int, ...]
    """Shape of one image's latents, without the batch."""
    lora_targets: tuple[str, ...]
    """The layers that the family's LoRAs adapt by default."""
    combine: Combine = staticmethod(linear_guidance)
    """How the family's own pipeline guides: (v_∅, v_c, scale) → velocity."""

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Embedding:
        """Encode P texts to P rows.  They are cached on disk by content; encoders are loaded only for new texts."""

    @abstractmethod
    def velocity(self, module: nn.Module) -> Velocity:
        """Return the velocity field of `module`, which is this model's network or a copy of it."""

    def guided_velocity(self, scale: float, chunk: int) -> Velocity:
        """Return the velocity field that draws images: guided as the family does, in passes of `chunk` rows."""
        return in_chunks(guided(self.velocity(self.module), scale, self.combine), chunk)

    @property
    @abstractmethod
    def image_key(self) -> str:
        """A digest that differs between models that encode an image differently."""

    @abstractmethod
    def encode_images(self, images: np.ndarray) -> Tensor:
        """Encode uint8 images (B, H, W, 3), or clips (B, F, H, W, 3), to latents (B, ...)."""

    @abstractmethod
    def decode(self, latents: Tensor) -> np.ndarray:
        """Decode latents (B, ...) to uint8 images (B, H, W, 3), or clips (B, F, H, W, 3)."""

    @abstractmethod
    def save_lora(self, folder: Path) -> None:
        """Write the adapter of `module` so that the stock pipeline's load_lora_weights(folder) reads it."""

    @abstractmethod
    def load_lora(self, folder: str | Path, name: str = "default") -> None:
        """Attach and activate an adapter of diffusers, peft or kohya's trainers.  InputError when it does not fit.

        An adapter in another format than diffusers' gets its scale into its weights, so that its alpha is its rank.
        """

    @abstractmethod
    def read_lora(self, folder: str | Path) -> StoredLoRA:
        """Return what an adapter adds to each layer, by this model's names.  InputError when it cannot be read."""

    @abstractmethod
    def save_pipeline(self, folder: Path, network: nn.Module) -> None:
        """Write the whole pipeline with the trained network, which is `module` or a copy of it."""
