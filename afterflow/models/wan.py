"""Wan 2.1, text to video (arXiv:2503.20314), through diffusers.

An image of other families is a clip here: latents (C, f, h, w), pictures uint8 (F, H, W, 3).  The stock pipeline draws
with UniPC, a solver of several steps at a time; our pictures are drawn with single steps on nearly the same grid.
"""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline
from torch import Tensor, nn

from ..sampling.conditioning import Conditioning, Embedding, Velocity
from ..sampling.schedules import LinearShift, Schedule, SD3Grid
from .pipeline import PipelineModel, Pretrained, check_divides
from .vae import decode_clips, encode_clips


@dataclass(frozen=True)
class Wan(Pretrained):
    """A Wan 2.1 pipeline from text to video."""

    path: str = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    """Hub id or folder."""
    height: int = 240
    """In pixels."""
    width: int = 416
    """In pixels."""
    frames: int = 33
    """Of a clip: one more than a multiple of the autoencoder's four."""
    max_sequence_length: int = 512
    """Tokens of the T5 encoder."""

    def load(self, device: torch.device | str = "cpu") -> "WanModel":
        return WanModel(self, device)


class WanModel(PipelineModel):
    stock = WanPipeline
    encoders = ("text_encoder", "tokenizer")
    usual_guidance = 5.0
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    def settle(self) -> None:
        config = self.config
        if self.pipe.config.boundary_ratio is not None:
            raise ValueError(f"model {config.path!r} has two transformers, as Wan 2.2 does; take a Wan 2.1 pipeline")
        self.tokens_of_text, self.schedule = config.max_sequence_length, wan_schedule(self.pipe.scheduler)
        space, time = self.pipe.vae_scale_factor_spatial, self.pipe.vae_scale_factor_temporal
        _, tall, wide = self.pipe.transformer.config.patch_size
        check_divides(config.height, space * tall, "height")
        check_divides(config.width, space * wide, "width")
        if config.frames < 1 or config.frames % time != 1 % time:
            near = max(0, config.frames - 1) // time * time + 1
            raise ValueError(
                f"frames = {config.frames}: one more than a multiple of {time}, say {near} or {near + time}"
            )
        latent_frames = (config.frames - 1) // time + 1
        self.latent_shape = (
            self.pipe.transformer.config.in_channels,
            latent_frames,
            config.height // space,
            config.width // space,
        )

    @property
    def reading(self) -> tuple[tuple[str, ...], str]:
        return (), f"T5 {self.tokens_of_text}"

    @property
    def text_shape(self) -> tuple[int, int, int | None]:
        return self.tokens_of_text, self.pipe.transformer.config.text_dim, None

    def embed(self, pipe: WanPipeline, prompts: list[str]) -> Embedding:
        sequence, _ = pipe.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=self.tokens_of_text
        )
        return Embedding(sequence)

    def velocity(self, module: nn.Module) -> Velocity:
        dtype: torch.dtype = module.dtype  # type: ignore[assignment]

        def v(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
            return module(
                hidden_states=x.to(dtype),
                timestep=1000 * t,
                encoder_hidden_states=cond.embedding().sequence.to(dtype),
                return_dict=False,
            )[0]

        return v

    def by_stock(self, told: Embedding, empty: Embedding, noise: Tensor, steps: int, guidance: float) -> Tensor:
        # One step at a time on the same grid, where UniPC takes several together.
        own, self.pipe.scheduler = self.pipe.scheduler, OnGrid(self.schedule.times(steps))
        try:
            _, frames, height, width = self.latent_shape
            space, time = self.pipe.vae_scale_factor_spatial, self.pipe.vae_scale_factor_temporal
            return self.pipe(
                prompt_embeds=told.sequence,
                negative_prompt_embeds=empty.sequence,
                latents=noise,
                height=height * space,
                width=width * space,
                num_frames=(frames - 1) * time + 1,
                num_inference_steps=steps,
                guidance_scale=guidance,
                output_type="latent",
            ).frames
        finally:
            self.pipe.scheduler = own

    def encode_images(self, images: np.ndarray) -> Tensor:
        # An image is a clip of one frame.
        return encode_clips(self.vae, images if images.ndim == 5 else images[:, None])

    def decode(self, latents: Tensor) -> np.ndarray:
        return decode_clips(self.vae, latents)


class OnGrid(FlowMatchEulerDiscreteScheduler):
    """Euler's steps on a grid that is given."""

    def __init__(self, times: Tensor) -> None:
        super().__init__()
        self.grid = times[:-1].tolist()

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        super().set_timesteps(sigmas=self.grid, device=device)


def wan_schedule(scheduler: UniPCMultistepScheduler | FlowMatchEulerDiscreteScheduler) -> Schedule:
    """The grid of the pipeline's own scheduler."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return SD3Grid(scheduler.config.shift)
    if not scheduler.config.use_flow_sigmas:
        raise ValueError(f"the pipeline's {type(scheduler).__name__} is not one for flow matching (use_flow_sigmas)")
    return LinearShift(scheduler.config.flow_shift)
