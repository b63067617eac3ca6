"""How far two sets of pictures are apart, by the embeddings of CLIP.

Fréchet distance and kernel distance (KID: the squared MMD with a polynomial kernel, arXiv:1801.01401) of torchmetrics,
which has them for Inception.  CLIP distinguishes pictures that Inception does not (arXiv:2401.09603) and needs no
library of torchvision's.  Distances are comparable only for the same features and the same number of pictures.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from ..rewards.base import RewardModels
from ..rewards.clip import crop_square, load_clip_vit_l
from ..system.errors import ConfigError, InputError
from .image_store import stored_frames

SUBSET = 100
"""Number of pictures in each subset of the kernel distance."""


class Features(nn.Module):
    """Pictures, uint8 (B, 3, H, W) → CLIP's embeddings, (B, D)."""

    def __init__(self, models: RewardModels) -> None:
        super().__init__()
        self.clip = load_clip_vit_l(models)
        self.num_features: int = self.clip.model.config.projection_dim

    def forward(self, x: Tensor) -> Tensor:
        """Embed uint8 (B, 3, H, W) as (B, D)."""
        return self.clip.embed_images(x.permute(0, 2, 3, 1).numpy(), crop_square)


def clip_distances(tuned: Path, base: Path | None, reference: Path | None, models: RewardModels) -> dict[str, float]:
    """Measure the distances between folders in GenEval's layout; ConfigError where there is only one."""
    folders = {"tuned": tuned, "base": base, "reference": reference}
    distances = {}
    features = None
    for one, other in (("tuned", "base"), ("tuned", "reference"), ("base", "reference")):
        first, second = folders[one], folders[other]
        if first is not None and second is not None:
            features = features or Features(models)
            frechet, kernel = between(first, second, features)
            distances[f"Fréchet distance (CLIP), {one} to {other}:"] = frechet
            distances[f"kernel distance (CLIP), {one} to {other}:"] = kernel
    if not distances:
        raise ConfigError("--distances needs --against or --reference: other pictures to compare with")
    return distances


def between(one: Path, other: Path, features: Features) -> tuple[float, float]:
    """Measure the Fréchet and the kernel distance of two folders of pictures."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    fewest = min(sum(len(frames) for frames in stored_frames(folder)) for folder in (one, other))
    if fewest < 2:
        raise InputError("--distances needs at least two pictures on both sides")
    frechet = FrechetInceptionDistance(features)
    kernel = KernelInceptionDistance(features, subset_size=min(SUBSET, fewest))
    for folder, real in ((other, True), (one, False)):
        for frames in stored_frames(folder):
            x = torch.from_numpy(frames).permute(0, 3, 1, 2)
            frechet.update(x, real=real)
            kernel.update(x, real=real)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mean, _ = kernel.compute()
    return float(frechet.compute()), float(mean)
