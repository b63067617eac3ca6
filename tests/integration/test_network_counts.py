"""Counts of a network that are kept are those that would be counted, and whatever decides them makes them anew."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch

from afterflow.experiment import network_counts as counting
from afterflow.experiment.cost_estimate import estimate_cost
from afterflow.experiment.network_counts import NetworkCounts, count_network, counts_key, network_counts
from afterflow.experiment.passes import tensor_bytes
from afterflow.models.adapters import Full, LoRA, attach
from afterflow.models.pipeline_files import TINY
from afterflow.models.wan import Wan
from afterflow.recipes import RECIPES
from afterflow.sampling.schedules import DynamicShift


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with a cache folder of its own."""
    monkeypatch.setenv("AFTERFLOW_CACHE", str(tmp_path / "cache"))
    return RECIPES["shapes_mix_grpo"]()


@pytest.fixture
def only_once(monkeypatch):
    """A network is counted once, and the runs for which it was."""
    counted = []
    monkeypatch.setattr(counting, "count_network", lambda run: counted.append(run) or count_network(run))
    return counted


@pytest.fixture
def at_once(monkeypatch):
    """Each run counts as the same network, and the runs that were counted."""
    counted, latents = [], (16, 4, 4)
    counts = NetworkCounts(7, 6, 5, 4, 3, 2, 1, latents, latents, (77, 8, None), DynamicShift(4, (1, 0.5)))
    monkeypatch.setattr(counting, "count_network", lambda run: counted.append(run) or counts)
    return counted


@pytest.mark.parametrize("name", ["shapes_sft", "moving_flow_grpo"])
def test_an_estimate_from_kept_counts_is_the_same(run, only_once, name):
    run = RECIPES[name]()
    assert estimate_cost(run) == estimate_cost(run.with_options(seed=run.seed + 1))
    assert len(only_once) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_are_as_many_bytes_as_a_loaded_pipeline_has_with_its_buffers(run, dtype):
    run = replace(run, model=replace(run.model, dtype=dtype))
    model = run.model.load()
    attach(model, run.tune)
    parts = [tensor for part in (model.module, model.vae) for tensor in (*part.parameters(), *part.buffers())]
    positions = dict(model.module.named_buffers())["pos_embed.pos_embed"]
    assert positions.dtype == getattr(torch, dtype)
    assert count_network(run).weights == tensor_bytes(parts)


DECIDING = {
    "rank": lambda run: replace(run, tune=LoRA(rank=4)),
    "layers": lambda run: replace(run, tune=LoRA(targets=("to_q",))),
    "all weights": lambda run: replace(run, tune=Full()),
    "family": lambda run: replace(run, model=Wan("tiny_wan", height=32, width=32, frames=9)),
    "size": lambda run: replace(run, model=replace(run.model, size=64)),
    "weights": lambda run: replace(run, model=replace(run.model, dtype="bfloat16")),
    "tokens": lambda run: replace(run, model=replace(run.model, max_sequence_length=64)),
    "chunk": lambda run: run.with_options(chunk=3),
    "guidance": lambda run: run.with_options(guidance_scale=3.0),
    "precision": lambda run: run.with_options(mixed_precision="fp16"),  # a CPU that computes in bf16 trains in it
    "checkpointing": lambda run: run.with_options(gradient_checkpointing=True),
}


@pytest.mark.parametrize("change", DECIDING.values(), ids=DECIDING)
def test_what_decides_the_counts_is_in_their_key(run, change):
    assert counts_key(change(run)) != counts_key(run)
    others = run.with_options(iterations=3, batch=5, seed=7, learning_rate=0.1, eval_images=1, name="other")
    assert counts_key(others) == counts_key(run)


def test_another_file_of_the_pipeline_library_or_source_is_in_the_key(run, tmp_path, monkeypatch):
    shutil.copytree(TINY, tmp_path / "pipeline")
    run = replace(run, model=replace(run.model, path=str(tmp_path / "pipeline")))
    keys = [counts_key(run)]
    os.utime(tmp_path / "pipeline" / "transformer" / "config.json", (0, 0))
    keys.append(counts_key(run))
    monkeypatch.setattr(counting, "version", lambda name: "0")
    keys.append(counts_key(run))
    monkeypatch.setattr(counting, "COUNTING", ("models",))
    keys.append(counts_key(run))
    assert len(set(keys)) == 4


@pytest.mark.parametrize("content", ["", "[]", "{", '{"frozen": 1}', '{"frozen": "a lot"}'])
def test_kept_counts_that_cannot_be_read_are_made_anew(run, at_once, tmp_path, caplog, content):
    first = network_counts(run)
    (file,) = (tmp_path / "cache" / "counts").iterdir()
    kept = file.read_text()
    file.write_text(content)
    assert network_counts(run) == first and len(at_once) == 2
    assert str(file) in caplog.text and "is made anew" in caplog.text
    assert file.read_text() == kept and json.loads(kept)["trained"] == first.trained


def test_a_lora_that_is_trained_on_is_looked_at_each_time(run, at_once):
    on = replace(run, tune=LoRA(start="runs/x"))
    network_counts(on), network_counts(on)
    assert at_once == [on, on]


def test_where_nothing_can_be_kept_the_counts_are_there_all_the_same(run, at_once, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("AFTERFLOW_CACHE", str(tmp_path / "file" / "cache"))
    assert network_counts(run).trained == 4
