"""Residual streams in fp32 make mixed precision more exact, and a CPU that is slow in bf16 says so."""

import pytest
import torch

from afterflow.experiment.config import Run
from afterflow.experiment.setup import fp32_streams, start_processes
from afterflow.models.base import warn_of_slow_bf16
from afterflow.models.fp32_streams import keep_streams_in_fp32
from afterflow.models.sd3 import SD3
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


@pytest.mark.parametrize("fast", [True, False])
def test_a_cpu_without_instructions_for_bf16_is_told_that_bf16_is_slow(pipeline, monkeypatch, caplog, fast):
    monkeypatch.setattr("afterflow.models.base.has_fast_bf16", lambda: fast)
    monkeypatch.setattr("afterflow.system.once._SAID", set())
    run = shapes_flow_grpo().with_options(model=SD3(pipeline, dtype="bfloat16"), mixed_precision="bf16")
    start_processes(run, [])
    run.model.load()
    said = [record.getMessage() for record in caplog.records if "no instructions for bf16" in record.getMessage()]
    assert [text.partition(":")[0] for text in said] == ([] if fast else ["mixed_precision = bf16", "dtype = bfloat16"])


def test_other_precisions_and_accelerators_are_not_warned_of(pipeline, monkeypatch, caplog):
    monkeypatch.setattr("afterflow.models.base.has_fast_bf16", lambda: False)
    start_processes(shapes_flow_grpo().with_options(mixed_precision="no"), [])
    for dtype in ("float32", "float16"):
        SD3(pipeline, dtype=dtype).load()
    warn_of_slow_bf16(torch.device("cuda"), "dtype = bfloat16", "float32")
    assert not any("no instructions for bf16" in record.getMessage() for record in caplog.records)
