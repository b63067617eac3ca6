"""How far two sets of pictures are apart, by the embeddings of CLIP.

Fréchet distance and kernel distance (KID: the squared MMD with a polynomial kernel, arXiv:1801.01401) of torchmetrics,
which has them for Inception; CLIP tells pictures apart that Inception does not (arXiv:2401.09603) and needs no library
of torchvision's.  Numbers stand beside those of the same features and as many pictures only.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..rewards.base import RewardModels
from ..rewards.clip import crop_square, load_clip_vit_l
from . import image_store as gallery

SUBSET = 100
"""Pictures of each draw of the kernel distance."""


class Features(nn.Module):
    """Pictures, uint8 (B, 3, H, W) → CLIP's embeddings, (B, D)."""

    def __init__(self, models: RewardModels) -> None:
        super().__init__()
        self.clip = load_clip_vit_l(models)
        self.num_features: int = self.clip.model.config.projection_dim

    def forward(self, x: Tensor) -> Tensor:
        return self.clip.embed_images(x.permute(0, 2, 3, 1).numpy(), crop_square)


def distances(tuned: Path, base: Path | None, reference: Path | None, models: RewardModels) -> dict[str, float]:
    """Of the pictures in GenEval's folders; ValueError where there is nothing to compare with."""
    pairs = {
        "tuned to base": (tuned, base),
        "tuned to reference": (tuned, reference),
        "base to reference": (base, reference),
    }
    there = {name: pair for name, pair in pairs.items() if None not in pair}
    if not there:
        raise ValueError("--distances needs --against or --reference: other pictures to compare with")
    features = Features(models)
    found = {}
    for name, (one, other) in there.items():
        assert one is not None and other is not None
        frechet, kernel = between(one, other, features)
        found |= {f"Fréchet distance (CLIP), {name}:": frechet, f"kernel distance (CLIP), {name}:": kernel}
    return found


def between(one: Path, other: Path, features: Features) -> tuple[float, float]:
    """Fréchet and kernel distance of two folders of pictures."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    fewest = min(sum(len(x) for x in pictures(folder)) for folder in (one, other))
    if fewest < 2:
        raise ValueError("--distances needs at least two pictures on both sides")
    frechet = FrechetInceptionDistance(features)
    kernel = KernelInceptionDistance(features, subset_size=min(SUBSET, fewest))
    for folder, real in ((other, True), (one, False)):
        for x in pictures(folder):
            frechet.update(x, real=real)
            kernel.update(x, real=real)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mean, _ = kernel.compute()
    return float(frechet.compute()), float(mean)


def pictures(folder: Path) -> Iterator[Tensor]:
    """Prompt by prompt, uint8 (K, 3, H, W); of clips their frames."""
    for mine in gallery.prompts(folder):
        images = gallery.read(mine)
        yield torch.from_numpy(np.ascontiguousarray(images.reshape(-1, *images.shape[-3:]))).permute(0, 3, 1, 2)
