"""GenEval (arXiv:2310.11513) by its own detector, which runs in an environment of its own: sidecars/geneval_mmdet.py.

mmdet wants an old Python and an old torch, so it answers over HTTP.  Rules and colours are ours, as for GenEval-HF.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..envs.geneval_rules import OBJECTS
from ..system.errors import ConfigError
from ..system.optional_dependencies import check_extra
from .base import NoAnswer, RewardModels, check_address
from .detector_reward import FindObjects, MaskedObjects, detector_rewards
from .png import encode_png
from .vlm.answers import error_words
from .vlm.client import CONNECT_SECONDS

SIDECAR = ("http://127.0.0.1:8110", None)


def connect_sidecar(models: RewardModels, url: str, revision: str | None) -> FindObjects:
    """Return the detector in the process that listens at an address; raise ConfigError where none does."""
    check_extra("a detector in a process of its own", ["httpx"], "judge")
    import httpx

    check_address("reward_models.weights: geneval", url)
    url, client = url.rstrip("/"), httpx.Client(timeout=httpx.Timeout(300.0, connect=CONNECT_SECONDS))
    try:
        health = client.get(f"{url}/health").json()
    except (httpx.HTTPError, ValueError) as error:
        raise ConfigError(f"nothing answers at {url} ({error}); start sidecars/geneval_mmdet.py") from error
    if health != {"status": "ok", "classes": len(OBJECTS)}:
        raise ConfigError(f"{url} is no detector of GenEval's {len(OBJECTS)} classes")

    def find_objects(images: np.ndarray) -> list[MaskedObjects]:
        try:
            reply = client.post(f"{url}/detect", json={"images": [encode_png(image) for image in images]})
        except httpx.TransportError as error:
            raise NoAnswer(f"{url} does not answer ({type(error).__name__}: {error})") from error
        if reply.status_code != 200:
            raise ValueError(f"{url}: status {reply.status_code}: {error_words(reply.text)}")
        answers = reply.json()["detections"]
        if len(answers) != len(images):
            raise ValueError(f"{url} answered about {len(answers)} images of {len(images)}")
        return [parse_objects(answer) for answer in answers]

    return find_objects


def parse_objects(answer: Sequence[dict[str, Any]]) -> MaskedObjects:
    """Yield the objects of one image from the sidecar's answer, the surest first."""
    for item in sorted(answer, key=lambda item: -item["score"]):
        mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(item["mask"]))).convert("L")) > 0
        x0, y0, x1, y1 = item["box"]
        yield OBJECTS[item["class"]], item["score"], (x0, y0, x1, y1), mask


geneval, geneval_official, geneval_strict, geneval_flowgrpo = detector_rewards("geneval", connect_sidecar, SIDECAR)
