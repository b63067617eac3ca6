"""FLUX.2-klein (Black Forest Labs) through diffusers: 4B and 9B, the base models and the distilled ones.

Latents are the autoencoder's in patches of 2x2, which its own batch statistics bring to mean 0 and variance 1.  The
distilled models draw in 4 steps without guidance, and their pipeline leaves a guidance scale out.

Pictures that a prompt is about are more tokens, at other times on the first of four axes.  They are brought to the size
of what is drawn; the pipeline would keep each one's own size.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..sampling.conditioning import Conditioning, Embedding, Velocity
from ..sampling.schedules import Flux2Shift, LinearShift, Schedule
from .packing import check_text_tokens, latent_sides
from .pipeline import Model, Pretrained
from .vae import decode_patches, encode_patches, normalised_patches

if TYPE_CHECKING:
    from diffusers import Flux2KleinPipeline

PICTURE_STEP = 10
"""Distance in time of one input picture from the next, and of the first from what is drawn."""


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
    prompts_in_chat = True
    vae_encode, vae_decode = staticmethod(encode_patches), staticmethod(decode_patches)
    streams = ("x_embedder", "context_embedder")
    usual_guidance = 4.0
    takes_pictures = "may"
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
            embedding = cond.embedding()
            sequence, tokens = embedding.sequence, [x.flatten(2).transpose(1, 2)]
            positions = [token_grid(0, x)]
            for i, picture in enumerate(() if embedding.pictures is None else embedding.pictures.unbind(1), 1):
                tokens.append(picture.flatten(2).transpose(1, 2))
                positions.append(token_grid(PICTURE_STEP * i, picture))
            predicted = module(
                hidden_states=torch.cat(tokens, 1).to(dtype),
                timestep=t,
                guidance=None,
                encoder_hidden_states=sequence.to(dtype),
                txt_ids=functional.pad(torch.arange(sequence.shape[1], device=x.device)[:, None], (3, 0)),
                img_ids=torch.cat(positions),
                return_dict=False,
            )[0]
            return predicted[:, : tokens[0].shape[1]].transpose(1, 2).reshape(x.shape)

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


def token_grid(time: int, x: Tensor) -> Tensor:
    """Return the positions (HW, 4) of the patches of x (B, C, H, W): a time, the rows, the columns, and zeros."""
    rows, columns = (torch.arange(side, device=x.device) for side in x.shape[2:])
    positions = functional.pad(torch.cartesian_prod(rows, columns), (1, 1))
    positions[:, 0] = time
    return positions


def klein_schedule(pipe: Any, tokens: int) -> Schedule:
    """Return the grid on which the stock pipeline draws so many tokens."""
    config = pipe.scheduler.config
    if not config.use_dynamic_shifting:
        return LinearShift(config.shift)
    return Flux2Shift(tokens, usual_steps=4 if pipe.config.is_distilled else 50)
