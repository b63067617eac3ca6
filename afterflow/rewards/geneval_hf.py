"""GenEval (arXiv:2310.11513) by Mask2Former and CLIP of transformers: GenEval-HF.

The rules are those of `geneval`; the detector was trained in another run than the published one (mmdet), and its
scores stand elsewhere, so numbers are not comparable with published ones and the thresholds may need moving.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..envs.geneval_rules import MAX_PER_CLASS, OBJECTS, SOFT_FROM, Box, Detection, score_detections
from ..envs.shapes.prompts import validate
from ..envs.shapes.world import COLORS
from .base import Reward, RewardModels, Scorer, network_reward
from .clip import Clip, cropped, large, unit

MASK2FORMER = ("facebook/mask2former-swin-small-coco-instance", "main")
GREY = 153
"""#999, which GenEval puts behind an object before it asks for its colour."""
LEAST = 0.1
"""No rule asks for a detection of a lower score."""
TEMPLATES = ("a photo of a {color} {cls}", "a photo of a {color}-colored {cls}", "a photo of a {color} object")
RENAMED = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
"""COCO's names → GenEval's."""


Found = Iterable[tuple[str, float, Box, np.ndarray]]
"""Class, score, box and mask (H, W) of each object of a picture, the surest first."""
Find = Callable[[np.ndarray, Sequence[dict]], list[list[Detection]]]
"""Images (B, H, W, 3) and their records → what is seen, with the colours that a prompt asks about."""


class Colors:
    """Which of ten colours an object has, by CLIP, everything else being grey."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self.of_class: dict[str, Tensor] = {}

    def __call__(self, image: np.ndarray, mask: np.ndarray, box: Box, cls: str) -> str:
        if cls not in self.of_class:
            texts = [[each.format(color=color, cls=cls) for each in TEMPLATES] for color in COLORS]
            embedded, _ = self.clip.texts([text for of_color in texts for text in of_color])
            self.of_class[cls] = unit(embedded.view(len(COLORS), len(TEMPLATES), -1).mean(1))
        x0, y0, x1, y1 = (int(side) for side in box)
        alone = np.where(mask[..., None], image, GREY).astype(np.uint8)[y0:y1, x0:x1]
        return COLORS[int((self.of_class[cls] @ self.clip.images(alone[None], cropped)[0]).argmax())]


def described(image: np.ndarray, found: Found, record: Mapping, color: Callable[..., str]) -> list[Detection]:
    """The objects of a picture; colours are asked only of classes whose colour the prompt names."""
    wanted = {clause["class"] for clause in record["include"] if "color" in clause}
    seen: list[Detection] = []
    for cls, score, box, mask in found:
        if sum(d.cls == cls for d in seen) < MAX_PER_CLASS:
            seen.append(Detection(cls, score, box, color(image, mask, box, cls) if cls in wanted else None))
    return seen


class Detector:
    """Objects by Mask2Former."""

    def __init__(self, models: RewardModels, path: str, revision: str | None) -> None:
        from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

        self.models, dtype = models, getattr(torch, models.dtype)
        options: Any = {"revision": revision or "main"}
        self.processor: Any = AutoImageProcessor.from_pretrained(path, **options)
        model: Any = Mask2FormerForUniversalSegmentation.from_pretrained(path, dtype=dtype, **options)
        self.model = model.to(models.on).eval().requires_grad_(False)
        names = {int(i): str(name).replace("-", " ") for i, name in self.model.config.id2label.items()}
        self.names: dict[int, str] = {i: RENAMED.get(name, name) for i, name in names.items()}
        self.color = Colors(large(models))

    @torch.no_grad()
    def __call__(self, images: np.ndarray, records: Sequence[dict]) -> list[list[Detection]]:
        seen = []
        for i in range(0, len(images), self.models.batch):
            part = images[i : i + self.models.batch]
            inputs = self.processor(list(part), return_tensors="pt")
            output = self.model(pixel_values=inputs["pixel_values"].to(self.model.device, self.model.dtype))
            for row, image in enumerate(part):
                logits, masks = output.class_queries_logits[row].float(), output.masks_queries_logits[row].float()
                found = objects(logits.cpu(), masks.cpu(), image.shape[:2], self.names)
                seen.append(described(image, found, records[i + row], self.color))
        return seen


def objects(logits: Tensor, masks: Tensor, size: tuple[int, int], names: Mapping[int, str]) -> Found:
    """Of one image's queries, (Q, C + 1) and (Q, h, w)."""
    for label, score, mask in instances(logits, masks, size):
        box = box_of(mask)
        if box is not None:
            yield names[label], score, box, mask


def instances(logits: Tensor, masks: Tensor, size: tuple[int, int]) -> list[tuple[int, float, np.ndarray]]:
    """(class, score, mask (H, W)) of the pairs of query and class that are surest, the surest first.

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
    return [(int(label[i]), float(score[i]), inside[query[i]].numpy()) for i in order if score[i] > LEAST]


def box_of(mask: np.ndarray) -> Box | None:
    """x0, y0, x1, y1 around a mask (H, W), the last two outside of it; None where it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


_finders: dict[tuple, Find] = {}


def finder(kind: Callable[..., Find], name: str, models: RewardModels, where: tuple[str, str | None]) -> Find:
    """One for all rewards of a detector."""
    path = models.published(name, where)
    key = kind, *path, models.weights.get("clipscore"), models.on, models.dtype, models.batch
    if key not in _finders:
        _finders[key] = kind(models, *path)
    return _finders[key]


class Rules:
    """Detections of the last batch are kept, because several rewards ask for them one by one."""

    def __init__(self) -> None:
        self.last: tuple[tuple, list[list[Detection]]] = ((), [])  # swapped as one: threads may share it

    def found(self, find: Find, images: np.ndarray, records: Sequence[dict]) -> list[list[Detection]]:
        key, last = (id(find), images.tobytes(), list(records)), self.last
        if key != last[0]:
            last = self.last = key, find(images, records)
        return last[1]


RULES = Rules()


def graded(record: Mapping, seen: Sequence[Detection], cut: float, counting: float) -> list[Detection]:
    """Without what is too unsure: of other classes than the prompt's all that no rule would count."""
    wanted = {clause["class"] for clause in record["include"]}
    floor = SOFT_FROM * (counting if record["tag"] == "counting" else cut)
    return [d for d in seen if d.score > (floor if d.cls in wanted else cut)]


def geneval(name: str, mode: str, low: float, about: str, find_of: Callable[[RewardModels], Find]) -> Reward:
    """A reward that is one of the ways to read a detector's detections."""

    def load(models: RewardModels) -> Scorer:
        find = find_of(models)
        cut = models.options.get("geneval_threshold", 0.3)
        counting = models.options.get("geneval_counting_threshold", 0.9)

        def score(images: np.ndarray, records: Sequence[dict]) -> np.ndarray:
            found = RULES.found(find, images, records)
            if mode == "partial":  # to it every detection counts, those asked for from below their threshold on
                found = [graded(record, seen, cut, counting) for record, seen in zip(records, found)]
            options = {"threshold": cut, "counting_threshold": counting}
            return np.array([score_detections(record, seen, mode, **options) for record, seen in zip(records, found)])

        score.__doc__ = about
        return score

    return network_reward(name, low, 1.0, needs=partial(validate, classes=OBJECTS))(load)


def readings(first: str, kind: Callable[..., Find], where: tuple) -> tuple[Reward, ...]:
    """The rewards of a detector, on the weights given for `first`: soft, official, strict, and flow_grpo's."""
    find_of = lambda models: finder(kind, first, models, where)
    modes = {
        first: ("partial", 0.0, "Bounded soft credit: surplus and clutter cost."),
        f"{first}_official": ("official", 0.0, "GenEval's own verdict; clutter is allowed."),
        f"{first}_strict": ("strict", 0.0, "Exactly as many as asked for."),
        f"{first}_flowgrpo": ("partial_flowgrpo", -np.inf, "flow_grpo's training reward, unbounded below."),
    }
    return tuple(geneval(name, *about, find_of) for name, about in modes.items())


geneval_hf = readings("geneval_hf", Detector, MASK2FORMER)
