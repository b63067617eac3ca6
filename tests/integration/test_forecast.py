"""What --plan says before a weight is loaded is what happens afterwards."""

import json
from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from afterflow.algorithms.branch_grpo import BranchGRPO
from afterflow.algorithms.dance_grpo import DanceGRPO
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.pruning import Pruning
from afterflow.algorithms.sft import SFT
from afterflow.cli.main import main
from afterflow.data.images import ShapesImages
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment.config import Run
from afterflow.experiment.cost_estimate import count_rows, estimate_cost
from afterflow.experiment.execute import execute
from afterflow.experiment.network_counts import count_passes
from afterflow.models.adapters import Full, LoRA, attach
from afterflow.models.generate import encode_records
from tinies import FAMILIES, built

JPEG = {"jpeg_compressibility": 1.0}
ALGORITHMS = [
    FlowGRPO(JPEG, steps=4, group=4, window=2, beta=0.01),
    DanceGRPO(JPEG, steps=4, group=4),
    BranchGRPO(JPEG, steps=4, splits=(0, 2)),
    BranchGRPO(JPEG, steps=4, splits=(0, 2), prune=Pruning("parent_top1")),
]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run_of(config, algorithm):
    return Run(algorithm, ShapesPrompts(count=4), config, LoRA(rank=2, alpha=4), name="planned").with_options(
        iterations=1, batch=2, chunk=4, sample_every=0
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda each: type(each).__name__)
def test_rows_are_those_of_the_run(tmp_path, algorithm):
    run = run_of(built("sd3", tmp_path / "pipeline"), algorithm)
    line = json.loads((execute(run, "planned") / "metrics.jsonl").read_text().splitlines()[0])
    rows, images = count_rows(run), run.batches.batch * algorithm.group
    for stage in ("rollout", "update", "reference"):
        assert rows.get(stage, 0) == pytest.approx(images * line.get(f"nfe/{stage}", 0))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_autograd_keeps_and_flops_are_those_of_real_weights(tmp_path, name):
    config = built(name, tmp_path / "pipeline")
    planned = config.load("meta")
    attach(planned, LoRA(rank=2, alpha=4))
    kept, forward, backward = count_passes(planned, 3)
    model = config.load()
    attach(model, LoRA(rank=2, alpha=4))
    cond = encode_records(model, [{"prompt": "a"}])[torch.zeros(3, dtype=torch.long)]
    if name in ("qwen_image", "z_image"):  # of the longest prompt that is kept, which is what the plan takes
        missing = planned.text_shape[0] - cond.positive.sequence.shape[1]
        cond = replace(
            cond,
            positive=cond.positive._replace(
                sequence=torch.nn.functional.pad(cond.positive.sequence, (0, 0, 0, missing)), mask=None
            ),
            negative=cond.negative._replace(
                sequence=torch.nn.functional.pad(cond.negative.sequence, (0, 0, 0, missing)), mask=None
            ),
        )
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.module.parameters()}
    real = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            real[storage.data_ptr()] = storage.nbytes()
        return tensor

    field = lambda: model.velocity(model.module)(torch.zeros(3, *model.latent_shape), torch.ones(3), cond)
    with saved_tensors_hooks(keep, lambda saved: saved):
        v = field()
    assert kept == pytest.approx(sum(real.values()), rel=0.1)
    with sdpa_kernel(SDPBackend.MATH):  # the counter knows no attention of the CPU's own
        with FlopCounterMode(display=False) as flops:
            v = field()
        assert forward == flops.get_total_flops()
        with FlopCounterMode(display=False) as flops:
            v.sum().backward()
    # Fused attention computes its weights again.
    assert flops.get_total_flops() < backward < 1.5 * flops.get_total_flops()


@pytest.mark.parametrize("name", FAMILIES)
def test_checkpointing_keeps_less_and_learns_the_same(tmp_path, name):
    run = run_of(built(name, tmp_path / "pipeline"), ALGORITHMS[0])
    run = run.with_options(retained_rows=0)
    saving = run.with_options(gradient_checkpointing=True, name="saving")
    memory = [estimate_cost(each).memory["graphs until their backward pass"] for each in (run, saving)]
    assert memory[1] < 0.7 * memory[0]
    lines = [json.loads((execute(each, "x") / "metrics.jsonl").read_text().splitlines()[0]) for each in (run, saving)]
    assert lines[1]["ratio_max"] == 1.0
    assert lines[1]["grad_norm"] == pytest.approx(lines[0]["grad_norm"], rel=1e-5)


def test_checkpointing_computes_again_what_mixed_precision_computed(tmp_path):
    run = run_of(built("flux", tmp_path / "pipeline"), ALGORITHMS[0])
    options = {"gradient_checkpointing": True, "mixed_precision": "bf16", "retained_rows": 0}
    folder = execute(run.with_options(**options), "x").folder
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["ratio_max"] == 1.0


def test_no_weight_is_needed(tmp_path, capsys):
    config = built("flux", tmp_path / "pipeline")
    for file in (tmp_path / "pipeline").rglob("*.safetensors"):
        file.unlink()
    found = estimate_cost(run_of(config, ALGORITHMS[0]))
    full = estimate_cost(replace(run_of(config, ALGORITHMS[0]), tune=Full()))
    assert full.memory["gradients, Adam and EMA"] > 10 * found.memory["gradients, Adam and EMA"]
    assert full.memory["reference, teachers, averages"] > 0 == found.memory["reference, teachers, averages"]
    guided = estimate_cost(run_of(config, ALGORITHMS[0]).with_options(guidance_scale=4.0))
    assert guided.flops["forward only"] == pytest.approx(2 * found.flops["forward only"])


def test_what_images_teach_is_not_guided_while_it_learns(tmp_path):
    exploring = run_of(built("sd3", tmp_path / "pipeline"), ALGORITHMS[0])
    run = replace(exploring, algorithm=SFT(), data=ShapesImages(count=4))
    assert estimate_cost(run.with_options(guidance_scale=4.0)).flops == estimate_cost(run).flops


def test_a_stage_is_not_planned_before_what_it_is_made_from_is_there(tmp_path, capsys):
    assert main(["train", "tiny_sd3_pretrain", "--plan"]) == 0
    parts, run = capsys.readouterr().out.splitlines()
    assert parts == "tiny_sd3_parts: BuildParts, not counted" and not (tmp_path / "runs").exists()
    assert "not counted before the stages that it is made from are done (model 'runs/tiny_sd3_parts/model'" in run


def test_a_pipeline_of_another_family_takes_the_place_of_the_recipes(tmp_path, capsys):
    built("flux", tmp_path / "pipeline")
    assert (
        main(["train", "shapes_flow_grpo", "--plan", "--base", str(tmp_path / "pipeline"), "--model.size", "32"]) == 0
    )
    assert (
        main(["train", "shapes_flow_grpo", "--plan", "--base", str(tmp_path / "pipeline"), "--model.size", "31"]) == 2
    )
    assert "multiples of 4 pixels" in capsys.readouterr().err


def test_the_command_plans_and_trains_nothing(tmp_path, capsys):
    assert main(["train", "shapes_flow_grpo", "--plan", "--chunk", "8"]) == 0
    said = capsys.readouterr().out
    assert "graphs until their backward pass" in said and "PFLOP in 270 iterations" in said
    assert not (tmp_path / "runs").exists()
