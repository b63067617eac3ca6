"""Averages of the policy and references in whole runs: checkpoints, all weights, guidance, and what is counted."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from afterflow.algorithms.base import Reference
from afterflow.algorithms.crd import CRD
from afterflow.algorithms.diffusion_nft import DiffusionNFT
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.lag import Lag
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment.config import Run
from afterflow.experiment.cost_estimate import estimate_cost
from afterflow.experiment.execute import execute
from afterflow.models.adapters import Full, LoRA
from afterflow.models.sd3 import SD3
from afterflow.system.errors import CheckpointError

JPEG = {"jpeg_compressibility": 1.0}
NFT = DiffusionNFT(JPEG, steps=4, group=4, lag=Lag(start=0.5))


@pytest.fixture
def run(pipeline, own_folder):
    model, tune = SD3(pipeline, max_sequence_length=0), LoRA(rank=4, alpha=8)
    run = Run(NFT, ShapesPrompts(count=10), model, tune, name="run")
    options = dict(iterations=3, batch=2, chunk=8, learning_rate=1e-2, sample_every=0, save_every=1, keep_checkpoints=9)
    return run.with_options(**options)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("tune", [LoRA(rank=4, alpha=8), Full()], ids=["lora", "full"])
def test_a_resumed_run_has_the_old_policy_it_had(run, tune):
    algorithm = replace(CRD(JPEG, steps=4, group=4, kl=0.01), drawing_lag=Lag(start=0.3))
    whole_run = run.with_options(algorithm=algorithm, tune=tune, learning_rate=1e-3, updates=2)
    whole = execute(replace(whole_run, name="whole"), "x").folder
    execute(whole_run.with_options(name="parts", iterations=2), "x")
    parts = execute(replace(whole_run, name="parts"), "x", resume=True).folder
    for name in ("weights", "lagged_old", "lagged_drawing", "ema"):
        ours, theirs = (load_file(folder / f"checkpoints/step_000002/{name}.safetensors") for folder in (parts, whole))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
    state = json.loads((parts / "checkpoints/step_000002/state.json").read_text())
    assert state["lagged"] == {"old": 6, "drawing": 6}
    # The old policy is between where training began and where it is.
    first, last = (load_file(whole / f"checkpoints/step_00000{n}/weights.safetensors") for n in (0, 2))
    old = load_file(whole / "checkpoints/step_000002/lagged_old.safetensors")
    far = lambda a, b: sum((a[key] - b[key]).norm() for key in a).item()
    assert 0 < far(old, last) < far(first, last) * 1.5
    assert not any(
        "old" in key or "drawing" in key for key in load_file(whole / "checkpoints/step_000000/weights.safetensors")
    )
    result = whole / ("lora/pytorch_lora_weights.safetensors" if isinstance(tune, LoRA) else "model")
    assert result.exists()
    if isinstance(tune, LoRA):  # the policy alone is exported
        assert len(load_file(result)) == len(last)


def test_a_checkpoint_without_the_old_policy_or_with_a_wrong_count_is_refused(run):
    folder = execute(run.with_options(iterations=1), "x").folder
    other = run.with_options(algorithm=replace(NFT, lag=Lag(highest=0.0)), name="other", iterations=1)
    theirs = execute(other, "x").folder / "checkpoints/step_000000"
    ours = folder / "checkpoints/step_000000"
    shutil.rmtree(ours)
    shutil.copytree(theirs, ours)
    with pytest.raises(CheckpointError, match="holds no old policy; resume with the recipe that wrote it"):
        execute(run, "x", resume=True)


def first_kl(run, reference):
    algorithm = FlowGRPO(JPEG, steps=4, group=4, beta=1.0, reference=reference)
    name = f"{reference.model}_{reference.guidance_scale}"
    return metrics(execute(run.with_options(algorithm=algorithm, name=name, iterations=2), "x").folder)


def test_a_kl_is_to_what_was_asked_for(run):
    start = execute(run.with_options(algorithm=FlowGRPO(JPEG, steps=4, group=4, beta=0.0)), "x").folder
    later = run.with_options(tune=LoRA(rank=4, alpha=8, start=str(start)), retained_rows=0)
    lines = {name: first_kl(later, Reference(name)) for name in ("start", "base", "average")}
    assert lines["start"][0]["kl"] == lines["average"][0]["kl"] == 0 < lines["base"][0]["kl"]
    assert 0 <= lines["average"][1]["kl"] < lines["start"][1]["kl"]  # it follows
    guided = first_kl(later, Reference("start", 4.5))
    assert guided[0]["kl"] > 0


def test_finished_images_are_drawn_under_guidance_and_learnt_without(run):
    guided = run.with_options(guidance_scale=3.0, name="guided", iterations=1)
    rows, plain = (estimate_cost(each) for each in (guided, run))
    assert rows.rows["rollout"] == 2 * plain.rows["rollout"] and rows.rows["update"] == plain.rows["update"]
    assert rows.flops["forward and backward"] == plain.flops["forward and backward"]
    # All rows of the network: 8 images in 4 steps, and at 3 times with the old policy and the reference beside them.
    assert plain.rows == {"rollout": 32, "update": 24, "reference": 24, "old policy": 24}
    for scale, count in ((None, 24), (1.0, 24), (4.5, 48)):
        held = replace(NFT, reference=Reference("start", scale))
        assert estimate_cost(guided.with_options(algorithm=held)).rows["reference"] == count
    plain_kl = FlowGRPO(JPEG, steps=4, group=4, beta=1.0, reference=Reference("start", 1.0))
    of_grpo = estimate_cost(guided.with_options(algorithm=plain_kl)).rows
    assert of_grpo["update"] == 2 * of_grpo["reference"]  # the policy alone is guided
    lines = metrics(execute(guided, "x").folder)
    assert lines[0]["kl"] == 0 and lines[0]["old_distance"] == 0  # v_θ is unguided, as v_old and v_ref are


def test_a_copy_of_all_weights_is_counted(run):
    memory = lambda **options: estimate_cost(run.with_options(**options)).memory["reference, teachers, averages"]
    network = memory(tune=Full(), algorithm=replace(NFT, kl=0.0))  # the old policy alone
    assert network > 0
    assert memory(tune=Full()) == 2 * network
    assert memory(tune=Full(), algorithm=replace(NFT, kl=0.0, lag=Lag(highest=0.0))) == 0
    assert memory(tune=Full(), algorithm=replace(NFT, reference=Reference("average"))) == 2 * network
    assert 0 < memory(algorithm=NFT) < network  # another adapter
