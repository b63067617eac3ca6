"""Stable Diffusion 3 and 3.5 (arXiv:2403.03206) through diffusers."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors import safe_open
from torch import Tensor, nn

from ..sampling.conditioning import Conditioning, Embedding, Velocity
from ..sampling.schedules import SD3Grid
from .pipeline import PipelineModel, Pretrained, latent_sides
from .vae import decode_images, encode_images

FIRST_ENCODERS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
THIRD_ENCODER = ("text_encoder_3", "tokenizer_3")


@dataclass(frozen=True)
class SD3(Pretrained):
    """A Stable Diffusion 3 or 3.5 pipeline."""

    path: str = "stabilityai/stable-diffusion-3.5-medium"
    """Hub id or folder; `tiny` is the pipeline shipped with afterflow."""
    size: int | None = None
    """Height and width in pixels; None: the transformer's own."""
    width: int | None = None
    """In pixels, where it is not the height."""
    max_sequence_length: int | None = None
    """Tokens of the third (T5) encoder, 0 leaves it out; None: 256, or 0 where the pipeline's T5 is missing or mute."""

    def load(self, device: torch.device | str = "cpu") -> "SD3Model":
        return SD3Model(self, device)


class SD3Model(PipelineModel):
    stock = StableDiffusion3Pipeline
    encoders = FIRST_ENCODERS + THIRD_ENCODER
    usual_guidance = 4.5
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")

    def settle(self) -> None:
        config = self.config
        told, default = config.max_sequence_length, 256 if t5_speaks(self.folder) else 0
        self.t5_tokens = default if told is None else told
        self.schedule = SD3Grid(self.pipe.scheduler.config.shift)
        factor, net = 2 ** (len(self.pipe.vae.config.block_out_channels) - 1), self.pipe.transformer.config
        size = factor * net.sample_size if config.size is None else config.size
        sides = latent_sides(size, config.width, factor, factor * net.patch_size)
        self.latent_shape = (net.in_channels, *sides)

    @property
    def reading(self) -> tuple[tuple[str, ...], str]:
        return () if self.t5_tokens else THIRD_ENCODER, f"T5 {self.t5_tokens}"

    @property
    def text_shape(self) -> tuple[int, int, int | None]:
        clip = json.loads((self.folder / "text_encoder" / "config.json").read_text())
        net = self.pipe.transformer.config
        return (
            clip["max_position_embeddings"] + self.t5_tokens,
            net.joint_attention_dim,
            net.pooled_projection_dim,
        )

    def embed(self, pipe: StableDiffusion3Pipeline, prompts: list[str]) -> Embedding:
        encoded = pipe.encode_prompt(
            prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=self.t5_tokens
        )
        return Embedding(encoded[0], encoded[2])

    def velocity(self, module: nn.Module) -> Velocity:
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

    def by_stock(self, told: Embedding, empty: Embedding, noise: Tensor, steps: int, guidance: float) -> Tensor:
        height, width = (side * self.pipe.vae_scale_factor for side in self.latent_shape[1:])
        return self.pipe(
            prompt_embeds=told.sequence,
            pooled_prompt_embeds=told.pooled,
            negative_prompt_embeds=empty.sequence,
            negative_pooled_prompt_embeds=empty.pooled,
            latents=noise,
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="latent",
        ).images

    def encode_images(self, images: np.ndarray) -> Tensor:
        return encode_images(self.vae, images)

    def decode(self, latents: Tensor) -> np.ndarray:
        return decode_images(self.vae, latents)


def t5_speaks(folder: Path) -> bool:
    """Whether the pipeline has a third encoder, and one that says anything (see tiny/ship.py)."""
    files = sorted((folder / "text_encoder_3").glob("*.safetensors"))
    for file in files:
        with safe_open(file, "pt") as stored:
            if (name := "encoder.final_layer_norm.weight") in stored.keys():  # noqa: SIM118
                return bool(stored.get_tensor(name).any())
    return (folder / "text_encoder_3").is_dir()
