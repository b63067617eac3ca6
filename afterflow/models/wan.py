"""Wan 2.1 and Wan 2.2 TI2V-5B, text to video (arXiv:2503.20314), through diffusers.

A picture is a clip here: latents (C, f, h, w), pixels uint8 (F, H, W, 3).  The stock pipeline draws with UniPC, a
solver of several steps at a time.  Ours draws with single steps on nearly the same grid.

Wan 2.2's pipeline tells its network a time for every token.  From text alone they are all the same, and one time for
each clip says as much.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..sampling.conditioning import Conditioning, Embedding, Velocity
from ..sampling.schedules import LinearShift, Schedule, SD3Grid
from ..system.errors import ConfigError, InputError
from .packing import check_divides, check_text_tokens
from .pipeline import Model, Pretrained
from .vae import decode_clips, encode_clips

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline


@dataclass(frozen=True)
class Wan(Pretrained):
    """A Wan pipeline from text to video with one network: 2.1, or 2.2 TI2V-5B."""

    path: str = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    """Hub id or folder of the pipeline."""
    height: int = 240
    """Height in pixels."""
    width: int = 416
    """Width in pixels."""
    frames: int = 33
    """Frames of a clip: one more than a multiple of the autoencoder's four."""
    max_sequence_length: int = 512
    """Number of tokens that the T5 encoder reads."""

    def load(self, device: torch.device | str = "cpu") -> "WanModel":
        """Load everything but the text encoders."""
        return WanModel(self, device)


class WanModel(Model):
    """Wan: clips instead of images, drawn with single steps."""

    stock = "WanPipeline"
    encoders = ("text_encoder", "tokenizer")
    vae_encode, vae_decode = staticmethod(encode_clips), staticmethod(decode_clips)
    streams = ("patch_embedding",)
    usual_guidance = 5.0
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    single: bool = True
    """Whether the pipeline has one transformer."""

    def configure(self) -> None:
        """Set shapes, schedule and encoder key by the options and the pipeline's own configuration."""
        config, net = self.config, self.pipe.transformer.config
        if self.single and self.pipe.config.boundary_ratio is not None:
            raise InputError(
                f"model {config.path!r} has two transformers, as Wan 2.2 A14B does; take it as the family WanPair"
            )
        check_latent_statistics(config.path, self.pipe.vae.config)
        self.schedule = wan_schedule(self.pipe.scheduler)
        tokens = check_text_tokens(config.max_sequence_length, 512, "Wan")
        self.encoder_key = (), f"T5 {tokens}"
        self.text_shape = tokens, net.text_dim, None
        self.scale_factor, time = self.pipe.vae_scale_factor_spatial, self.pipe.vae_scale_factor_temporal
        _, tall, wide = net.patch_size
        self.pixel_unit = self.scale_factor * max(tall, wide)
        check_divides(config.height, self.scale_factor * tall, "height")
        check_divides(config.width, self.scale_factor * wide, "width")
        if config.frames < 1 or config.frames % time != 1 % time:
            near = max(0, config.frames - 1) // time * time + 1
            raise ConfigError(
                f"frames = {config.frames}: one more than a multiple of {time}, say {near} or {near + time}"
            )
        sides = config.height // self.scale_factor, config.width // self.scale_factor
        self.latent_shape = net.in_channels, (config.frames - 1) // time + 1, *sides

    def embed(self, pipe: "WanPipeline", prompts: list[str]) -> Embedding:
        """Encode B texts by the stock pipeline."""
        sequence, _ = pipe.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=self.config.max_sequence_length
        )
        return Embedding(sequence)

    @property
    def text_tokens(self) -> dict[str, int]:
        """Tokens of T5."""
        return {"tokenizer": self.config.max_sequence_length}

    def velocity(self, module: nn.Module) -> Velocity:
        """Return the velocity field of the transformer, or of a copy of it."""
        dtype: torch.dtype = module.dtype  # type: ignore[assignment]

        def v(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
            return module(
                hidden_states=x.to(dtype),
                timestep=1000 * t,
                encoder_hidden_states=cond.embedding().sequence.to(dtype),
                return_dict=False,
            )[0]

        return v

    def stock_inputs(self, positive: Embedding, negative: Embedding, guidance: float) -> dict[str, Any]:
        """Return the stock pipeline's arguments for encoded prompts and a guidance scale."""
        return {
            "prompt_embeds": positive.sequence,
            "negative_prompt_embeds": negative.sequence,
            "num_frames": self.config.frames,
            "guidance_scale": guidance,
        }


def check_latent_statistics(path: str, vae: Any) -> None:
    """Raise InputError where the autoencoder has no mean and std for each of its channels.

    Without its own in the file, diffusers takes those of Wan 2.1, which has 16 channels.
    """
    for name, values in (("latents_mean", vae.latents_mean), ("latents_std", vae.latents_std)):
        if len(values) != vae.z_dim:
            raise InputError(
                f"model {path!r}: its autoencoder has {vae.z_dim} channels and {len(values)} numbers in {name}; it is "
                "of an old layout, so download it again"
            )


def wan_schedule(scheduler: "UniPCMultistepScheduler | FlowMatchEulerDiscreteScheduler") -> Schedule:
    """Return the grid of the pipeline's own scheduler.  InputError for one that is not for flow matching."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return SD3Grid(scheduler.config.shift)
    if not scheduler.config.use_flow_sigmas:
        raise InputError(f"the pipeline's {type(scheduler).__name__} is not one for flow matching (use_flow_sigmas)")
    return LinearShift(scheduler.config.flow_shift)
