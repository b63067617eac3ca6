"""afterflow doctor passes what is sound, and fails what is broken."""

from dataclasses import replace

import pytest
import torch

from afterflow.algorithms.branch_grpo import BranchGRPO
from afterflow.algorithms.ddpo import DDPO
from afterflow.algorithms.dpo import DPO
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.sft import SFT
from afterflow.algorithms.v_grpo import VGRPO
from afterflow.cli.main import main
from afterflow.data.images import ShapesImages
from afterflow.data.pairs import SampledPairs
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment.config import Run
from afterflow.experiment.doctor import examine
from afterflow.models import pipeline
from afterflow.models.adapters import LoRA
from afterflow.models.lora.factors import LoRAFactors
from afterflow.models.lora.trained import trained_factors
from afterflow.models.sd3 import SD3Model
from afterflow.rewards.registry import REWARDS
from afterflow.sampling.schedules import LinearShift
from tinies import FAMILIES, built

JPEG = {"jpeg_compressibility": 1.0}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(tmp_path):
    return Run(
        FlowGRPO(JPEG, steps=4, group=4, eta=0.5, beta=0.01),
        ShapesPrompts(count=4),
        built("sd3", tmp_path / "pipeline"),
        LoRA(rank=2, alpha=4),
    ).with_options(chunk=4)


def failed(run):
    return [each.check for each in examine(run) if each.passed is False]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_sound_set_up_passes(run, name, tmp_path):
    config = built(name, tmp_path / name)
    found = list(examine(run.with_options(model=config, guidance_scale=3.0)))
    assert [each.check for each in found if each.passed is False] == []
    assert sum(each.passed is True for each in found) == 8


def test_it_computes_with_the_threads_of_the_run_and_gives_them_back(run, noted_threads):
    assert [each.check for each in examine(run.with_options(threads=3)) if each.passed is False] == []
    assert noted_threads == [8, 3, 8]


@pytest.mark.parametrize("algorithm", [SFT(), BranchGRPO(JPEG, steps=4, splits=(0, 1), eta=0.5)])
def test_other_methods_are_asked_what_concerns_them(run, algorithm):
    data = ShapesImages(count=4) if isinstance(algorithm, SFT) else run.data
    checks = [each.check for each in examine(replace(run, algorithm=algorithm, data=data))]
    assert any("ratio of 1" in check for check in checks) == isinstance(algorithm, BranchGRPO)
    assert not any("KL" in check for check in checks)


def test_a_method_of_pairs_is_tried_on_two_images_against_its_reference(run):
    data = SampledPairs(run.data, JPEG, per_prompt=2, steps=2)
    found = list(examine(replace(run, algorithm=DPO(), data=data)))
    assert [each.check for each in found if each.passed is False] == []
    assert {"gradients arrive at what is trained", "the KL to the reference pulls the policy back"} <= {
        each.check for each in found
    }


@pytest.mark.parametrize("history", [0, 8])
def test_a_method_with_one_image_of_a_prompt_is_tried_on_two_prompts(run, history):
    algorithm = DDPO(JPEG, steps=4, history=history, min_count=4)
    found = list(examine(replace(run, algorithm=algorithm).with_options(batch=2)))
    assert [each.check for each in found if each.passed is False] == []
    assert "gradients arrive at what is trained" in {each.check for each in found}


@pytest.mark.parametrize(
    "options, passed", [({"divergence": 1e-3}, True), ({"divergence": 1e-12, "mixed_precision": "bf16"}, False)]
)
def test_a_mask_that_rounding_reaches_is_found(run, options, passed):
    options = dict(options)
    run = replace(
        run,
        algorithm=replace(run.algorithm, divergence=options.pop("divergence")),
        batches=replace(run.batches, updates=2),
    )
    (noise,) = [each for each in examine(run.with_options(fp32_streams=False, **options)) if "rounding" in each.check]
    assert noise.passed is passed and f"divergence {run.algorithm.divergence:.0e}: rounding would mask" in noise.detail


@pytest.mark.parametrize(
    "options, passed",
    [
        ({"updates": 2}, True),
        ({"updates": 2, "mixed_precision": "bf16", "fp32_streams": False, "clip": 3e-6}, False),
        ({"updates": 2, "mixed_precision": "bf16", "clip": 3e-6}, True),  # streams are fp32
        ({"updates": 1, "mixed_precision": "bf16", "clip": 3e-6}, None),  # ratios are 1
        ({"updates": 2, "mixed_precision": "bf16", "clip": 0.5}, True),
    ],
)
def test_a_clip_that_rounding_reaches_is_found(run, options, passed):
    """It is that of a second update alone."""
    options = dict(options)
    run = replace(run, algorithm=replace(run.algorithm, clip=options.pop("clip", 1e-4)))
    (noise,) = [each for each in examine(run.with_options(**options)) if "rounding" in each.check]
    assert noise.passed is passed and f"clip {run.algorithm.clip:.0e}" in noise.detail
    share = int(noise.detail.split("would clip ")[1].split("%")[0])
    assert share > 5 if options.get("mixed_precision") and passed in (False, None) else share < 5


def test_another_grid_than_the_pipelines_is_found(run, monkeypatch):
    inside = SD3Model.__init__

    def wrong(self, *args):
        inside(self, *args)
        self.schedule = LinearShift(1.0)

    monkeypatch.setattr(SD3Model, "__init__", wrong)
    assert failed(run) == ["our ODE draws what the stock pipeline draws"]


def test_dropout_between_rollout_and_update_is_found(run, monkeypatch):
    velocity = SD3Model.velocity

    def noisy(self, module):
        v = velocity(self, module)
        return lambda x, t, cond: torch.nn.functional.dropout(v(x, t, cond), 0.01)

    monkeypatch.setattr(SD3Model, "velocity", noisy)
    assert "the policy replays its own rollout at a ratio of 1" in failed(run)


def without_alpha(module):
    """The factors as they are trained, which is what a file would hold whose scale was forgotten."""
    layers, alpha = trained_factors(module)
    rank = len(next(iter(layers.values())).A)
    return {name: LoRAFactors(f.A, f.B * (rank / alpha)) for name, f in layers.items()}, alpha


def test_a_lora_without_its_alpha_is_found(run, monkeypatch):
    monkeypatch.setattr(pipeline, "trained_factors", without_alpha)
    assert failed(run) == ["a saved LoRA is the same when it is loaded"]


def test_noise_that_does_not_keep_the_marginals_is_found(run):
    assert failed(replace(run, algorithm=replace(run.algorithm, eta=9.0))) == [
        "noise in the steps leaves the latents as spread out as they were"
    ]


@pytest.mark.parametrize("eta, checked", [(0.0, False), (0.5, True)])
def test_the_spread_is_checked_where_steps_have_noise(run, eta, checked):
    """The ODE of few steps by another solver spreads latents otherwise, which is nobody's fault."""
    algorithm = VGRPO(JPEG, steps=4, group=4, eta=eta, solver="euler" if eta else "dpm")
    checks = [each.check for each in examine(replace(run, algorithm=algorithm))]
    assert any(check.startswith("noise in the steps") for check in checks) == checked


def test_a_reward_that_changes_its_mind_is_found(run, monkeypatch):
    random = lambda images, records: torch.rand(len(images)).numpy()
    monkeypatch.setitem(REWARDS, "jpeg_compressibility", random)
    assert failed(run) == ["reward jpeg_compressibility"]


def test_the_command_says_what_failed_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "trained_factors", without_alpha)
    code = main(["doctor", "shapes_flow_grpo", "--chunk", "8", "--algorithm.group", "2", "--threads", "1"])
    captured = capsys.readouterr()
    assert code == 2 and "1 of 14 checks failed: a saved LoRA" in captured.err
    assert "gradients arrive" in captured.out and not (tmp_path / "runs").exists()
