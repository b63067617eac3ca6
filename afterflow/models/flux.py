"""FLUX.1 (Black Forest Labs) through diffusers.

FLUX.1-dev is distilled from a guided model and takes the guidance scale as an input, which is no second forward pass:
`embedded_guidance` here.  A run's guidance_scale above 1 would guide it once more, as diffusers' true_cfg_scale does.
"""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import FluxPipeline
from torch import Tensor, nn

from ..sampling.conditioning import Conditioning, Embedding, Velocity
from .packing import pack_latents, packed_schedule, unpack_latents
from .pipeline import PipelineModel, Pretrained, latent_sides
from .vae import decode_images, encode_images


@dataclass(frozen=True)
class Flux(Pretrained):
    """A FLUX.1 pipeline."""

    path: str = "black-forest-labs/FLUX.1-dev"
    """Hub id or folder."""
    size: int = 512
    """Height and width in pixels."""
    width: int | None = None
    """In pixels, where it is not the height."""
    embedded_guidance: float = 3.5
    """The scale that a guidance-distilled transformer is told; others have no such input."""
    max_sequence_length: int = 512
    """Tokens of the T5 encoder."""

    def load(self, device: torch.device | str = "cpu") -> "FluxModel":
        return FluxModel(self, device)


class FluxModel(PipelineModel):
    stock = FluxPipeline
    encoders = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    usual_guidance = 1.0
    # Attention, and feed-forward layers of the double blocks, as flow_grpo adapts FLUX.
    lora_targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    )

    def settle(self) -> None:
        config = self.config
        self.tokens_of_text, self.scale = config.max_sequence_length, config.embedded_guidance
        if not 1 <= self.tokens_of_text <= 512:
            raise ValueError(f"max_sequence_length = {self.tokens_of_text}: FLUX.1 reads 1 to 512 tokens")
        factor = 2 ** (len(self.pipe.vae.config.block_out_channels) - 1)
        sides = latent_sides(config.size, config.width, factor, 2 * factor)
        self.latent_shape = (self.pipe.transformer.config.in_channels // 4, *sides)
        self.schedule = packed_schedule(self.pipe.scheduler, sides[0] * sides[1] // 4)

    @property
    def reading(self) -> tuple[tuple[str, ...], str]:
        return (), f"T5 {self.tokens_of_text}"

    @property
    def text_shape(self) -> tuple[int, int, int | None]:
        net = self.pipe.transformer.config
        return self.tokens_of_text, net.joint_attention_dim, net.pooled_projection_dim

    def embed(self, pipe: FluxPipeline, prompts: list[str]) -> Embedding:
        sequence, pooled, _ = pipe.encode_prompt(prompts, max_sequence_length=self.tokens_of_text)
        return Embedding(sequence, pooled)

    def velocity(self, module: nn.Module) -> Velocity:
        dtype: torch.dtype = module.dtype  # type: ignore[assignment]
        distilled = module.config.guidance_embeds

        def v(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
            embedding = cond.embedding()
            assert embedding.pooled is not None
            predicted = module(
                hidden_states=pack_latents(x).to(dtype),
                timestep=t,
                guidance=torch.full_like(t, self.scale) if distilled else None,
                pooled_projections=embedding.pooled.to(dtype),
                encoder_hidden_states=embedding.sequence.to(dtype),
                txt_ids=torch.zeros(embedding.sequence.shape[1], 3, device=x.device),
                img_ids=places(x),
                return_dict=False,
            )[0]
            return unpack_latents(predicted, x)

        return v

    def by_stock(self, told: Embedding, empty: Embedding, noise: Tensor, steps: int, guidance: float) -> Tensor:
        height, width = (side * self.pipe.vae_scale_factor for side in self.latent_shape[1:])
        tokens = self.pipe(
            prompt_embeds=told.sequence,
            pooled_prompt_embeds=told.pooled,
            negative_prompt_embeds=empty.sequence,
            negative_pooled_prompt_embeds=empty.pooled,
            latents=pack_latents(noise),
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=self.scale,
            true_cfg_scale=guidance,
            output_type="latent",
        ).images
        return unpack_latents(tokens, noise)

    def encode_images(self, images: np.ndarray) -> Tensor:
        return encode_images(self.vae, images)

    def decode(self, latents: Tensor) -> np.ndarray:
        return decode_images(self.vae, latents)


def places(x: Tensor) -> Tensor:
    """Row and column of each of the tokens of x (B, C, H, W): (H/2 W/2, 3), the first column 0."""
    rows, columns = (torch.arange(n // 2, device=x.device, dtype=torch.float32) for n in x.shape[2:])
    grid = torch.cartesian_prod(rows, columns)
    return torch.cat([torch.zeros_like(grid[:, :1]), grid], 1)
