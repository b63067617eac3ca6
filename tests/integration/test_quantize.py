"""A LoRA beside weights in 8 and 4 bits: near to the whole ones, smaller, trainable, refused where it cannot be."""

from dataclasses import replace

import pytest
import torch

from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.experiment.network_counts import tensor_bytes
from afterflow.experiment.setup import TrainingSetup
from afterflow.models import quantize
from afterflow.models.adapters import Full, LoRA
from afterflow.models.sd3 import SD3
from afterflow.sampling.conditioning import condition
from tinies import FAMILIES

pytest.importorskip("torchao")
pytestmark = pytest.mark.usefixtures("own_folder")
KINDS = ("int8", "nf4")


def velocity_of(model):
    torch.manual_seed(0)
    embedding = model.encode(["a red heart", "a sign", ""])
    cond = condition(embedding.rows(slice(-1)), embedding.rows(slice(-1, None)), [{"prompt": "a"}, {"prompt": "b"}])
    x = torch.randn(2, *model.latent_shape)
    with torch.no_grad():
        return model.velocity(model.module)(x, torch.tensor([0.9, 0.3]), cond).float()


@pytest.mark.parametrize("kind, error, share", [("int8", 0.02, 0.35), ("nf4", 0.25, 0.25)])
@pytest.mark.parametrize("name", FAMILIES)
def test_velocities_stay_near_and_weights_take_less(tinies, name, kind, error, share):
    whole, small = tinies[name].load(), replace(tinies[name], quantize=kind).load()
    expected, found = velocity_of(whole), velocity_of(small)
    assert 0 < (found - expected).norm() < error * expected.norm()
    before = sum(layer.weight.numel() * 4 for layer in quantize.quantizable(whole.module))
    saved = quantize.saved_bytes(whole.module, kind)
    assert (1 - share) * before < saved < before


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_plan_says_is_saved_is_what_the_tensors_hold(kind):
    whole, small = SD3("tiny").load(), SD3("tiny", quantize=kind).load()
    held = 0
    for layer in quantize.quantizable(small.module):
        names, _ = layer.weight.__tensor_flatten__()
        held += tensor_bytes(tensor for name in names if (tensor := getattr(layer.weight, name)) is not None)
    before = tensor_bytes(layer.weight for layer in quantize.quantizable(whole.module))
    assert before - held == pytest.approx(quantize.saved_bytes(whole.module, kind), rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_lora_beside_them_learns_and_comes_back(tinies, name, kind):
    run = Run(
        FlowGRPO({"jpeg_compressibility": 1.0}, steps=3, group=2, beta=0.01),
        ShapesPrompts(count=5),
        replace(tinies[name], quantize=kind),
        LoRA(rank=2, alpha=4),
    ).with_options(iterations=2, batch=2, chunk=4, learning_rate=1e-2, ema_decay=None, sample_every=0)
    folder = execute(run, "quantized").folder
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
    again = run.model.load()
    without = velocity_of(again)
    again.load_lora(folder / "lora")
    assert not torch.equal(velocity_of(again), without)
    setup = TrainingSetup.build(
        replace(run, name="again", tune=LoRA(rank=2, alpha=4, start=str(folder / "lora"))), resume=False
    )
    assert torch.equal(velocity_of(setup.model), velocity_of(again))


def test_what_cannot_be_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="Full trains them; take a LoRA"):
        Run(FlowGRPO({"shapes_strict": 1.0}), ShapesPrompts(), SD3("tiny", quantize="nf4"), Full())
    monkeypatch.setattr("afterflow.system.optional_dependencies.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"model\.quantize = int8 needs torchao; pip install 'afterflow\[quantize\]'"):
        SD3("tiny", quantize="int8")
    with pytest.raises(ValueError, match=r"optimizer = adamw_8bit needs bitsandbytes; pip install 'afterflow\[qu"):
        Run(FlowGRPO({"shapes_strict": 1.0}), ShapesPrompts(), SD3("tiny")).with_options(optimizer="adamw_8bit")
