"""GenEval's rules (arXiv:2310.11513) as rewards, over the objects that a network detects; CLIP names their colours."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import numpy as np
from torch import Tensor

from ..envs.geneval_rules import MAX_PER_CLASS, OBJECTS, SOFT_FROM, Box, Detection, score_detections
from ..envs.shapes.prompts import validate
from ..envs.shapes.world import COLORS
from .base import Reward, RewardModels, Scored, network_reward, remember_last_batch
from .canaries import DETECTED
from .clip import Clip, crop_square, load_clip_vit_l, unit_rows

DETECTIONS = "detections"
"""The part that counts what a detector found."""
GREY = 153
"""The grey #999, which GenEval puts behind an object before its colour is named."""
COLOR_PROMPTS = ("a photo of a {color} {cls}", "a photo of a {color}-colored {cls}", "a photo of a {color} object")

MaskedObjects = Iterable[tuple[str, float, Box, np.ndarray]]
"""Class, score, box and mask (H, W) of each object of an image, the surest first."""
FindObjects = Callable[[np.ndarray], Iterable[MaskedObjects]]
"""Images (B, H, W, 3), no more than fit in a forward pass → the objects of each."""
LoadDetector = Callable[[RewardModels, str, str | None], FindObjects]
"""Loads a detector from a path and a revision, or connects to its process."""
Detect = Callable[[np.ndarray, Sequence[dict]], list[list[Detection]]]
"""Images (B, H, W, 3) and their records → the detections in each image."""
Mode = Literal["partial", "official", "strict", "partial_flowgrpo"]


class ColorNamer:
    """Names which of ten colours an object has, by CLIP, with everything else grey."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self.embeddings: dict[str, Tensor] = {}

    def __call__(self, image: np.ndarray, mask: np.ndarray, box: Box, cls: str) -> str:
        """Return the colour of the object that the mask shows."""
        if cls not in self.embeddings:
            prompts = [template.format(color=color, cls=cls) for color in COLORS for template in COLOR_PROMPTS]
            embedded, _ = self.clip.embed_texts(prompts)
            self.embeddings[cls] = unit_rows(embedded.view(len(COLORS), len(COLOR_PROMPTS), -1).mean(1))
        x0, y0, x1, y1 = (int(side) for side in box)
        alone = np.where(mask[..., None], image, GREY).astype(np.uint8)[y0:y1, x0:x1]
        return COLORS[int((self.embeddings[cls] @ self.clip.embed_images(alone[None], crop_square)[0]).argmax())]


class Detector:
    """Detects the objects of images, and names their colours where the prompt does."""

    def __init__(self, find_objects: FindObjects, models: RewardModels) -> None:
        self.find_objects, self.batch, self.color = find_objects, models.batch, ColorNamer(load_clip_vit_l(models))

    def __call__(self, images: np.ndarray, records: Sequence[dict]) -> list[list[Detection]]:
        """Return the detections in uint8 images (B, H, W, 3)."""
        result = []
        for i in range(0, len(images), self.batch):
            part = images[i : i + self.batch]
            for image, objects, record in zip(part, self.find_objects(part), records[i:]):
                result.append(to_detections(image, objects, record, self.color))
        return result


def to_detections(
    image: np.ndarray, objects: MaskedObjects, record: Mapping, color: Callable[..., str]
) -> list[Detection]:
    """Return the objects of an image as detections; a colour is named only where the prompt names one of the class."""
    colored = {clause["class"] for clause in record["include"] if "color" in clause}
    result: list[Detection] = []
    for cls, score, box, mask in objects:
        if sum(detection.cls == cls for detection in result) < MAX_PER_CLASS:
            result.append(Detection(cls, score, box, color(image, mask, box, cls) if cls in colored else None))
    return result


@dataclass(frozen=True)
class DetectorConfig:
    """What decides the detections; rewards with the same configuration share a detector."""

    load: LoadDetector
    path: str
    revision: str | None
    models: RewardModels


@cache
def cached_detector(config: DetectorConfig) -> Detect:
    """Load a detector once, with a memory of its last batch."""
    find_objects = config.load(config.models, config.path, config.revision)
    return remember_last_batch(Detector(find_objects, config.models))


@dataclass(frozen=True)
class DetectorReward:
    """Scores images by one reading of GenEval's rules over a detector's detections."""

    detect: Detect
    mode: Mode
    """The reading of the rules, as `score_detections` has them."""
    threshold: float
    """The score from which a detection counts."""
    counting_threshold: float
    """The score from which it counts where the prompt is about a number."""

    def __call__(self, images: np.ndarray, records: Sequence[dict]) -> Scored:
        """Score uint8 images (B, H, W, 3): (B,); part `detections` is the number of those that count."""
        options = {"threshold": self.threshold, "counting_threshold": self.counting_threshold}
        rows = list(zip(records, self.detect(images, records)))
        least = [self.counting_threshold if record["tag"] == "counting" else self.threshold for record in records]
        counts = [sum(d.score > score for d in objects) for (_, objects), score in zip(rows, least)]
        if self.mode == "partial":
            rows = [(record, gradable(record, objects, **options)) for record, objects in rows]
        values = np.array([score_detections(record, objects, self.mode, **options) for record, objects in rows])
        return Scored(values, {DETECTIONS: np.array(counts, np.float64)})


def gradable(
    record: Mapping, objects: Sequence[Detection], threshold: float, counting_threshold: float
) -> list[Detection]:
    """Return the detections that soft credit may see, because to it every detection counts.

    Those of the prompt's classes are graded from below their threshold on, others count from the threshold on.
    """
    classes = {clause["class"] for clause in record["include"]}
    floor = SOFT_FROM * (counting_threshold if record["tag"] == "counting" else threshold)
    return [d for d in objects if d.score > (floor if d.cls in classes else threshold)]


def detector_rewards(name: str, load_detector: LoadDetector, published: tuple[str, str | None]) -> tuple[Reward, ...]:
    """Return the four rewards of a detector, on the weights given for `name`, or on the published ones.

    They are bounded soft credit, GenEval's own verdict, the strict verdict, and flow_grpo's training reward.
    The strict one wants exactly as many objects as the prompt says; the last is unbounded below.
    """

    def load(mode: Mode, models: RewardModels) -> DetectorReward:
        weights = {reward: path for reward, path in models.weights.items() if reward == "clipscore"}
        detector_models = RewardModels(models.device, models.dtype, models.batch, weights)
        source = models.weights_source(name, published)
        detect = cached_detector(DetectorConfig(load_detector, *source, detector_models))
        option = models.options.get
        thresholds = option("geneval_threshold", 0.3), option("geneval_counting_threshold", 0.9)
        return DetectorReward(detect, mode, *thresholds)

    def declare(suffix: str, mode: Mode, low: float) -> Reward:
        fields = {"needs": partial(validate, classes=OBJECTS), "canary": DETECTED, "sees": DETECTIONS, "version": "2"}
        fields |= {"weights": (name, "clipscore"), "options": ("geneval_threshold", "geneval_counting_threshold")}
        return network_reward(name + suffix, low, 1.0, **fields)(partial(load, mode))

    return (
        declare("", "partial", 0.0),
        declare("_official", "official", 0.0),
        declare("_strict", "strict", 0.0),
        declare("_flowgrpo", "partial_flowgrpo", -np.inf),
    )
