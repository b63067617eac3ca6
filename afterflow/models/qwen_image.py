"""Qwen-Image (arXiv:2508.02324) through diffusers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..sampling.conditioning import Conditioning, Embedding, Velocity
from .packing import check_text_tokens, pack_latents, packed_geometry, unpack_latents
from .pipeline import Model, Pretrained
from .vae import decode_frames, encode_frames

if TYPE_CHECKING:
    from diffusers import QwenImagePipeline


@dataclass(frozen=True)
class QwenImage(Pretrained):
    """A Qwen-Image pipeline."""

    path: str = "Qwen/Qwen-Image"
    """Hub id or folder of the pipeline."""
    size: int = 512
    """Height and width in pixels."""
    width: int | None = None
    """Width in pixels, where it is not the height."""
    max_sequence_length: int = 512
    """Number of tokens of a prompt; longer prompts are cut."""

    def load(self, device: torch.device | str = "cpu") -> "QwenImageModel":
        """Load everything but the text encoders."""
        return QwenImageModel(self, device)


class QwenImageModel(Model):
    """Qwen-Image: tokens of 2x2 latents, padded prompts with a mask, and guidance of its own."""

    stock = "QwenImagePipeline"
    encoders = ("text_encoder", "tokenizer")
    packed, vae_encode, vae_decode = True, staticmethod(encode_frames), staticmethod(decode_frames)
    streams = ("img_in", "txt_in")
    usual_guidance = 4.0
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
    )

    def configure(self) -> None:
        """Set shapes, schedule and encoder key by the options and the pipeline's own configuration."""
        config = self.config
        tokens = check_text_tokens(config.max_sequence_length, 1024, "Qwen-Image")
        self.encoder_key = (), f"{tokens} tokens"
        self.text_shape = tokens, self.pipe.transformer.config.joint_attention_dim, None
        self.scale_factor = 2 ** len(self.pipe.vae.temperal_downsample)  # the spelling is diffusers'
        self.pixel_unit = 2 * self.scale_factor
        self.latent_shape, self.schedule = packed_geometry(self.pipe, config, self.scale_factor)

    def embed(self, pipe: "QwenImagePipeline", prompts: list[str]) -> Embedding:
        """Encode B texts by the stock pipeline."""
        return with_mask(*pipe.encode_prompt(prompts, max_sequence_length=self.config.max_sequence_length))

    @property
    def text_tokens(self) -> dict[str, int]:
        """Tokens of the language model."""
        return {"tokenizer": self.config.max_sequence_length}

    def velocity(self, module: nn.Module) -> Velocity:
        """Return the velocity field of the transformer, or of a copy of it."""
        dtype: torch.dtype = module.dtype  # type: ignore[assignment]

        def v(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
            embedding = cond.embedding()
            pictures = [x, *(() if embedding.pictures is None else embedding.pictures.unbind(1))]
            tokens = [pack_latents(picture) for picture in pictures]
            predicted = module(
                hidden_states=torch.cat(tokens, 1).to(dtype),
                timestep=t,
                encoder_hidden_states=embedding.sequence.to(dtype),
                encoder_hidden_states_mask=embedding.mask,
                img_shapes=[[(1, p.shape[2] // 2, p.shape[3] // 2) for p in pictures]] * len(x),
                return_dict=False,
            )[0]
            return unpack_latents(predicted[:, : tokens[0].shape[1]], x)

        return v

    @staticmethod
    def combine(empty: Tensor, full: Tensor, scale: float) -> Tensor:
        """Guide without changing the length of a token's velocity, as the stock pipeline does."""
        mixed = pack_latents(empty + scale * (full - empty))
        scaled = mixed * (pack_latents(full).norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True))
        return unpack_latents(scaled, full)

    def stock_inputs(self, positive: Embedding, negative: Embedding, guidance: float) -> dict[str, Any]:
        """Return the stock pipeline's arguments for encoded prompts and a guidance scale."""
        return {
            "prompt_embeds": positive.sequence,
            "prompt_embeds_mask": positive.mask,
            "negative_prompt_embeds": negative.sequence,
            "negative_prompt_embeds_mask": negative.mask,
            "true_cfg_scale": guidance,
            "max_sequence_length": self.text_shape[0],
        }


def with_mask(sequence: Tensor, mask: Tensor | None) -> Embedding:
    """Return an encoded batch with its mask; the pipeline's None says that no row is padded, others may be longer."""
    return Embedding(sequence, mask=torch.ones_like(sequence[..., 0], dtype=torch.long) if mask is None else mask)
