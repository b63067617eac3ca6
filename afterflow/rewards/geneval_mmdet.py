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
from ..system.optional_dependencies import check_extra
from .base import RewardModels
from .clip import large
from .geneval_hf import Colors, Found, described, readings

HERE = ("http://127.0.0.1:8110", None)


class Sidecar:
    """Objects by the process that listens at an address."""

    def __init__(self, models: RewardModels, url: str, revision: str | None) -> None:
        check_extra("a detector in a process of its own", ["httpx"], "judge")
        import httpx

        self.url, self.client, self.models = url.rstrip("/"), httpx.Client(timeout=300.0), models
        try:
            said = self.client.get(f"{self.url}/health").json()
        except (httpx.HTTPError, ValueError) as error:
            raise ValueError(f"nothing answers at {url} ({error}); start sidecars/geneval_mmdet.py") from error
        if said != {"status": "ok", "classes": len(OBJECTS)}:
            raise ValueError(f"{url} is no detector of GenEval's {len(OBJECTS)} classes")
        self.color = Colors(large(models))

    def __call__(self, images: np.ndarray, records: Sequence[dict]) -> list[list[Detection]]:
        seen = []
        for i in range(0, len(images), self.models.batch):
            part = images[i : i + self.models.batch]
            reply = self.client.post(f"{self.url}/detect", json={"images": [png(image) for image in part]})
            reply.raise_for_status()
            found = reply.json()["detections"]
            if len(found) != len(part):
                raise ValueError(f"{self.url} answered about {len(found)} images of {len(part)}")
            of = zip(part, found, records[i : i + len(part)])
            seen += [described(image, objects(each), record, self.color) for image, each, record in of]
        return seen


def objects(found: Sequence[dict[str, Any]]) -> Found:
    """What the sidecar says of an image."""
    for each in sorted(found, key=lambda each: -each["score"]):
        mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(each["mask"]))).convert("L")) > 0
        x0, y0, x1, y1 = each["box"]
        yield OBJECTS[each["class"]], each["score"], (x0, y0, x1, y1), mask


def png(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


geneval = readings("geneval", Sidecar, HERE)
