"""GenEval's rules (arXiv:2310.11513) as rewards, over the objects that a network detects; CLIP names their colours."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from ..envs.geneval_rules import MAX_PER_CLASS, OBJECTS, SOFT_FROM, Box, Detection, score_detections
from ..envs.shapes.prompts import validate
from ..envs.shapes.world import COLORS
from ..system.errors import ConfigError
from .base import Reward, RewardModels, Scored, network_reward, remember_last_batch
from .canaries import DETECTED
from .clip import Clip, crop_square, load_clip_vit_l, unit_rows

DETECTIONS = "detections"
"""The part that counts what a detector found."""
MIN_DETECTION_SCORE = 0.1
"""Score from which detectors report an object; the process of GenEval's own detector has the same."""
DETECTION_THRESHOLDS = {"geneval_threshold": 0.3, "geneval_counting_threshold": 0.9}
"""Options of reward_models → the scores from which a detection counts, as GenEval has them."""
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


class Crop(NamedTuple):
    """An object alone, whose colour is asked for."""

    pixels: np.ndarray
    """The object on grey, uint8 (h, w, 3)."""
    cls: str
    """Its class."""


class ColorNamer:
    """Names which of ten colours objects have, by CLIP, with everything else grey."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self.embeddings: dict[str, Tensor] = {}

    def __call__(self, crops: Sequence[Crop]) -> list[str]:
        """Return the colour of each object; all are embedded together, in as many passes as they fill."""
        if not crops:
            return []
        seen = self.clip.embed_images([crop.pixels for crop in crops], crop_square)
        return [COLORS[int((self.of_class(crop.cls) @ row).argmax())] for crop, row in zip(crops, seen)]

    def of_class(self, cls: str) -> Tensor:
        """Return the embeddings of the ten colours of a class, (10, D)."""
        if cls not in self.embeddings:
            prompts = [template.format(color=color, cls=cls) for color in COLORS for template in COLOR_PROMPTS]
            embedded, _ = self.clip.embed_texts(prompts)
            self.embeddings[cls] = unit_rows(embedded.view(len(COLORS), len(COLOR_PROMPTS), -1).mean(1))
        return self.embeddings[cls]


def crop_object(image: np.ndarray, mask: np.ndarray, box: Box, cls: str) -> Crop:
    """Return what is in the box of an object, with what its mask does not show in grey."""
    x0, y0, x1, y1 = (int(side) for side in box)
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)  # a box may be narrower than a pixel
    inside = mask[y0:y1, x0:x1, None]
    return Crop(np.where(inside, image[y0:y1, x0:x1], GREY).astype(np.uint8), cls)


class Detector:
    """Detects the objects of images, and names their colours where the prompt does."""

    def __init__(self, find_objects: FindObjects, models: RewardModels, least: float = 0.0) -> None:
        """Take a detector of objects, and the score up to which no reward looks at a detection."""
        self.find_objects, self.batch, self.least = find_objects, models.batch, least
        self.color = ColorNamer(load_clip_vit_l(models))

    def __call__(self, images: np.ndarray, records: Sequence[dict]) -> list[list[Detection]]:
        """Return the detections in uint8 images (B, H, W, 3)."""
        result = []
        for i in range(0, len(images), self.batch):
            part = images[i : i + self.batch]
            result += to_detections(part, self.find_objects(part), records[i:], self.color, self.least)
        return result


def to_detections(
    images: Iterable[np.ndarray],
    objects: Iterable[MaskedObjects],
    records: Iterable[Mapping],
    color: Callable[[Sequence[Crop]], list[str]],
    least: float = 0.0,
) -> list[list[Detection]]:
    """Return the objects of images as detections, with colours where the prompt names one of the class.

    Args:
        images: Images, uint8 (H, W, 3) each.
        objects: The objects of each.
        records: The record of each; more of them are ignored.
        color: Names the colours of objects, those of all images at once.
        least: Score up to which no reward looks at a detection, so that its colour is not asked for.
    """
    result: list[list[Detection]] = []
    crops: list[Crop] = []
    places: list[tuple[int, int]] = []
    for row, (image, of_image, record) in enumerate(zip(images, objects, records)):
        colored = {clause["class"] for clause in record["include"] if "color" in clause}
        detections: list[Detection] = []
        for cls, score, box, mask in of_image:
            if sum(detection.cls == cls for detection in detections) < MAX_PER_CLASS:
                if cls in colored and score > least:
                    crops.append(crop_object(image, mask, box, cls))
                    places.append((row, len(detections)))
                detections.append(Detection(cls, score, box))
        result.append(detections)
    for (row, i), name in zip(places, color(crops)):
        result[row][i] = replace(result[row][i], color=name)
    return result


@dataclass(frozen=True)
class DetectorConfig:
    """What decides the detections; rewards with the same configuration share a detector."""

    load: LoadDetector
    path: str
    revision: str | None
    models: RewardModels
    least: float
    """The score up to which no reward looks at a detection."""


@cache
def cached_detector(config: DetectorConfig) -> Detect:
    """Load a detector once, with a memory of its last batch."""
    find_objects = config.load(config.models, config.path, config.revision)
    return remember_last_batch(Detector(find_objects, config.models, config.least))


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


def detection_thresholds(options: Mapping[str, float], mode: Mode) -> tuple[float, float]:
    """Return the score from which a detection counts, and that for prompts about a number.

    ConfigError for one that detectors, which report nothing below `MIN_DETECTION_SCORE`, cannot tell from another.
    """
    least = MIN_DETECTION_SCORE / (SOFT_FROM if mode == "partial" else 1)
    values = {name: options.get(name, published) for name, published in DETECTION_THRESHOLDS.items()}
    for name, value in values.items():
        if not least <= value < 1:
            soft = f", because soft credit starts at {SOFT_FROM:g} of it" if mode == "partial" else ""
            raise ConfigError(
                f"reward_models.options: {name} = {value:g}: detectors report scores of {MIN_DETECTION_SCORE:g} to 1; "
                f"take at least {least:.3g} and less than 1{soft}"
            )
    threshold, counting = values.values()
    return threshold, counting


def detector_rewards(name: str, load_detector: LoadDetector, published: tuple[str, str | None]) -> tuple[Reward, ...]:
    """Return the four rewards of a detector, on the weights given for `name`, or on the published ones.

    They are bounded soft credit, GenEval's own verdict, the strict verdict, and flow_grpo's training reward.
    The strict one wants exactly as many objects as the prompt says; the last is unbounded below.
    """

    def load(mode: Mode, models: RewardModels) -> DetectorReward:
        weights = {reward: path for reward, path in models.weights.items() if reward == "clipscore"}
        detector_models = RewardModels(models.device, models.dtype, models.batch, weights)
        thresholds = detection_thresholds(models.options, mode)
        source = models.weights_source(name, published)
        config = DetectorConfig(load_detector, *source, detector_models, SOFT_FROM * min(thresholds))
        return DetectorReward(cached_detector(config), mode, *thresholds)

    def declare(suffix: str, mode: Mode, low: float) -> Reward:
        fields = {"needs": partial(validate, classes=OBJECTS), "canary": DETECTED, "sees": DETECTIONS, "version": "2"}
        fields |= {"weights": (name, "clipscore"), "options": tuple(DETECTION_THRESHOLDS)}
        return network_reward(name + suffix, low, 1.0, **fields)(partial(load, mode))

    return (
        declare("", "partial", 0.0),
        declare("_official", "official", 0.0),
        declare("_strict", "strict", 0.0),
        declare("_flowgrpo", "partial_flowgrpo", -np.inf),
    )
