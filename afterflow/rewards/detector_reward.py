"""GenEval's rules (arXiv:2310.11513) as rewards, over the detections of a network; colours are named by CLIP."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import numpy as np
from torch import Tensor

from ..envs.geneval_rules import MAX_PER_CLASS, OBJECTS, SOFT_FROM, Box, Detection, score_detections
from ..envs.shapes.prompts import validate
from ..envs.shapes.world import COLORS
from .base import Reward, RewardModels, network_reward, remember_last_batch
from .clip import Clip, crop_square, unit_rows

GREY = 153
"""The grey #999, which GenEval puts behind an object before its colour is named."""
COLOR_PROMPTS = ("a photo of a {color} {cls}", "a photo of a {color}-colored {cls}", "a photo of a {color} object")

Detect = Callable[[np.ndarray, Sequence[dict]], list[list[Detection]]]
"""Images (B, H, W, 3) and their records → the detections of each image."""
MaskedObjects = Iterable[tuple[str, float, Box, np.ndarray]]
"""Class, score, box and mask (H, W) of each object of an image, the surest first."""
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
    """What a detector is loaded from; rewards with the same one share it."""

    kind: Callable[[RewardModels, str, str | None], Detect]
    """Makes the detector of models, path and revision."""
    path: str
    """The hub id or folder of its weights, or the address of its process."""
    revision: str | None
    """The revision of the weights on the hub."""
    clip: str | None
    """The weights of the CLIP that names colours, where they are not the published ones."""
    device: str
    """The torch device that it runs on."""
    dtype: Literal["float32", "bfloat16"]
    """The precision of its weights and forward passes."""
    batch: int
    """Number of images in a forward pass."""


@cache
def cached_detector(config: DetectorConfig) -> Detect:
    """Load a detector once, with a memory of its last batch."""
    weights = {} if config.clip is None else {"clipscore": config.clip}
    models = RewardModels(config.device, config.dtype, config.batch, weights)
    return remember_last_batch(config.kind(models, config.path, config.revision))


@dataclass(frozen=True)
class DetectorReward:
    """Scores images by one reading of GenEval's rules over a detector's detections."""

    detect: Detect
    """Finds the objects of images."""
    mode: Mode
    """The reading of the rules, as `score_detections` has them."""
    threshold: float
    """The score from which a detection counts."""
    counting_threshold: float
    """The same for prompts that count."""

    def __call__(self, images: np.ndarray, records: Sequence[dict]) -> np.ndarray:
        """Score uint8 images (B, H, W, 3): (B,)."""
        options = {"threshold": self.threshold, "counting_threshold": self.counting_threshold}
        rows = zip(records, self.detect(images, records))
        if self.mode == "partial":
            rows = [(record, gradable(record, objects, **options)) for record, objects in rows]
        return np.array([score_detections(record, objects, self.mode, **options) for record, objects in rows])


def gradable(
    record: Mapping, objects: Sequence[Detection], threshold: float, counting_threshold: float
) -> list[Detection]:
    """Return the detections that soft credit may see, because to it every detection counts.

    Those of the prompt's classes are graded from below their threshold on, others count from the threshold on.
    """
    classes = {clause["class"] for clause in record["include"]}
    floor = SOFT_FROM * (counting_threshold if record["tag"] == "counting" else threshold)
    return [d for d in objects if d.score > (floor if d.cls in classes else threshold)]


def detector_rewards(
    name: str, kind: Callable[[RewardModels, str, str | None], Detect], published: tuple[str, str | None]
) -> tuple[Reward, Reward, Reward, Reward]:
    """Return the four rewards of a detector, on the weights given for `name`, or on the published ones.

    They are bounded soft credit, GenEval's own verdict, the strict one (exactly as many objects as the prompt says) and
    flow_grpo's training reward, which is unbounded below.
    """

    def load(mode: Mode, models: RewardModels) -> DetectorReward:
        path, revision = models.weights_source(name, published)
        runs = models.torch_device, models.dtype, models.batch
        detect = cached_detector(DetectorConfig(kind, path, revision, models.weights.get("clipscore"), *runs))
        option = models.options.get
        return DetectorReward(detect, mode, option("geneval_threshold", 0.3), option("geneval_counting_threshold", 0.9))

    def declare(suffix: str, mode: Mode, low: float) -> Reward:
        return network_reward(name + suffix, low, 1.0, needs=partial(validate, classes=OBJECTS))(partial(load, mode))

    return (
        declare("", "partial", 0.0),
        declare("_official", "official", 0.0),
        declare("_strict", "strict", 0.0),
        declare("_flowgrpo", "partial_flowgrpo", -np.inf),
    )
