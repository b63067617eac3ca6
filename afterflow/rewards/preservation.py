"""Whether an edit leaves alone what its mask does, by pixels and by CLIP.

A model that changes nothing gets the best score of all, so these go with a reward for what was asked.
"""

from collections.abc import Sequence

import numpy as np

from ..system.input_pictures import input_names
from .base import RewardModels, Scored, Scorer, network_reward, reward
from .canaries import MASKED
from .clip import crop_square, load_clip_vit_l
from .edited import check_mask, inputs_as_drawn, untouched

MASKED_GREY = 128
"""Grey level of what is masked, which CLIP sees in both pictures."""


@reward("pixel_preservation", 0, 1, needs=check_mask, canary=MASKED)
def pixel_preservation(images: np.ndarray, records: Sequence[dict]) -> Scored:
    """Score 1 - mean |after - before| / 255 over the pixels that the mask leaves alone."""
    before, alone = inputs_as_drawn(records, *images.shape[1:3]), untouched(records, *images.shape[1:3])
    distance = np.abs(images.astype(np.int16) - before).mean(3) / 255
    counts = alone.sum((1, 2))
    values = 1 - (distance * alone).sum((1, 2)) / np.maximum(counts, 1)
    return without_masked(values, counts)


@network_reward("clip_preservation", -1, 1, needs=check_mask, canary=MASKED, weights=("clipscore",))
def clip_preservation(models: RewardModels) -> Scorer:
    """Score the cosine of before and after by CLIP ViT-L/14, both with one grey where the mask is white."""
    clip = load_clip_vit_l(models)

    def score(images: np.ndarray, records: Sequence[dict]) -> Scored:
        size = images.shape[1:3]
        keys = [(input_names(record)[0], record["mask"]) for record in records]
        rows = [keys.index(key) for key in dict.fromkeys(keys)]
        at = {keys[row]: i for i, row in enumerate(rows)}
        alone = untouched(records, *size)
        distinct = [records[row] for row in rows]
        before = np.where(alone[rows][..., None], inputs_as_drawn(distinct, *size), np.uint8(MASKED_GREY))
        after = np.where(alone[..., None], images, np.uint8(MASKED_GREY))
        embedded = clip.embed_images(before, crop_square)[[at[key] for key in keys]]
        # 1 may round to 1 + 1e-7
        values = (clip.embed_images(after, crop_square) * embedded).sum(1).clamp(-1, 1).double().numpy()
        return without_masked(values, alone.sum((1, 2)))

    return score


def without_masked(values: np.ndarray, counts: np.ndarray) -> Scored:
    """Return scores, and none where no pixel of what is drawn is left alone."""
    why = "of what is drawn of it, its mask leaves nothing alone"
    return Scored(values, why={row: why for row in np.flatnonzero(counts == 0).tolist()})
