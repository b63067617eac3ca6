"""GenEval (arXiv:2310.11513) by Mask2Former and CLIP of transformers: GenEval-HF.

The rules are those of `geneval`.  The detector was trained in another run than the published one (mmdet), so its scores
are not comparable with published ones, and the thresholds may need moving.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..envs.geneval_rules import Box, Detection
from .base import RewardModels
from .clip import load_clip_vit_l
from .detector_reward import ColorNamer, MaskedObjects, detector_rewards, to_detections

MASK2FORMER = ("facebook/mask2former-swin-small-coco-instance", "main")
MIN_DETECTION_SCORE = 0.1
"""No rule asks for a detection of a lower score."""
COCO_RENAMED = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
"""COCO's names → GenEval's."""


class Mask2FormerDetector:
    """Detects objects by Mask2Former."""

    def __init__(self, models: RewardModels, path: str, revision: str | None) -> None:
        from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

        self.models, dtype = models, getattr(torch, models.dtype)
        options: Any = {"revision": revision or "main"}
        self.processor: Any = AutoImageProcessor.from_pretrained(path, **options)
        model: Any = Mask2FormerForUniversalSegmentation.from_pretrained(path, dtype=dtype, **options)
        self.model = model.to(models.torch_device).eval().requires_grad_(False)
        names = {int(i): str(name).replace("-", " ") for i, name in self.model.config.id2label.items()}
        self.names: dict[int, str] = {i: COCO_RENAMED.get(name, name) for i, name in names.items()}
        self.color = ColorNamer(load_clip_vit_l(models))

    @torch.no_grad()
    def __call__(self, images: np.ndarray, records: Sequence[dict]) -> list[list[Detection]]:
        """Return the detections of uint8 images (B, H, W, 3)."""
        result = []
        for i in range(0, len(images), self.models.batch):
            part = images[i : i + self.models.batch]
            inputs = self.processor(list(part), return_tensors="pt")
            output = self.model(pixel_values=inputs["pixel_values"].to(self.model.device, self.model.dtype))
            for row, image in enumerate(part):
                logits, masks = output.class_queries_logits[row].float(), output.masks_queries_logits[row].float()
                objects = masked_objects(logits.cpu(), masks.cpu(), image.shape[:2], self.names)
                result.append(to_detections(image, objects, records[i + row], self.color))
        return result


def masked_objects(logits: Tensor, masks: Tensor, size: tuple[int, int], names: Mapping[int, str]) -> MaskedObjects:
    """Yield the objects of one image from its Q queries, (Q, C + 1) and (Q, h, w)."""
    for label, score, mask in instances(logits, masks, size):
        box = box_around(mask)
        if box is not None:
            yield names[label], score, box, mask


def instances(logits: Tensor, masks: Tensor, size: tuple[int, int]) -> list[tuple[int, float, np.ndarray]]:
    """Return (class, score, mask (H, W)) of the surest pairs of query and class, the surest first.

    A score is the class's probability times the mean probability of the mask's own pixels.
    """
    Q, C = len(logits), logits.shape[1] - 1
    chance, pair = logits.softmax(-1)[:, :-1].flatten().topk(Q)
    large = functional.interpolate(masks[None], size, mode="bilinear", align_corners=False)[0]
    inside = large > 0
    sure = (large.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    query, label = pair // C, pair % C
    score = chance * sure[query]
    order = score.argsort(descending=True)
    surest = [i for i in order if score[i] > MIN_DETECTION_SCORE]
    return [(int(label[i]), float(score[i]), inside[query[i]].numpy()) for i in surest]


def box_around(mask: np.ndarray) -> Box | None:
    """Return x0, y0, x1, y1 around a mask (H, W), the last two outside of it; None where it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


geneval_hf, geneval_hf_official, geneval_hf_strict, geneval_hf_flowgrpo = detector_rewards(
    "geneval_hf", Mask2FormerDetector, MASK2FORMER
)
