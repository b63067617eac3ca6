"""FLUX.2-klein (Black Forest Labs) through diffusers: 4B and 9B, the base models and the distilled ones.

Latents are the autoencoder's in patches of 2x2, which its own batch statistics bring to mean 0 and variance 1.  The
distilled models draw in 4 steps without guidance, and their pipeline leaves a guidance scale out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..sampling.conditioning import Conditioning, Embedding, Velocity
from ..sampling.schedules import Flux2Shift, LinearShift, Schedule
from .packing import check_text_tokens, latent_sides
from .pipeline import Model, Pretrained
from .pipeline_files import read_index
from .vae import decode_patches, encode_patches, normalised_patches

if TYPE_CHECKING:
    from diffusers import Flux2KleinPipeline


@dataclass(frozen=True)
class Flux2Klein(Pretrained):
    """A FLUX.2-klein pipeline."""

    path: str = "black-forest-labs/FLUX.2-klein-base-4B"
    """Hub id or folder of the pipeline."""
    size: int = 512
    """Height and width in pixels."""
    width: int | None = None
    """Width in pixels, where it is not the height."""
    max_sequence_length: int = 512
    """Number of tokens of a prompt, of the chat around it and of padding, all of which the network sees."""

    def load(self, device: torch.device | str = "cpu") -> "Flux2KleinModel":
        """Load everything but the text encoders."""
        return Flux2KleinModel(self, device)


class Flux2KleinModel(Model):
    """FLUX.2-klein: normalised patches, positions on four axes, and layers of a language model as prompts."""

    stock = "Flux2KleinPipeline"
    encoders = ("text_encoder", "tokenizer")
    vae_encode, vae_decode = staticmethod(encode_patches), staticmethod(decode_patches)
    streams = ("x_embedder", "context_embedder")
    usual_guidance = 4.0
    # Flow-Factory's, without the layer that single blocks end with: its name, to_out, is also that of a list.
    lora_targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out", "attn.to_qkv_mlp_proj"),
    )

    def configure(self) -> None:
        """Set shapes, schedule and encoder key by the options and the pipeline's own configuration."""
        config, net, vae = self.config, self.pipe.transformer.config, self.pipe.vae.config
        tokens = check_text_tokens(config.max_sequence_length, 512, "FLUX.2-klein")
        self.encoder_key = (), f"Qwen3 {tokens}"
        self.text_shape = tokens, net.joint_attention_dim, None
        # Pixels on a side of a patch, which is what a latent is here.
        self.scale_factor = self.pixel_unit = 2 * 2 ** (len(vae.block_out_channels) - 1)
        H, W = latent_sides(config.size, config.width, self.scale_factor, self.pixel_unit)
        self.latent_shape = net.in_channels, H, W
        self.schedule = klein_schedule(self.pipe, H * W)

    @classmethod
    def guidance_of(cls, folder: Path) -> float:
        """Return the guidance scale of the model's authors: 1 for a distilled one, which has none."""
        return 1.0 if read_index(folder).get("is_distilled") else cls.usual_guidance

    def embed(self, pipe: "Flux2KleinPipeline", prompts: list[str]) -> Embedding:
        """Encode B texts by the stock pipeline, to the full number of tokens; nothing tells padding from text."""
        return Embedding(pipe.encode_prompt(prompts, max_sequence_length=self.config.max_sequence_length)[0])

    @property
    def text_tokens(self) -> dict[str, int]:
        """Tokens of the language model."""
        return {"tokenizer": self.config.max_sequence_length}

    def velocity(self, module: nn.Module) -> Velocity:
        """Return the velocity field of the transformer, or of a copy of it."""
        dtype: torch.dtype = module.dtype  # type: ignore[assignment]

        def v(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
            sequence = cond.embedding().sequence
            places = lambda *sides: torch.cartesian_prod(*(torch.arange(side, device=x.device) for side in sides))
            predicted = module(
                hidden_states=x.flatten(2).transpose(1, 2).to(dtype),
                timestep=t,
                guidance=None,
                encoder_hidden_states=sequence.to(dtype),
                txt_ids=places(1, 1, 1, sequence.shape[1]),
                img_ids=places(1, *x.shape[2:], 1),
                return_dict=False,
            )[0]
            return predicted.transpose(1, 2).reshape(x.shape)

        return v

    def stock_inputs(self, positive: Embedding, negative: Embedding, guidance: float) -> dict[str, Any]:
        """Return the stock pipeline's arguments for encoded prompts and a guidance scale."""
        return {
            "prompt_embeds": positive.sequence,
            "negative_prompt_embeds": negative.sequence,
            "guidance_scale": guidance,
        }

    def from_stock(self, latents: Tensor, like: Tensor) -> Tensor:
        """Return the latents (B, 4C, H, W) of what the stock pipeline gives its autoencoder, (B, C, 2H, 2W)."""
        return normalised_patches(self.vae, latents)


def klein_schedule(pipe: Any, tokens: int) -> Schedule:
    """Return the grid on which the stock pipeline draws so many tokens."""
    config = pipe.scheduler.config
    if not config.use_dynamic_shifting:
        return LinearShift(config.shift)
    return Flux2Shift(tokens, usual_steps=4 if pipe.config.is_distilled else 50)
