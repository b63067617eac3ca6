"""GenEval's own detector as a process: the script runs with a stand-in of mmdet, whose answers are known."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

import tinies
from afterflow.rewards.base import RewardModels
from afterflow.rewards.detector_reward import Detector
from afterflow.rewards.geneval_mmdet import connect_sidecar, parse_objects
from afterflow.rewards.http import HttpClient
from afterflow.rewards.png import encode_png
from afterflow.rewards.registry import find_reward, load_reward

SCRIPT = Path(__file__).parents[2] / "sidecars" / "geneval_mmdet.py"
STAND_IN = """
import numpy as np


class Model:
    CLASSES = ("class",) * 80


def init_detector(config, checkpoint, device):
    assert (config, checkpoint, device) == ("a.py", "a.pth", "cpu")
    return Model()


def inference_detector(model, image):
    # A dog (16) where BGR's last channel is bright: that is red.
    boxes, masks = [np.zeros((0, 5))] * 80, [[]] * 80
    mask = image[..., 2] > 128
    boxes[16] = np.array([[1.0, 2.0, 9.0, 10.0, 0.4], [0.0, 0.0, 4.0, 4.0, 0.95], [0.0, 0.0, 1.0, 1.0, 0.05]])
    masks[16] = [mask, mask, mask]
    return boxes, masks
"""
TWO_DOGS = {"tag": "counting", "prompt": "two dogs", "include": [{"class": "dog", "count": 2}]}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    place = tmp_path_factory.mktemp("sidecar")
    (place / "mmdet").mkdir()
    (place / "mmdet" / "__init__.py").touch()
    (place / "mmdet" / "apis.py").write_text(STAND_IN)
    words = ["--config", "a.py", "--checkpoint", "a.pth", "--device", "cpu", "--port", "0"]
    command = [sys.executable, str(SCRIPT), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(place)}) as process:
        yield "http://" + process.stdout.readline().split()[-1]
        process.terminate()


def pictures():
    images = np.zeros((3, 12, 16, 3), np.uint8)
    images[:, 2:10, 1:9, 0] = 255
    return images


def test_its_detections_are_read_by_our_rules(url, tmp_path):
    models = RewardModels(weights={"geneval": url, "clipscore": str(tinies.clip(tmp_path))}, batch=2)
    seen = Detector(connect_sidecar(models, url, None), models)(pictures(), [TWO_DOGS] * 3)
    assert len(seen) == 3
    assert [(d.cls, d.score, d.box) for d in seen[0]] == [("dog", 0.95, (0, 0, 4, 4)), ("dog", 0.4, (1, 2, 9, 10))]
    score = lambda name, record: load_reward(name, models)(pictures(), [record] * 3).values.tolist()
    assert score("geneval_strict", TWO_DOGS) == [0] * 3  # counting wants .9 of both
    assert score("geneval_strict", TWO_DOGS | {"tag": "two_object"}) == [1] * 3


def test_masks_come_through(url):
    reply = httpx.post(f"{url}/detect", json={"images": [encode_png(pictures()[0])]}).json()
    for _, _, _, mask in parse_objects(reply["detections"][0], 12 * 16):
        assert (mask == (pictures()[0][..., 0] > 128)).all()


MANY = json.dumps({"images": [""] * 257}).encode()


@pytest.mark.parametrize("body", [b"", b"{", b'{"images": [1]}', b'{"images": ["AAAA"]}', b"[]", b"[" * 9999, MANY])
def test_what_it_cannot_read_is_refused_and_it_lives_on(url, body):
    assert httpx.post(f"{url}/detect", content=body).status_code in (413, 422)
    assert httpx.get(f"{url}/health").json() == {"status": "ok", "classes": 80}
    assert httpx.get(f"{url}/elsewhere").status_code == 404
    assert httpx.post(f"{url}/detect", json={"images": []}, headers={"Origin": "null"}).status_code == 403


def test_one_that_ends_is_asked_once_for_a_batch(url, tmp_path, monkeypatch):
    models = RewardModels(weights={"geneval": url, "clipscore": str(tinies.clip(tmp_path))}, batch=3)
    reward, calls = load_reward("geneval_official", models), []

    def gone(*words, **options):
        calls.append(words)
        raise httpx.ReadTimeout("timed out")

    monkeypatch.setattr(HttpClient, "post", gone)
    scored = reward(pictures(), [TWO_DOGS] * 3)
    assert np.isnan(scored.values).all() and len(scored.why) == 3 and len(calls) == 1
    assert f"{url} does not answer (ReadTimeout: timed out)" in scored.why[2]


def test_nobody_there_is_said_before_training(tmp_path):
    models = RewardModels(weights={"geneval": "http://127.0.0.1:9", "clipscore": str(tinies.clip(tmp_path))})
    with pytest.raises(
        ValueError, match=r"geneval_official could not be loaded: nothing answers at .*; start sidecars/"
    ):
        load_reward("geneval_official", models)
    assert find_reward("geneval_official").needs is not None
