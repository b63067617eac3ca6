"""GenEval (arXiv:2310.11513) by its own detector, which runs in an environment of its own: sidecars/geneval_mmdet.py.

mmdet wants an old Python and an old torch, so it answers over HTTP.  Rules and colours are ours, as for GenEval-HF.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..envs.geneval_rules import OBJECTS
from ..system.errors import ConfigError, InputError
from ..system.optional_dependencies import check_extra
from .base import NoAnswer, RewardModels, check_address
from .detector_reward import FindObjects, MaskedObjects, detector_rewards
from .http import HttpClient
from .png import decode_base64, decode_png, encode_png
from .vlm.answers import error_words

SECONDS = 300.0
"""Longest time for the objects of a batch."""
REPLY_MEGABYTES = 256
"""Largest reply: a mask for each object of each image."""
MAX_VALUES_OF_IMAGE = 20_000
"""Largest number of values that it may say of an image: 16 objects of each of 80 classes have 17 000."""
SIDECAR = ("http://127.0.0.1:8110", None)


def connect_sidecar(models: RewardModels, url: str, revision: str | None) -> FindObjects:
    """Return the detector in the process that listens at an address; raise ConfigError where none does."""
    check_extra("a detector in a process of its own", ["httpx"], "judge")
    import httpx

    check_address("reward_models.weights: geneval", url)
    url, client = url.rstrip("/"), HttpClient()
    try:
        health = client.get(f"{url}/health", 10.0).json()
    except (httpx.TransportError, ValueError) as error:
        raise ConfigError(f"nothing answers at {url} ({error}); start sidecars/geneval_mmdet.py") from error
    if health != {"status": "ok", "classes": len(OBJECTS)}:
        raise ConfigError(f"{url} is no detector of GenEval's {len(OBJECTS)} classes")

    def find_objects(images: np.ndarray) -> list[MaskedObjects]:
        body = json.dumps({"images": [encode_png(image) for image in images]}).encode()
        try:
            reply = client.post(f"{url}/detect", body, "application/json", SECONDS, REPLY_MEGABYTES)
        except httpx.TransportError as error:
            raise NoAnswer(f"{url} does not answer ({type(error).__name__}: {error})") from error
        if reply.status_code != 200:
            raise InputError(f"{url}: status {reply.status_code}: {error_words(reply.text)}")
        try:
            answers = list(reply.json(MAX_VALUES_OF_IMAGE * len(images))["detections"])
        except (KeyError, TypeError) as error:
            raise InputError(f"{url} answers in another form") from error
        if len(answers) != len(images):
            raise InputError(f"{url} answered about {len(answers)} images of {len(images)}")
        return [parse_objects(answer, images[0, ..., 0].size) for answer in answers]

    return find_objects


def parse_objects(answer: Sequence[dict[str, Any]], max_pixels: int) -> MaskedObjects:
    """Yield the objects of one image of so many pixels from the sidecar's answer, the surest first."""
    for item in sorted(answer, key=lambda item: -item["score"]):
        mask = decode_png(decode_base64(item["mask"]), max_pixels)[..., 0] > 0
        x0, y0, x1, y1 = (float(side) for side in item["box"])
        yield OBJECTS[item["class"]], float(item["score"]), (x0, y0, x1, y1), mask


geneval, geneval_official, geneval_strict, geneval_flowgrpo = detector_rewards("geneval", connect_sidecar, SIDECAR)
