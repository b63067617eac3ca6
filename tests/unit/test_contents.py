"""run.json names contents: whatever a run is made from and that changes is named when it goes on."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.sft import SFT
from afterflow.data.images import ImageFolder
from afterflow.data.prompts import PromptFile
from afterflow.experiment import contents as module
from afterflow.experiment.config import Run
from afterflow.experiment.contents import check_contents, folder_contents, reward_contents, run_contents
from afterflow.experiment.prompt_checks import held_out_records, prompt_records
from afterflow.experiment.provenance import write_record
from afterflow.models.adapters import LoRA, Teacher
from afterflow.rewards.base import RewardModels
from afterflow.rewards.registry import REWARDS, find_reward
from afterflow.rewards.vlm.judge import VLMJudge
from afterflow.system.errors import CheckpointError


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A run made from prompts, held-out prompts, a reward of the user's own, a LoRA, teachers and a pipeline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_reward", raising=False)
    Path("prompts.txt").write_text("a star\na ring\n")
    Path("held.txt").write_text("a disk\n")
    Path("my_reward.py").write_text("def red(images, records):\n    return images.mean((1, 2, 3))\n")
    for lora in ("start", "teacher"):
        Path(lora).mkdir()
        Path(lora, "pytorch_lora_weights.safetensors").write_bytes(lora.encode())
    Path("model", "transformer").mkdir(parents=True)
    Path("model", "transformer", "a.safetensors").write_bytes(b"weights")
    Path("model", "README.md").write_text("a card")
    algorithm = FlowGRPO(weights={"my_reward:red": 1.0, "jpeg_compressibility": 1.0}, beta=0.0)
    run = Run(algorithm, PromptFile("prompts.txt"), tune=LoRA(start="start"))
    return run.with_options(held_out=PromptFile("held.txt"), eval_every=1)


def digests(run):
    teachers = (Teacher("t", "teacher", ("x",)),) if isinstance(run.data, PromptFile) else ()
    taught = SimpleNamespace(**vars(run) | {"teachers": teachers, "rewards": run.rewards})
    return run_contents(taught, prompt_records(run), held_out_records(run), Path("model"))  # type: ignore[arg-type]


CHANGES = {
    "prompts": lambda: Path("prompts.txt").write_text("a star\na rung\n"),
    "held-out prompts": lambda: Path("held.txt").write_text("a disk\na ring\n"),
    "start LoRA": lambda: Path("start/pytorch_lora_weights.safetensors").write_bytes(b"other"),
    "teacher t": lambda: Path("teacher/pytorch_lora_weights.safetensors").write_bytes(b"other"),
    "model": lambda: Path("model/transformer/a.safetensors").write_bytes(b"Weights"),
    "reward my_reward:red": lambda: Path("my_reward.py").write_text("def red(images, records):\n    return [1]\n"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_has_changed_is_named_and_nothing_else(made, what):
    before = digests(made)
    assert digests(made) == before and set(CHANGES) <= set(before)
    CHANGES[what]()
    after = digests(made)
    assert [name for name in before if before[name] != after[name]] == [what]


def test_a_version_of_a_reward_and_its_weights_are_contents(made, tmp_path, monkeypatch):
    before = digests(made)
    changed = replace(REWARDS["jpeg_compressibility"], version="another")  # type: ignore[type-var]
    monkeypatch.setitem(REWARDS, "jpeg_compressibility", changed)
    assert digests(made)["reward jpeg_compressibility"] != before["reward jpeg_compressibility"]
    Path("weights").write_bytes(b"1")
    run = replace(made, reward_models=replace(made.reward_models, weights={"jpeg_compressibility": "weights"}))
    before = digests(run)
    Path("weights").write_bytes(b"2")
    assert digests(run) != before


@pytest.mark.parametrize("name", [name for name in REWARDS if find_reward(name).load is not None])
def test_new_contents_of_all_weights_that_a_reward_reads_are_another_reward(name, tmp_path):
    read = find_reward(name).weights_read
    for weights in read:
        (tmp_path / weights).mkdir()
        (tmp_path / weights / "model.safetensors").write_bytes(b"1")
    models = RewardModels(weights={weights: str(tmp_path / weights) for weights in (*read, "other")})
    seen = {reward_contents(name, models)}
    for weights in read:
        (tmp_path / weights / "model.safetensors").write_bytes(b"2")
        seen.add(reward_contents(name, models))
    assert len(seen) == 1 + len(read)
    (tmp_path / "other").write_bytes(b"1")
    assert reward_contents(name, models) in seen


def test_what_is_no_part_of_it_may_change(made):
    before = digests(made)
    Path("model/README.md").write_text("another card")
    Path("model/.DS_Store").write_text("x")
    Path("prompts.txt").write_text("a star\n\na ring\n\n")
    assert digests(made) == before


def test_pictures_are_known_by_name_size_and_content(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("pictures").mkdir()
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(f"pictures/{name}.png")
    lines = [json.dumps({"file_name": f"{name}.png", "text": name}) for name in "ab"]
    Path("pictures/metadata.jsonl").write_text("\n".join(lines))
    run = Run(SFT(), ImageFolder("pictures"))
    before = digests(run)["pictures"]
    Path("pictures/.DS_Store").write_text("x")
    assert digests(run)["pictures"] == before
    seen = {before}
    data = bytearray(Path("pictures/a.png").read_bytes())
    data[-20] ^= 1  # of the same size
    Path("pictures/a.png").write_bytes(data)
    seen.add(digests(run)["pictures"])
    Path("pictures/a.png").rename("pictures/c.png")
    seen.add(digests(run)["pictures"])
    Path("pictures/metadata.jsonl").write_text("\n".join(reversed(lines)))
    seen.add(digests(run)["pictures"])
    assert len(seen) == 4


def test_of_weights_the_ends_are_read_and_of_data_all(tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_bytes(bytes(4 << 20))
    ends, whole = folder_contents(file), folder_contents(file, whole=True)
    with file.open("r+b") as stream:
        stream.seek(2 << 20)
        stream.write(b"x")
    assert folder_contents(file) == ends and folder_contents(file, whole=True) != whole


@pytest.mark.parametrize("changed", ["root", "max_model_len", "created", None])
def test_the_model_that_a_judges_server_has_is_known_by_what_the_server_says(monkeypatch, changed):
    said = {"id": "judge", "root": "Qwen/A", "max_model_len": 9, "created": 1, "permission": [{"id": "x"}]}

    def digest_of(item):
        reply = SimpleNamespace(json=lambda: {"data": [{"id": "other"}, item]})
        reply.raise_for_status = lambda: reply
        chat = SimpleNamespace(url="http://x/v1", timeout=1.0, client=SimpleNamespace(get=lambda url, seconds: reply))
        monkeypatch.setattr(module, "connect", lambda judge: chat)
        return module.served_model(VLMJudge())

    other = said | ({} if changed is None else {changed: "another"})
    assert (digest_of(said) != digest_of(other)) == (changed in ("root", "max_model_len"))


def test_a_run_goes_on_with_changed_data_only_where_that_is_accepted():
    begun = {"contents": {"prompts": "1", "model": "1"}}
    assert check_contents(Path("runs/a"), begun, {"prompts": "1", "model": "1", "judge": "1"}, False) == []
    now = {"prompts": "2", "model": "1"}
    with pytest.raises(
        CheckpointError, match=r"^runs/a: prompts changed since the run began; .*--accept-changed-data$"
    ):
        check_contents(Path("runs/a"), begun, now, False)
    assert check_contents(Path("runs/a"), begun, now, True) == ["prompts changed"]
    # What was accepted once is what the run is made from.
    accepted = begun | {"resumed": [{"contents": now}]}
    assert check_contents(Path("runs/a"), accepted, now, False) == []
    assert check_contents(Path("runs/a"), {}, now, False) == []  # the record of an earlier version


def test_the_record_has_the_contents_of_every_start(tmp_path):
    write_record(tmp_path, {}, "recipe", 0, contents={"prompts": "1"})
    write_record(tmp_path, {}, "recipe", 0, first=3, contents={"prompts": "2"})
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["contents"] == {"prompts": "1"} and record["resumed"][0]["contents"] == {"prompts": "2"}
