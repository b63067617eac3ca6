"""Residual streams in fp32 make velocities of mixed precision more exact, and change nothing without it."""

import pytest
import torch

from afterflow.experiment.config import Run
from afterflow.experiment.setup import fp32_streams
from afterflow.models.fp32_streams import keep_streams_in_fp32
from afterflow.recipes.shapes import shapes_flow_grpo
from afterflow.sampling.conditioning import Embedding, condition
from tinies import FAMILIES


def velocities(model, autocast):
    """Velocities (4, ...) at random states."""
    generator = torch.Generator().manual_seed(0)
    length, width, pooled = model.text_shape
    draw = lambda *shape: torch.randn(shape, generator=generator)
    texts = lambda n: Embedding(draw(n, length, width), None if pooled is None else draw(n, pooled))
    cond = condition(texts(4), texts(1), [{"prompt": str(i)} for i in range(4)])
    x, t = draw(4, *model.latent_shape), torch.tensor([0.9, 0.7, 0.4, 0.1])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return model.velocity(model.module)(x, t, cond)


@pytest.mark.parametrize("name", FAMILIES)
def test_streams_in_fp32_are_nearer_to_fp32(tinies, name):
    model = tinies[name].load()
    exact, half = velocities(model, False), velocities(model, True)
    assert half.dtype == torch.bfloat16
    keep_streams_in_fp32(model.module, model.streams, model.end_layers)
    made = velocities(model, True)
    assert made.dtype == torch.float32
    error = lambda v: (v.float() - exact).norm() / exact.norm()
    assert 0 < error(made) < 0.8 * error(half)
    assert torch.equal(velocities(model, False), exact)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"mixed_precision": "bf16", "updates": 2}, True),
        ({"mixed_precision": "bf16", "updates": 1}, False),
        ({"mixed_precision": "bf16", "updates": 1, "fp32_streams": True}, True),
        ({"mixed_precision": "bf16", "updates": 2, "fp32_streams": False}, False),
        ({"mixed_precision": "no", "updates": 2, "fp32_streams": True}, False),
    ],
)
def test_several_updates_in_mixed_precision_keep_them(options, expected):
    run: Run = shapes_flow_grpo().with_options(**options)
    assert fp32_streams(run) is expected
