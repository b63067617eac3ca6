"""GenEval (arXiv:2310.11513) by its own detector, which runs in an environment of its own: sidecars/geneval_mmdet.py.

mmdet wants an old Python and an old torch, so it answers over HTTP.  Rules and colours are ours, as for GenEval-HF.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..envs.geneval_rules import OBJECTS, Detection
from ..system.errors import ConfigError
from ..system.optional_dependencies import check_extra
from .base import RewardModels
from .clip import load_clip_vit_l
from .detector_reward import ColorNamer, MaskedObjects, detector_rewards, to_detections
from .png import encode_png

SIDECAR = ("http://127.0.0.1:8110", None)


class SidecarDetector:
    """Detects objects by asking the process that listens at an address."""

    def __init__(self, models: RewardModels, url: str, revision: str | None) -> None:
        check_extra("a detector in a process of its own", ["httpx"], "judge")
        import httpx

        self.url, self.client, self.models = url.rstrip("/"), httpx.Client(timeout=300.0), models
        try:
            health = self.client.get(f"{self.url}/health").json()
        except (httpx.HTTPError, ValueError) as error:
            raise ConfigError(f"nothing answers at {url} ({error}); start sidecars/geneval_mmdet.py") from error
        if health != {"status": "ok", "classes": len(OBJECTS)}:
            raise ConfigError(f"{url} is no detector of GenEval's {len(OBJECTS)} classes")
        self.color = ColorNamer(load_clip_vit_l(models))

    def __call__(self, images: np.ndarray, records: Sequence[dict]) -> list[list[Detection]]:
        """Return the detections of uint8 images (B, H, W, 3)."""
        result = []
        for i in range(0, len(images), self.models.batch):
            part = images[i : i + self.models.batch]
            reply = self.client.post(f"{self.url}/detect", json={"images": [encode_png(image) for image in part]})
            reply.raise_for_status()
            answers = reply.json()["detections"]
            if len(answers) != len(part):
                raise ValueError(f"{self.url} answered about {len(answers)} images of {len(part)}")
            for image, answer, record in zip(part, answers, records[i : i + len(part)]):
                result.append(to_detections(image, parse_objects(answer), record, self.color))
        return result


def parse_objects(answer: Sequence[dict[str, Any]]) -> MaskedObjects:
    """Yield the objects of one image from the sidecar's answer, the surest first."""
    for item in sorted(answer, key=lambda item: -item["score"]):
        mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(item["mask"]))).convert("L")) > 0
        x0, y0, x1, y1 = item["box"]
        yield OBJECTS[item["class"]], item["score"], (x0, y0, x1, y1), mask


geneval, geneval_official, geneval_strict, geneval_flowgrpo = detector_rewards("geneval", SidecarDetector, SIDECAR)
