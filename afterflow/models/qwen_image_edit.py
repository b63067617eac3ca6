"""Qwen-Image-Edit 2509 and 2511 (arXiv:2508.02324) through diffusers.

A picture is seen twice: by the language model that reads the prompt, in about 384 x 384 px, and by the network as
more tokens, in about 1024 x 1024.  So an encoded prompt belongs to its pictures, the empty one too.  The stock pipeline
edits one picture at a time; here a batch does, whose pictures have one shape.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..sampling.conditioning import Embedding, concatenate_embeddings
from .base import read_cache_file, write_cache_file
from .packing import check_divides, packed_geometry
from .pipeline import InputPictures, Pretrained
from .pipeline_files import reading_parts
from .qwen_image import QwenImageModel, with_mask

if TYPE_CHECKING:
    from transformers import BatchFeature

READER_SIZE = 384
"""Side in pixels of a square picture as the language model sees it."""


@dataclass(frozen=True)
class QwenImageEdit(Pretrained):
    """A Qwen-Image-Edit pipeline of the layout of 2509 or 2511."""

    path: str = "Qwen/Qwen-Image-Edit-2511"
    """Hub id or folder of the pipeline."""
    size: int = 512
    """Height and width in pixels."""
    width: int | None = None
    """Width in pixels, where it is not the height."""
    picture_size: int = 1024
    """Side in pixels of a square input picture as the network sees it; others have about as many pixels."""

    def load(self, device: torch.device | str = "cpu") -> "QwenImageEditModel":
        """Load everything but the text encoder."""
        return QwenImageEditModel(self, device)


class QwenImageEditModel(QwenImageModel):
    """Qwen-Image-Edit: Qwen-Image's network and guidance, with pictures beside what is drawn and in the prompt."""

    stock = "QwenImageEditPlusPipeline"
    encoders = ("text_encoder", "tokenizer", "processor")
    takes_pictures, reads_pictures = "must", True

    def configure(self) -> None:
        """Set shapes, schedule and encoder key by the options and the pipeline's own configuration."""
        config = self.config
        check_divides(config.picture_size, 32, "picture_size")
        self.encoder_key = (), "with pictures"
        # A picture's tokens, and as many again for the words of one prompt.
        self.text_shape = 2 * (READER_SIZE // 28) ** 2, self.pipe.transformer.config.joint_attention_dim, None
        self.scale_factor = 2 ** len(self.pipe.vae.temperal_downsample)  # the spelling is diffusers'
        self.pixel_unit = 2 * self.scale_factor
        self.latent_shape, self.schedule = packed_geometry(self.pipe, config, self.scale_factor)

    @property
    def ratio(self) -> float:
        """Width over height of what is drawn, and of input pictures."""
        return self.latent_shape[-1] / self.latent_shape[-2]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the latents of an input picture."""
        height, width = rounded_size(self.config.picture_size, self.ratio)
        return self.latent_shape[0], height // self.scale_factor, width // self.scale_factor

    def fit_input(self, pixels: np.ndarray) -> np.ndarray:
        """Crop the middle of an input picture to the shape that is drawn; its pixels stay as they are."""
        H, W = self.latent_shape[-2:]
        height, width = pixels.shape[:2]
        rows, columns = min(height, round(width * H / W)), min(width, round(height * W / H))
        top, left = (height - rows) // 2, (width - columns) // 2
        return pixels[top : top + rows, left : left + columns]

    def views(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return an input picture in the size of the language model, and in that of the network."""
        sides = READER_SIZE, self.config.picture_size
        return tuple(np.asarray(resized(pixels, *rounded_size(side, self.ratio))) for side in sides)

    def embed(self, pipe: Any, prompts: list[str], pictures: list[Image.Image] | None = None) -> Embedding:
        """Encode texts about the same pictures by the stock pipeline."""
        return with_mask(*pipe.encode_prompt(prompts, image=pictures))

    def encode_texts(self, texts: Sequence[str], pictures: InputPictures | None) -> tuple[Embedding, Embedding]:
        """Encode U texts with their pictures, and the empty text with each text's pictures: U rows of both."""
        assert pictures is not None  # check_inputs has seen to it
        file = self._cache_file([*texts, pictures.digest])
        stored = read_cache_file(file)
        if stored is None:
            stored = self.read_with_pictures(texts, pictures)
            write_cache_file(file, stored)
        both = Embedding(stored["sequence"], mask=stored["mask"])
        positive, negative = both.rows(slice(len(texts))), both.rows(slice(len(texts), None))
        return positive._replace(pictures=self.encode_pictures(pictures)), negative

    @torch.no_grad()
    def read_with_pictures(self, texts: Sequence[str], pictures: InputPictures) -> dict[str, Tensor]:
        """Encode U texts, and U empty ones after them, by the language model, which sees their pictures."""
        pipe = self.pipeline_with_encoders("processor")
        if pipe.processor is None:  # the pipeline of a run serves several lists of prompts
            pipe.processor = self.reader()
        about = [tuple(rows) for rows in pictures.rows.tolist()]
        read: dict[tuple[str, tuple[int, ...]], Embedding] = {}
        # The empty text after the others, and once for all texts about the same pictures.
        pairs = [*zip(texts, about), *[("", rows) for rows in about]]
        for text, rows in dict.fromkeys(pairs):
            shown = [Image.fromarray(pictures.views[row][0]) for row in rows]
            encoded = self.embed(pipe, [text], shown)
            read[text, rows] = Embedding(encoded.sequence.cpu(), mask=encoded.mask.cpu())  # type: ignore[union-attr]
        # Together, so that both have one length.
        both = concatenate_embeddings([read[each] for each in pairs])
        assert both.mask is not None
        return {"sequence": both.sequence, "mask": both.mask}

    def reader(self) -> "PictureReader":
        """Return what makes tokens of texts and pictures, from the pipeline's files."""
        from transformers import AutoTokenizer, Qwen2VLImageProcessor

        with reading_parts(self.config.path):
            return PictureReader(
                AutoTokenizer.from_pretrained(self.folder / "tokenizer"),
                Qwen2VLImageProcessor.from_pretrained(self.folder / "processor"),
            )

    @property
    def text_tokens(self) -> dict[str, int]:
        """No encoder cuts a prompt."""
        return {}


class PictureReader:
    """It makes tokens of texts and pictures as Qwen2-VL's processor does, which asks for torchvision to be loaded."""

    def __init__(self, tokenizer: Any, pictures: Any) -> None:
        self.tokenizer, self.pictures = tokenizer, pictures

    def __call__(self, text: list[str], images: list[Image.Image] | None, **options: Any) -> "BatchFeature":
        """Return the tokens of texts about the same pictures, and the pictures' patches."""
        seen, counts, token = {}, [], "<|image_pad|>"
        if images is not None:
            seen = self.pictures(images=images, return_tensors="pt")
            counts = (seen["image_grid_thw"].prod(1) // self.pictures.merge_size**2).tolist()
        expanded = []
        for one in text:
            pieces = one.split(token)
            filled = [piece + token * count for piece, count in zip(pieces, counts)]
            expanded.append("".join([*filled, *pieces[len(counts) :]]))
        encoded = self.tokenizer(expanded, **options)
        encoded.update(seen)
        return encoded


def rounded_size(side: int, ratio: float) -> tuple[int, int]:
    """Return height and width of about side² pixels and a ratio of width to height, multiples of 32."""
    width = math.sqrt(side * side * ratio)
    return round(width / ratio / 32) * 32, round(width / 32) * 32


def resized(pixels: np.ndarray, height: int, width: int) -> Image.Image:
    """Scale a picture, uint8 (H, W, 3), as the stock pipeline does."""
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
