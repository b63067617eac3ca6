"""Stable Diffusion 3 and 3.5 (arXiv:2403.03206) through diffusers."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..sampling.conditioning import Conditioning, Embedding, Velocity
from ..sampling.schedules import SD3Grid
from ..system.errors import ConfigError
from .packing import check_text_tokens, latent_sides
from .pipeline import Model, Pretrained
from .prompt_lengths import clip_tokens

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

FIRST_ENCODERS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
THIRD_ENCODER = ("text_encoder_3", "tokenizer_3")


@dataclass(frozen=True)
class SD3(Pretrained):
    """A Stable Diffusion 3 or 3.5 pipeline."""

    path: str = "stabilityai/stable-diffusion-3.5-medium"
    """Hub id or folder of the pipeline.  `tiny` is the one shipped with afterflow."""
    size: int | None = None
    """Height and width in pixels.  None: the transformer's own."""
    width: int | None = None
    """Width in pixels, where it is not the height."""
    max_sequence_length: int | None = None
    """Number of tokens that the third encoder (T5) reads.  0 leaves it out.  None: 256, or 0 where the pipeline's T5 is
    missing or silent."""

    def load(self, device: torch.device | str = "cpu") -> "SD3Model":
        """Load everything but the text encoders."""
        return SD3Model(self, device)


class SD3Model(Model):
    """Stable Diffusion 3: two CLIP encoders, and a T5 that may be left out."""

    stock = "StableDiffusion3Pipeline"
    encoders, optional_encoders = FIRST_ENCODERS + THIRD_ENCODER, THIRD_ENCODER
    streams = ("pos_embed", "context_embedder")
    usual_guidance = 4.5
    # Those of the joint attention alone: SD3.5 Medium's second attention, attn2, has layers of the same names.
    lora_targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    )

    def configure(self) -> None:
        """Set shapes, schedule and encoder key by the options and the pipeline's own configuration."""
        config, net = self.config, self.pipe.transformer.config
        default = 256 if t5_speaks(self.folder) else 0
        tokens = default if config.max_sequence_length is None else config.max_sequence_length
        self.t5_tokens = check_text_tokens(tokens, 512, "T5 of Stable Diffusion 3", least=0)
        left_out = () if self.t5_tokens else THIRD_ENCODER
        self.encoder_key = left_out, f"T5 {self.t5_tokens}"
        tokens = clip_tokens(self.folder) + self.t5_tokens
        self.text_shape = tokens, net.joint_attention_dim, net.pooled_projection_dim
        self.schedule = SD3Grid(self.pipe.scheduler.config.shift)
        self.scale_factor = factor = 2 ** (len(self.pipe.vae.config.block_out_channels) - 1)
        size = factor * net.sample_size if config.size is None else config.size
        self.pixel_unit = factor * net.patch_size
        self.latent_shape = net.in_channels, *latent_sides(size, config.width, factor, self.pixel_unit)
        largest = self.pixel_unit * net.pos_embed_max_size
        for name, pixels in (("size", size), ("width", config.width or size)):
            if pixels > largest:
                raise ConfigError(f"{name} = {pixels}: this model draws up to {largest} pixels a side")

    def embed(self, pipe: "StableDiffusion3Pipeline", prompts: list[str]) -> Embedding:
        """Encode B texts by the stock pipeline."""
        encoded = pipe.encode_prompt(
            prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=self.t5_tokens
        )
        return Embedding(encoded[0], encoded[2])

    @property
    def text_tokens(self) -> dict[str, int]:
        """Tokens of both CLIP encoders, and of T5 where it is used."""
        clip = clip_tokens(self.folder)
        return {"tokenizer": clip, "tokenizer_2": clip} | ({"tokenizer_3": self.t5_tokens} if self.t5_tokens else {})

    def velocity(self, module: nn.Module) -> Velocity:
        """Return the velocity field of the transformer, or of a copy of it."""
        dtype: torch.dtype = module.dtype  # type: ignore[assignment]

        def v(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
            embedding = cond.embedding()
            assert embedding.pooled is not None
            return module(
                hidden_states=x.to(dtype),
                timestep=1000 * t,
                encoder_hidden_states=embedding.sequence.to(dtype),
                pooled_projections=embedding.pooled.to(dtype),
                return_dict=False,
            )[0]

        return v

    def stock_inputs(self, positive: Embedding, negative: Embedding, guidance: float) -> dict[str, Any]:
        """Return the stock pipeline's arguments for encoded prompts and a guidance scale."""
        return {
            "prompt_embeds": positive.sequence,
            "pooled_prompt_embeds": positive.pooled,
            "negative_prompt_embeds": negative.sequence,
            "negative_pooled_prompt_embeds": negative.pooled,
            "guidance_scale": guidance,
        }


def t5_speaks(folder: Path) -> bool:
    """Whether the pipeline has a third encoder whose output is not zero (see tiny_parts/ship.py)."""
    files = sorted((folder / "text_encoder_3").glob("*.safetensors"))
    for file in files:
        with safe_open(file, "pt") as stored:
            if (name := "encoder.final_layer_norm.weight") in stored.keys():  # noqa: SIM118
                return bool(stored.get_tensor(name).any())
    return (folder / "text_encoder_3").is_dir()
