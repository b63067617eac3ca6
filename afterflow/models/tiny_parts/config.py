"""Tiny pipelines before their transformers are trained."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ..sd3 import SD3, SD3Model
from ..wan import Wan, WanModel
from .build import build_tiny_sd3
from .tokenizer import MAX_LENGTH
from .video import CLIP_FRAMES, CLIP_SIZE, build_tiny_wan


@dataclass(frozen=True)
class TinyParts:
    """A tiny SD3 from scratch: autoencoder and text encoders are trained first, the transformer is random."""

    folder: str = "runs/tiny_sd3_parts"
    """Where the parts are kept; they are made only if the folder does not exist."""
    seed: int = 0
    """Of their training."""

    def load(self, device: torch.device | str = "cpu") -> SD3Model:
        if not Path(self.folder).is_dir():
            build_tiny_sd3(Path(self.folder), self.seed)
        return SD3(self.folder).load(device)


@dataclass(frozen=True)
class TinyVideoParts:
    """A tiny Wan from scratch: autoencoder and text encoder are trained first, the transformer is random."""

    folder: str = "runs/tiny_wan_parts"
    """Where the parts are kept; they are made only if the folder does not exist."""
    seed: int = 0
    """Of their training."""

    def load(self, device: torch.device | str = "cpu") -> WanModel:
        if not Path(self.folder).is_dir():
            build_tiny_wan(Path(self.folder), self.seed)
        return Wan(
            self.folder, height=CLIP_SIZE, width=CLIP_SIZE, frames=CLIP_FRAMES, max_sequence_length=MAX_LENGTH
        ).load(device)
