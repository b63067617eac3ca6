"""A run that fits a card: what is changed for it, and that nothing is learnt otherwise."""

import json
from dataclasses import replace

import pytest

from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.sft import SFT
from afterflow.cli.main import main
from afterflow.data.images import ShapesImages
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment.config import Run
from afterflow.experiment.cost_estimate import estimate_cost
from afterflow.experiment.execute import execute
from afterflow.experiment.memory_fit import SHARE, WAYS, fit_run, needed_bytes, with_way
from afterflow.experiment.network_counts import network_counts
from afterflow.models.adapters import Full, LoRA
from afterflow.system.errors import ConfigError, MissingDependencyError
from tinies import built

pytestmark = pytest.mark.usefixtures("own_folder")


def run_of(config):
    algorithm = FlowGRPO({"jpeg_compressibility": 1.0}, steps=4, group=4)
    run = Run(algorithm, ShapesPrompts(count=4), config, LoRA(rank=2, alpha=4), name="card")
    return run.with_options(iterations=2, batch=4, chunk=16, sample_every=0)


@pytest.fixture
def run(tmp_path):
    return run_of(built("sd3", tmp_path / "pipeline"))


def gigabytes(needed):
    """The smallest card that so many bytes fit."""
    return needed / SHARE / 10**9 + 1e-9


def needs(run, **options):
    changed = run.with_options(retained_rows=0, **options)
    return estimate_cost(changed).total_bytes


def test_a_run_that_images_teach_is_fitted_by_bits_too(run):
    taught = replace(run, algorithm=SFT(), data=ShapesImages(count=8))
    ways = [with_way(taught, way) for way in WAYS]
    assert [way is None for way in ways] == [with_way(run, way) is None for way in WAYS]
    assert [way.model.quantize for way in ways if way] == [
        with_way(run, way).model.quantize for way in WAYS if with_way(run, way)
    ]
    assert not any(way.batches.offload for way in ways if way)


def test_bits_that_a_library_is_missing_for_are_named(run, monkeypatch):
    def missing(self):
        if self.quantize is not None:
            raise MissingDependencyError("quantize = nf4 needs bitsandbytes; pip install afterflow[quantize]")

    monkeypatch.setattr(type(run.model), "__post_init__", missing)
    with pytest.raises(ConfigError, match=r"or let frozen weights have fewer bits: .*afterflow\[quantize\]"):
        fit_run(run, 1e-6)


def test_what_fits_is_not_changed(run):
    fit = fit_run(run, 80)
    assert fit.run == run and not fit.changes and "nothing is changed" in fit.sentence(80)


def test_chunks_shrink_first_then_activations_are_computed_again(tmp_path):
    run = run_of(built("deep_sd3", tmp_path / "pipeline"))  # only blocks below each other save by it
    halves = {chunk: needs(run, chunk=chunk) for chunk in (16, 8, 4, 2, 1)}
    assert sorted(halves.values(), reverse=True) == list(halves.values())
    fit = fit_run(run, gigabytes(halves[8]))
    assert fit.changes == {"chunk": (16, 8)} and fit.bytes_needed == pytest.approx(halves[8], rel=1e-4)
    again = {chunk: needs(run, chunk=chunk, gradient_checkpointing=True) for chunk in (16, 8)}
    assert again[16] < halves[4]
    below = fit_run(run, gigabytes(0.99 * halves[4]))
    assert below.changes["gradient_checkpointing"] == (False, True)
    assert below.run.batches.chunk == 16 and below.bytes_needed == pytest.approx(again[16], rel=1e-4)


def test_counts_of_a_smaller_chunk_are_those_that_are_counted(run):
    counts = network_counts(run)
    for chunk in (8, 3, 1):
        smaller = run.with_options(chunk=chunk, retained_rows=0)
        assert needed_bytes(smaller, counts, 16) == pytest.approx(estimate_cost(smaller).total_bytes, rel=0.02)


def test_frozen_weights_in_fewer_bits_come_last(run, monkeypatch):
    monkeypatch.setattr("afterflow.experiment.memory_fit.WAYS", ({}, {"quantize": "int8"}, {"quantize": "nf4"}))
    plain = needs(run, chunk=1)
    fit = fit_run(run, gigabytes(0.99 * plain))
    assert fit.changes["model.quantize"] == (None, "int8")
    with pytest.raises(ConfigError, match=r"card needs [\d.]+ GB at least"):
        fit_run(replace(run, tune=Full()), gigabytes(plain))


def test_what_is_learnt_stays(run):
    small = fit_run(run, gigabytes(0.99 * needs(run, chunk=4))).run
    assert small != run
    lines = {}
    for name, each in (("large", run), ("small", small)):
        folder = execute(each.with_options(name=name, retained_rows=0), name).folder
        lines[name] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for large, fitted in zip(lines["large"], lines["small"], strict=True):
        assert fitted["reward"] == pytest.approx(large["reward"], rel=1e-4)
        assert fitted["grad_norm"] == pytest.approx(large["grad_norm"], rel=1e-3)
    untouched = ("batch", "iterations", "updates", "guidance_scale")
    assert all(getattr(small.batches, name) == getattr(run.batches, name) for name in untouched)
    assert (small.seed, small.algorithm, small.data, small.tune) == (run.seed, run.algorithm, run.data, run.tune)


def test_no_card_is_too_small_without_a_word(run):
    with pytest.raises(ConfigError, match=r"--fit 0.001: card needs .* GB at least, .* take a smaller model"):
        fit_run(run, 0.001)
    for bad in (0, -3, float("nan")):
        with pytest.raises(ConfigError, match="the memory of a card in GB"):
            fit_run(run, bad)


@pytest.mark.parametrize("words", [["--fit", "24"], ["--fit=24"]])
def test_the_command_says_what_it_chose(words, capsys):
    assert main(["train", "shapes_flow_grpo", "--plan", *words]) == 0
    assert "fit 24 GB: nothing is changed; counted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [
        (["train", "shapes_flow_grpo", "--fit", "large"], "--fit large: the memory of a card in GB"),
        (["train", "shapes_flow_grpo", "--fit"], "--fit : the memory of a card in GB"),
        (["train", "--resume", "runs/x", "--fit", "24"], "--fit chooses how a new run computes"),
        (["train", "--from", "--fit", "24"], "--from needs a run"),
        (["train", "shapes_generalist", "--fit", "24"], "is a chain of runs; train its stages one by one with it"),
    ],
)
def test_another_value_is_refused(words, said, capsys):
    assert main(words) != 0
    assert said in capsys.readouterr().err
