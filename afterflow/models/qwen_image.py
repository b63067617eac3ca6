"""Qwen-Image (arXiv:2508.02324) through diffusers."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import QwenImagePipeline
from torch import Tensor, nn

from ..sampling.conditioning import Conditioning, Embedding, Velocity
from .packing import pack_latents, packed_schedule, unpack_latents
from .pipeline import PipelineModel, Pretrained, latent_sides
from .vae import decode_clips, encode_clips


@dataclass(frozen=True)
class QwenImage(Pretrained):
    """A Qwen-Image pipeline."""

    path: str = "Qwen/Qwen-Image"
    """Hub id or folder."""
    size: int = 512
    """Height and width in pixels."""
    width: int | None = None
    """In pixels, where it is not the height."""
    max_sequence_length: int = 512
    """Tokens of a prompt that are kept."""

    def load(self, device: torch.device | str = "cpu") -> "QwenImageModel":
        return QwenImageModel(self, device)


class QwenImageModel(PipelineModel):
    stock = QwenImagePipeline
    encoders = ("text_encoder", "tokenizer")
    usual_guidance = 4.0
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
    )

    def settle(self) -> None:
        config = self.config
        self.tokens_of_text = config.max_sequence_length
        if not 1 <= self.tokens_of_text <= 1024:
            raise ValueError(f"max_sequence_length = {self.tokens_of_text}: Qwen-Image reads 1 to 1024 tokens")
        factor = 2 ** len(self.pipe.vae.temperal_downsample)  # the spelling is diffusers'
        sides = latent_sides(config.size, config.width, factor, 2 * factor)
        self.latent_shape = (self.pipe.transformer.config.in_channels // 4, *sides)
        self.schedule = packed_schedule(self.pipe.scheduler, sides[0] * sides[1] // 4)

    @property
    def reading(self) -> tuple[tuple[str, ...], str]:
        return (), f"{self.tokens_of_text} tokens"

    @property
    def text_shape(self) -> tuple[int, int, int | None]:
        return self.tokens_of_text, self.pipe.transformer.config.joint_attention_dim, None

    def embed(self, pipe: QwenImagePipeline, prompts: list[str]) -> Embedding:
        sequence, mask = pipe.encode_prompt(prompts, max_sequence_length=self.tokens_of_text)
        # None says that no row is padded; other batches may be longer.
        return Embedding(sequence, mask=torch.ones_like(sequence[..., 0], dtype=torch.long) if mask is None else mask)

    def velocity(self, module: nn.Module) -> Velocity:
        dtype: torch.dtype = module.dtype  # type: ignore[assignment]

        def v(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
            embedding = cond.embedding()
            B, _, H, W = x.shape
            predicted = module(
                hidden_states=pack_latents(x).to(dtype),
                timestep=t,
                encoder_hidden_states=embedding.sequence.to(dtype),
                encoder_hidden_states_mask=embedding.mask,
                img_shapes=[[(1, H // 2, W // 2)]] * B,
                return_dict=False,
            )[0]
            return unpack_latents(predicted, x)

        return v

    @staticmethod
    def combine(empty: Tensor, full: Tensor, scale: float) -> Tensor:
        """Guidance that keeps the length of each token's velocity, as the stock pipeline has it."""
        mixed = pack_latents(empty + scale * (full - empty))
        kept = mixed * (pack_latents(full).norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True))
        return unpack_latents(kept, full)

    def by_stock(self, told: Embedding, empty: Embedding, noise: Tensor, steps: int, guidance: float) -> Tensor:
        height, width = (side * self.pipe.vae_scale_factor for side in self.latent_shape[1:])
        tokens = self.pipe(
            prompt_embeds=told.sequence,
            prompt_embeds_mask=told.mask,
            negative_prompt_embeds=empty.sequence,
            negative_prompt_embeds_mask=empty.mask,
            latents=pack_latents(noise),
            height=height,
            width=width,
            num_inference_steps=steps,
            true_cfg_scale=guidance,
            max_sequence_length=self.tokens_of_text,
            output_type="latent",
        ).images
        return unpack_latents(tokens, noise)

    def encode_images(self, images: np.ndarray) -> Tensor:
        return encode_clips(self.vae, images[:, None])[:, :, 0]

    def decode(self, latents: Tensor) -> np.ndarray:
        return decode_clips(self.vae, latents[:, :, None])[:, 0]
