"""FLUX.1-Kontext (arXiv:2506.15742) through diffusers: FLUX.1, with the tokens of an input picture after the image's.

The picture is scaled and cropped to the size of what is drawn.  The pipeline, unless told otherwise, draws about a
megapixel, and stretches the picture to one of 17 sizes of as many pixels, on which the model was trained.  Beside an
image of 512 px it would have four times as many tokens.  The two agree for a square picture at 1024 px.
"""

from dataclasses import dataclass
from typing import Any

import torch

from ..sampling.conditioning import Embedding
from .flux import Flux, FluxModel


@dataclass(frozen=True)
class FluxKontext(Flux):
    """A FLUX.1-Kontext pipeline."""

    path: str = "black-forest-labs/FLUX.1-Kontext-dev"
    """Hub id or folder of the pipeline."""
    embedded_guidance: float = 2.5
    """Guidance scale that the transformer, which is distilled from a guided one, takes as input."""

    def load(self, device: torch.device | str = "cpu") -> "FluxKontextModel":
        """Load everything but the text encoders."""
        return FluxKontextModel(self, device)


class FluxKontextModel(FluxModel):
    """FLUX.1-Kontext: it edits one picture, and draws from text without one."""

    stock = "FluxKontextPipeline"
    takes_pictures, most_pictures = "may", 1

    def stock_inputs(self, positive: Embedding, negative: Embedding, guidance: float) -> dict[str, Any]:
        """Return the stock pipeline's arguments for encoded prompts and a guidance scale, at the size of this model."""
        height, width = self.drawn_size
        inputs = super().stock_inputs(positive, negative, guidance)
        return inputs | {"max_area": height * width, "_auto_resize": False}
