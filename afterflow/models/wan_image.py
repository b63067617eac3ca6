"""Wan 2.2 TI2V-5B, from a picture and a text to video, through diffusers.

The picture is the first frame.  The network is told so by a time for every token: 0 for those of the first frame,
whose latents are always the picture's.  What it predicts there is of no use; here that frame's velocity leads to the
picture in a straight line, so that every solver ends on it and no method trains it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..sampling.conditioning import Conditioning, Embedding, Velocity
from ..sampling.flow import expand
from ..system.errors import ConfigError, InputError
from .wan import Wan, WanModel


@dataclass(frozen=True)
class WanImage(Wan):
    """A Wan 2.2 TI2V-5B pipeline from a picture to video."""

    path: str = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
    """Hub id or folder of the pipeline."""

    def load(self, device: torch.device | str = "cpu") -> "WanImageModel":
        """Load everything but the text encoders."""
        return WanImageModel(self, device)


class WanImageModel(WanModel):
    """Wan from a picture: its first frame is given."""

    stock, also = "WanImageToVideoPipeline", ("WanPipeline",)  # the released folder may name either
    takes_pictures, most_pictures = "must", 1

    @classmethod
    def also_reads(cls, index: Mapping[str, Any]) -> bool:
        """Whether the pipeline from text is TI2V-5B's, which is told a time for every token.  The released one is."""
        return index["_class_name"] in cls.also and index.get("expand_timesteps") is True

    def configure(self) -> None:
        """Set shapes, schedule and encoder key.  InputError for a pipeline that is not told a time for every token."""
        if not self.pipe.config.expand_timesteps:
            raise InputError(
                f"model {self.config.path!r} appends its picture to the channels, as Wan 2.1 and Wan 2.2 A14B do from "
                "images; only Wan 2.2 TI2V-5B is known, whose model_index.json says expand_timesteps"
            )
        super().configure()
        if self.latent_shape[1] == 1:
            raise ConfigError(
                f"frames = {self.config.frames}: the first frame is given; take more, so that some are drawn"
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the latents of a first frame."""
        C, _, H, W = self.latent_shape
        return C, 1, H, W

    def embed(self, pipe: Any, prompts: list[str]) -> Embedding:
        """Encode B texts as the pipeline from text does; the one from pictures fails where ftfy is not installed."""
        from diffusers import WanPipeline

        tokens = self.config.max_sequence_length
        return Embedding(WanPipeline._get_t5_prompt_embeds(pipe, prompts, max_sequence_length=tokens))

    def velocity(self, module: nn.Module) -> Velocity:
        """Return the velocity field of the transformer, or of a copy of it."""
        dtype: torch.dtype = module.dtype  # type: ignore[assignment]
        _, tall, wide = self.pipe.transformer.config.patch_size

        def v(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
            embedding = cond.embedding()
            assert embedding.pictures is not None
            first = embedding.pictures[:, 0].to(x.dtype)
            rest = x[:, :, 1:]
            frames, tokens = x.shape[2], x.shape[3] // tall * (x.shape[4] // wide)
            times = (1000 * t)[:, None].expand(-1, frames * tokens).clone()
            times[:, :tokens] = 0
            predicted = module(
                hidden_states=torch.cat([first, rest], 2).to(dtype),
                timestep=times,
                encoder_hidden_states=embedding.sequence.to(dtype),
                return_dict=False,
            )[0]
            # A straight line from anywhere to the picture, which is reached at t = 0.
            line = (x[:, :, :1] - first) / expand(t, first).clamp(min=1e-6)
            return torch.cat([line.to(predicted.dtype), predicted[:, :, 1:]], 2)

        return v
