"""GenEval (arXiv:2310.11513) by Mask2Former and CLIP of transformers: GenEval-HF.

The rules are those of `geneval`.  The detector was trained in another run than the published one (mmdet).  Its scores
are therefore not comparable with published ones, and the thresholds may need moving.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..envs.geneval_rules import OBJECTS, Box
from ..system.errors import InputError
from .base import RewardModels
from .detector_reward import MIN_DETECTION_SCORE, FindObjects, MaskedObjects, detector_rewards

MASK2FORMER = ("facebook/mask2former-swin-small-coco-instance", "main")
OTHER_NAMES = {
    **{"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"},
    **{"remote control": "tv remote", "tv monitor": "tv", "television": "tv", "monitor": "tv", "sofa": "couch"},
    **{"motorbike": "motorcycle", "aeroplane": "airplane", "plane": "airplane", "doughnut": "donut", "ski": "skis"},
    **{"hair dryer": "hair drier", "mobile phone": "cell phone", "fridge": "refrigerator", "racket": "tennis racket"},
    **{"tennis racquet": "tennis racket", "teddy": "teddy bear", "dinner table": "dining table"},
}
"""Names of COCO's classes, and of VOC's where they are the same objects → GenEval's."""


def load_mask2former(models: RewardModels, path: str, revision: str | None) -> FindObjects:
    """Load Mask2Former as a detector."""
    from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

    options: Any = {"revision": revision or "main"}
    processor: Any = AutoImageProcessor.from_pretrained(path, **options)
    dtype = getattr(torch, models.dtype)
    model: Any = Mask2FormerForUniversalSegmentation.from_pretrained(path, dtype=dtype, **options)
    model = model.to(models.torch_device).eval().requires_grad_(False)
    names = geneval_classes(model.config.id2label)

    @torch.no_grad()
    def find_objects(images: np.ndarray) -> Iterator[MaskedObjects]:
        inputs = processor(list(images), return_tensors="pt")
        output = model(pixel_values=inputs["pixel_values"].to(model.device, model.dtype))
        for logits, masks, image in zip(output.class_queries_logits, output.masks_queries_logits, images):
            yield masked_objects(logits.float().cpu(), masks.float().cpu(), image.shape[:2], names)

    return find_objects


def geneval_classes(labels: Mapping[int, str]) -> dict[int, str]:
    """Return GenEval's class of each label of a detector, whatever list of COCO's names it has.

    InputError where the labels are not COCO's 80 classes: prompts about a class without a label would always score 0.
    """
    classes = {letters_of(name): name for name in OBJECTS}
    classes |= {letters_of(other): name for other, name in OTHER_NAMES.items()}
    named = {int(i): classes.get(letters_of(str(label))) for i, label in labels.items()}
    unknown = [str(label) for i, label in labels.items() if named[int(i)] is None]
    missing = [name for name in OBJECTS if name not in named.values()]
    if unknown or missing or len(named) != len(OBJECTS):
        parts = [
            f"{len(names)} {what} ({', '.join(names[:5])})"
            for names, what in ((unknown, "are none of them"), (missing, "of them have no label"))
            if names
        ]
        raise InputError(
            f"its {len(named)} labels are not the {len(OBJECTS)} classes of COCO that GenEval's prompts name"
            + "".join(f"; {part}" for part in parts)
        )
    return {i: name for i, name in named.items() if name is not None}


def letters_of(name: str) -> str:
    """Return the letters of a name in lower case: lists differ in spaces, hyphens and underscores."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


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
    "geneval_hf", load_mask2former, MASK2FORMER
)
