"""The model card, and the way to the hub."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from huggingface_hub import ModelCard

from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.cli.main import main
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.experiment.model_card import base_in_words, gains
from afterflow.models.adapters import LoRA
from afterflow.models.sd3 import SD3


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    """A run that has ended."""
    place = tmp_path_factory.mktemp("card")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        run = Run(
            FlowGRPO({"jpeg_compressibility": 1.0}, steps=3, group=2),
            ShapesPrompts(count=4),
            SD3(pipeline, max_sequence_length=0),
            LoRA(rank=2, alpha=4),
            name="short",
        ).with_options(
            iterations=2,
            batch=2,
            chunk=4,
            inference_steps=2,
            sample_every=1,
            held_out=ShapesPrompts("test", count=10),
            eval_every=1,
        )
        return (place / execute(run, "short")).resolve()


def test_the_card_tells_what_was_measured(folder):
    card = ModelCard.load(folder / "lora" / "README.md")
    assert card.data.library_name == "diffusers" and card.data.pipeline_tag == "text-to-image"
    assert {"lora", "afterflow"} <= set(card.data.tags)
    lines = [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1] and len(lines[0]["jpeg_compressibility"]) == 10
    measured = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    mean = np.mean(lines[1]["jpeg_compressibility"])
    assert mean == pytest.approx(measured[1]["eval/jpeg_compressibility"], rel=1e-6)
    row = next(line for line in card.text.splitlines() if line.startswith("| jpeg_compressibility"))
    assert f"{mean:.3f}"[:5] in row
    assert "jpeg_compressibility × 1" in card.text and "load_lora_weights" in card.text
    assert (folder / "lora" / "comfyui.safetensors").is_file() and "copy `comfyui.safetensors` to" in card.text
    for name in ("first.png", "last.png"):
        assert (folder / "lora" / name).is_file() and f"]({name})" in card.text


@pytest.mark.parametrize(
    "options, said",
    [
        ({}, "`a/b`, in float32"),
        ({"dtype": "bfloat16"}, "`a/b`, in bfloat16"),
        ({"dtype": "bfloat16", "quantize": "nf4"}, "`a/b`, its weights quantised to nf4, computed in bfloat16"),
        ({"revision": "v2"}, "`a/b` at `v2`, in float32"),
    ],
)
def test_the_card_says_in_what_the_base_was_kept(options, said):
    run = Run(FlowGRPO({"jpeg_compressibility": 1.0}), ShapesPrompts(), SD3("a/b", **options), LoRA())
    assert base_in_words(run) == said


def test_a_gain_is_an_interval_of_the_difference():
    """What prompts differ in is not uncertainty of the gain."""
    before = np.random.default_rng(0).normal(0, 10, 200)
    difference = gains(before, before + 1, {})[2]
    assert difference.value == pytest.approx(1) and difference.high - difference.low < 1e-9


def test_a_gain_is_over_different_prompts_that_have_both_scores():
    before, after = np.random.default_rng(0).normal(size=(2, 20))
    twice = {str(20 + row): row for row in range(20)}
    for repeated, once in zip(gains(np.tile(before, 2), np.tile(after, 2), twice), gains(before, after, {})):
        assert (repeated.value, repeated.low, repeated.high) == pytest.approx((once.value, once.low, once.high))
    partly = np.append(before, np.nan), np.append(after, 5.0)
    assert gains(*partly, {}) == gains(before, after, {})
    assert gains(np.array([np.nan]), np.array([1.0]), {}) == [None] * 3


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files asks for."""

    asked: list = []  # noqa: RUF012
    status = 200

    def answer(self, body):
        data = json.dumps(body).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append((self.path, self.headers.get("Authorization"), body))
        if self.status != 200:
            return self.answer({"error": "no"})
        if self.path.endswith("/preupload/main"):
            files = [file["path"] for file in json.loads(body)["files"]]
            return self.answer(
                {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]}
            )
        where = f"http://{self.headers['Host']}/me/mine"
        return self.answer(
            {"url": where, "name": "me/mine", "id": "me/mine", "commitUrl": where, "commitOid": "0" * 40}
        )

    def do_GET(self):
        return self.answer({"id": "me/mine", "sha": "0" * 40, "siblings": []})

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(Hub, "asked", [])
    monkeypatch.setattr(Hub, "status", 200)
    yield Hub
    server.shutdown()


def test_a_result_is_pushed_privately_with_all_its_files(folder, hub, capsys):
    assert main(["push", "me/mine", str(folder)]) == 0
    (path, token, body), *_ = hub.asked
    assert path == "/api/repos/create" and token == "Bearer hf_secret"
    asked = json.loads(body)
    assert asked.get("private") is True or asked.get("visibility") == "private"
    commit = next(body for path, _, body in hub.asked if "/commit/" in path)
    sent = {json.loads(line)["value"].get("path") for line in commit.splitlines()}
    assert {"README.md", "pytorch_lora_weights.safetensors", "first.png", "last.png"} <= sent
    assert "/me/mine" in capsys.readouterr().out


@pytest.mark.parametrize(
    "source, expected",
    [
        ("lora", {"README.md", "pytorch_lora_weights.safetensors", "comfyui.safetensors"}),
        ("lora/comfyui.safetensors", {"comfyui.safetensors"}),
    ],
)
def test_a_lora_s_folder_or_its_file_is_pushed_alike(folder, hub, source, expected):
    assert main(["push", "me/mine", str(folder / source)]) == 0
    commit = next(body for path, _, body in hub.asked if "/commit/" in path)
    sent = {json.loads(line)["value"].get("path") for line in commit.splitlines()} - {None}
    assert sent == expected if source != "lora" else sent >= expected


def test_a_refusal_of_the_hub_is_one_sentence(folder, hub, monkeypatch, capsys):
    monkeypatch.setattr(hub, "status", 403)
    assert main(["push", "me/mine", str(folder)]) == 2
    assert "me/mine could not be pushed: 403" in capsys.readouterr().err


def test_a_hub_that_is_not_there_is_one_sentence(folder, hub, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", "me/mine", str(folder)]) == 2
    assert "check the network" in capsys.readouterr().err


def test_without_a_token_nothing_is_asked(folder, hub, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert main(["push", "me/mine", str(folder)]) == 2
    assert "no token for the hub; set HF_TOKEN" in capsys.readouterr().err
    assert not hub.asked


@pytest.mark.parametrize(
    "repo, run, said",
    [("mine", ".", "reads owner/name"), ("a/b", "nowhere", "no pytorch_lora_weights.safetensors there")],
)
def test_what_cannot_be_pushed_is_refused(repo, run, said, capsys):
    assert main(["push", repo, run]) == 2
    assert said in capsys.readouterr().err
