"""Lean LoRA layers compute what peft's compute, and adapters are switched without walking the network."""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.functional import set_adapter
from peft.tuners.lora.layer import Linear
from torch import nn

from afterflow.models.lora.lean import LeanLinear, adapters_switched, make_lean


def network(alpha=8.0, rank=4, dtype=torch.float32, dropout=0.0, names=("default",)):
    """Two linear layers with adapters whose weights are not zero."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(12, 16), nn.SiLU(), nn.Linear(16, 12, bias=False)).to(dtype)
    layers.requires_grad_(False)
    for name in names:
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0", "2"], lora_dropout=dropout)
        inject_adapter_in_model(config, layers, adapter_name=name)
    set_adapter(layers, names[0])
    for name, parameter in layers.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape)
    return layers


def lean(layers):
    made = copy.deepcopy(layers)
    make_lean(made)
    assert [type(layer) for layer in made.modules() if isinstance(layer, Linear)] == [LeanLinear] * 2
    return made


def outputs(layers, dtype=torch.float32, autocast=False):
    """The output, and the gradients of the trained weights."""
    x = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(1)).to(dtype)
    layers.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        made = layers(x)
    made.float().square().sum().backward()
    return [made, *(p.grad for p in layers.parameters() if p.grad is not None)]


@pytest.mark.parametrize("dtype, autocast", [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)])
@pytest.mark.parametrize("alpha, exact", [(8.0, True), (4.0, True), (2.0, True), (5.0, False)])
def test_lean_layers_compute_what_pefts_compute(dtype, autocast, alpha, exact):
    theirs = network(alpha, dtype=dtype)
    for made, expected in zip(outputs(lean(theirs), dtype, autocast), outputs(theirs, dtype, autocast), strict=True):
        assert made.dtype == expected.dtype and expected.abs().sum() > 0
        if exact:
            assert torch.equal(made, expected)
        else:
            error = (made - expected).float().norm() / expected.float().norm()
            assert error < (1e-6 if dtype == torch.float32 and not autocast else 1e-2)


@pytest.mark.parametrize("change", ["dropout", "two adapters", "merged", "disabled"])
def test_what_peft_has_beyond_is_left_to_peft(change):
    theirs = network(dropout=0.5 if change == "dropout" else 0.0, names=("default", "other"))
    ours = lean(theirs)
    for layers in (theirs, ours):
        for layer in (module for module in layers.modules() if isinstance(module, Linear)):
            if change == "two adapters":
                layer.set_adapter(["default", "other"])
            elif change == "merged":
                layer.merge()
            elif change == "disabled":
                layer.enable_adapters(False)
    x = torch.randn(4, 12)
    torch.manual_seed(0)
    expected = theirs(x)
    torch.manual_seed(0)
    assert torch.equal(ours(x), expected)


def test_names_and_tensors_stay_pefts():
    theirs = network()
    ours = lean(theirs)
    assert {name: value.tolist() for name, value in ours.state_dict().items()} == {
        name: value.tolist() for name, value in theirs.state_dict().items()
    }
    assert len(list(ours.named_modules())) == len(list(theirs.named_modules()))


def test_a_quantised_or_another_base_layer_keeps_pefts_forward():
    class Other(nn.Linear):
        """A linear layer that computes otherwise."""

    layers = network()
    layers[0].base_layer.__class__ = Other
    make_lean(layers)
    assert type(layers[0]) is Linear and type(layers[2]) is LeanLinear


def test_switching_gives_the_base_or_another_adapter_and_the_trained_one_again():
    layers = lean(network(names=("default", "other")))
    x = torch.randn(4, 12)
    trained = layers(x)
    alone = {}
    for name in ("default", "other"):
        set_adapter(layers, name)
        alone[name] = layers(x).detach()
    set_adapter(layers, "default")
    base, other = adapters_switched(layers, None), adapters_switched(layers, "other")
    with base():
        plain = layers(x)
        assert not plain.requires_grad
    with other():
        assert torch.equal(layers(x), alone["other"])
        with base():
            assert torch.equal(layers(x), plain)
        assert torch.equal(layers(x), alone["other"])
    expected = layers[2].base_layer(nn.functional.silu(layers[0].base_layer(x)))
    assert torch.equal(plain, expected) and torch.equal(layers(x), alone["default"])
    # A graph made before the switch is still whole after it.
    trained.sum().backward()
    gradients = {name: p.grad for name, p in layers.named_parameters() if p.grad is not None}
    assert gradients and all("default" in name for name in gradients)


def test_the_trained_adapter_is_back_after_a_failure():
    layers = lean(network())
    x = torch.randn(4, 12)
    expected = layers(x)
    with pytest.raises(ZeroDivisionError), adapters_switched(layers, None)():
        raise ZeroDivisionError
    made = layers(x)
    assert torch.equal(made, expected) and made.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_are_computed_on_a_device_without_memory(dtype):
    layers = lean(network(dtype=dtype)).to("meta")
    made = layers(torch.zeros(3, 5, 12, device="meta", dtype=dtype))
    assert made.shape == (3, 5, 12) and made.dtype == dtype
