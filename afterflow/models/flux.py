"""FLUX.1 (Black Forest Labs) through diffusers.

FLUX.1-dev is distilled from a guided model and takes the guidance scale as an input, which is no second forward pass:
`embedded_guidance` here.  A run's guidance_scale above 1 would guide it once more, as diffusers' true_cfg_scale does.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..sampling.conditioning import Conditioning, Embedding, Velocity
from .packing import check_text_tokens, pack_latents, packed_geometry, unpack_latents
from .pipeline import Model, Pretrained
from .prompt_lengths import clip_tokens

if TYPE_CHECKING:
    from diffusers import FluxPipeline


@dataclass(frozen=True)
class Flux(Pretrained):
    """A FLUX.1 pipeline."""

    path: str = "black-forest-labs/FLUX.1-dev"
    """Hub id or folder of the pipeline."""
    size: int = 512
    """Height and width in pixels."""
    width: int | None = None
    """Width in pixels, where it is not the height."""
    embedded_guidance: float = 3.5
    """Guidance scale that a guidance-distilled transformer takes as input.  Others have no such input."""
    max_sequence_length: int = 512
    """Number of tokens that the T5 encoder reads."""

    def load(self, device: torch.device | str = "cpu") -> "FluxModel":
        """Load everything but the text encoders."""
        return FluxModel(self, device)


class FluxModel(Model):
    """FLUX.1: tokens of 2x2 latents, and a network that takes a guidance scale as input."""

    stock = "FluxPipeline"
    encoders = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    packed = True
    streams = ("x_embedder", "context_embedder")
    usual_guidance = 1.0
    # Attention, and feed-forward layers of the double blocks, as flow_grpo adapts FLUX.
    lora_targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    )

    def configure(self) -> None:
        """Set shapes, schedule and encoder key by the options and the pipeline's own configuration."""
        config, net = self.config, self.pipe.transformer.config
        tokens = check_text_tokens(config.max_sequence_length, 512, "FLUX.1")
        self.encoder_key = (), f"T5 {tokens}"
        self.text_shape = tokens, net.joint_attention_dim, net.pooled_projection_dim
        self.scale_factor = 2 ** (len(self.pipe.vae.config.block_out_channels) - 1)
        self.pixel_unit = 2 * self.scale_factor
        self.latent_shape, self.schedule = packed_geometry(self.pipe, config, self.scale_factor)

    def embed(self, pipe: "FluxPipeline", prompts: list[str]) -> Embedding:
        """Encode B texts by the stock pipeline."""
        sequence, pooled, _ = pipe.encode_prompt(prompts, max_sequence_length=self.config.max_sequence_length)
        return Embedding(sequence, pooled)

    @property
    def text_tokens(self) -> dict[str, int]:
        """Tokens of CLIP and of T5."""
        return {"tokenizer": clip_tokens(self.folder), "tokenizer_2": self.config.max_sequence_length}

    def velocity(self, module: nn.Module) -> Velocity:
        """Return the velocity field of the transformer, or of a copy of it."""
        dtype: torch.dtype = module.dtype  # type: ignore[assignment]
        distilled = module.config.guidance_embeds

        def v(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
            embedding = cond.embedding()
            assert embedding.pooled is not None
            pictures = [x, *(() if embedding.pictures is None else embedding.pictures.unbind(1))]
            tokens = [pack_latents(picture) for picture in pictures]
            predicted = module(
                hidden_states=torch.cat(tokens, 1).to(dtype),
                timestep=t,
                guidance=torch.full_like(t, self.config.embedded_guidance) if distilled else None,
                pooled_projections=embedding.pooled.to(dtype),
                encoder_hidden_states=embedding.sequence.to(dtype),
                txt_ids=torch.zeros(embedding.sequence.shape[1], 3, device=x.device),
                img_ids=torch.cat([token_positions(picture, i) for i, picture in enumerate(pictures)]),
                return_dict=False,
            )[0]
            return unpack_latents(predicted[:, : tokens[0].shape[1]], x)

        return v

    def stock_inputs(self, positive: Embedding, negative: Embedding, guidance: float) -> dict[str, Any]:
        """Return the stock pipeline's arguments for encoded prompts and a guidance scale."""
        return {
            "prompt_embeds": positive.sequence,
            "pooled_prompt_embeds": positive.pooled,
            "negative_prompt_embeds": negative.sequence,
            "negative_pooled_prompt_embeds": negative.pooled,
            "guidance_scale": self.config.embedded_guidance,
            "true_cfg_scale": guidance,
        }


def token_positions(x: Tensor, i: int = 0) -> Tensor:
    """Positions (H/2 W/2, 3) of the tokens of x (B, C, H, W), the i-th of several: i, the row and the column of each.

    What is drawn is number 0, and an input picture number 1.
    """
    rows, columns = (torch.arange(n // 2, device=x.device, dtype=torch.float32) for n in x.shape[2:])
    grid = torch.cartesian_prod(rows, columns)
    return torch.cat([torch.full_like(grid[:, :1], i), grid], 1)
