"""Z-Image and Z-Image-Turbo (arXiv:2511.22699) through diffusers.

The network's clock runs the other way, 1 is the image there, and what it predicts points from noise to image.  Its
pipeline's guidance_scale is one less than a guidance scale here: 0 there, 1 here, is no guidance.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..sampling.conditioning import (
    Conditioning,
    Embedding,
    Velocity,
    concatenate_embeddings,
    linear_guidance,
    text_lengths,
)
from ..system.text_files import read_json
from .packing import check_text_tokens, latent_sides, packed_schedule
from .pipeline import Model, Pretrained

if TYPE_CHECKING:
    from diffusers import ZImagePipeline

TOKEN_UNIT = 32
"""The network fills a prompt up to a multiple of so many tokens, and sees them."""


@dataclass(frozen=True)
class ZImage(Pretrained):
    """A Z-Image pipeline."""

    path: str = "Tongyi-MAI/Z-Image"
    """Hub id or folder of the pipeline."""
    size: int = 512
    """Height and width in pixels."""
    width: int | None = None
    """Width in pixels, where it is not the height."""
    max_sequence_length: int = 512
    """Number of tokens of a prompt and of the chat around it; longer prompts are cut."""
    guidance_cap: float = 0.0
    """Largest length of a guided velocity over that of the prompt's own; 0 is no limit (cfg_normalization)."""

    def load(self, device: torch.device | str = "cpu") -> "ZImageModel":
        """Load everything but the text encoders."""
        return ZImageModel(self, device)


class ZImageModel(Model):
    """Z-Image: one stream of image and prompt, a reversed clock, and prompts each of its own length."""

    stock = "ZImagePipeline"
    encoders = ("text_encoder", "tokenizer")
    prompts_in_chat = True
    streams = ()  # tokens that only fill up are in fp32, and so is what they are put into
    end_layers = (
        *("all_x_embedder.2-1", "cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2"),
        *("all_final_layer.2-1.adaLN_modulation.1", "all_final_layer.2-1.linear"),
    )
    usual_guidance = 5.0
    lora_targets = (
        *("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0"),
        *("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    )

    def configure(self) -> None:
        """Set shapes, schedule and encoder key by the options and the pipeline's own configuration."""
        config, net = self.config, self.pipe.transformer.config
        tokens = check_text_tokens(config.max_sequence_length, 512, "Z-Image")
        self.encoder_key = (), f"Qwen3 {tokens}"
        self.text_shape = tokens, net.cap_feat_dim, None
        self.scale_factor = 2 ** (len(self.pipe.vae.config.block_out_channels) - 1)
        self.pixel_unit = 2 * self.scale_factor
        H, W = latent_sides(config.size, config.width, self.scale_factor, self.pixel_unit)
        self.latent_shape = net.in_channels, H, W
        self.schedule = packed_schedule(self.pipe.scheduler, H * W // 4)

    @classmethod
    def guidance_of(cls, folder: Path) -> float:
        """Return the guidance scale of the model's authors: 1 for Turbo, which its scheduler's shift of 3 tells."""
        shift = read_json(folder / "scheduler" / "scheduler_config.json").get("shift")
        return 1.0 if shift == 3.0 else cls.usual_guidance

    def embed(self, pipe: "ZImagePipeline", prompts: list[str]) -> Embedding:
        """Encode B texts by the stock pipeline."""
        # It writes into the list that it is given.
        encoded, _ = pipe.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, max_sequence_length=self.config.max_sequence_length
        )
        whole = lambda rows: torch.ones(1, len(rows), dtype=torch.long, device=rows.device)
        return concatenate_embeddings([Embedding(rows[None], mask=whole(rows)) for rows in encoded])

    @property
    def text_tokens(self) -> dict[str, int]:
        """Tokens of the language model."""
        return {"tokenizer": self.config.max_sequence_length}

    def velocity(self, module: nn.Module) -> Velocity:
        """Return the velocity field of the transformer, or of a copy of it.

        Prompts of several lengths pass one by one.  Together they would be filled up to the longest of a batch and
        masked, and a row would round otherwise beside a longer one.
        """
        dtype: torch.dtype = module.dtype  # type: ignore[assignment]

        def v(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
            prompts = without_padding(cond.embedding().sequence, cond.lengths())
            images, clock = list(x.to(dtype).unsqueeze(2).unbind()), 1 - t
            size = len(x) if of_one_length(cond) else 1
            predicted: list[Tensor] = []
            for i in range(0, len(x), size):
                rows = slice(i, i + size)
                texts = [prompt.to(dtype) for prompt in prompts[rows]]
                predicted += module(images[rows], clock[rows], texts, return_dict=False)[0]
            return -torch.stack(predicted).squeeze(2)

        return v

    def combine(self, empty: Tensor, full: Tensor, scale: float) -> Tensor:  # type: ignore[override]
        """Guide as the stock pipeline does, where asked with a limit to the length of a picture's velocity."""
        guided = linear_guidance(empty, full, scale)
        if not self.config.guidance_cap:
            return guided
        length = lambda v: torch.linalg.vector_norm(v.flatten(1), dim=1).view(-1, *[1] * (v.ndim - 1))
        return guided * (self.config.guidance_cap * length(full) / length(guided)).clamp(max=1)

    def stock_inputs(self, positive: Embedding, negative: Embedding, guidance: float) -> dict[str, Any]:
        """Return the stock pipeline's arguments for encoded prompts and a guidance scale."""
        return {
            "prompt_embeds": without_padding(positive.sequence, text_lengths(positive)),
            "negative_prompt_embeds": without_padding(negative.sequence, text_lengths(negative)),
            "guidance_scale": guidance - 1,
            "cfg_normalization": self.config.guidance_cap,
        }


def without_padding(sequence: Tensor, lengths: Tensor) -> list[Tensor]:
    """Return the vectors of each prompt (l, D), of sequences (P, L, D) that are so long without padding."""
    return [rows[:length] for rows, length in zip(sequence, lengths.tolist())]


def of_one_length(cond: Conditioning) -> bool:
    """Return whether the network fills all prompts, and the empty one, up to the same number of tokens."""
    lengths = [*text_lengths(cond.positive).tolist(), *text_lengths(cond.negative).tolist()]
    return len({-(-length // TOKEN_UNIT) for length in lengths}) == 1
