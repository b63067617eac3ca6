"""LoRAs of other programs: what diffusers' own converters make of our export, and what we make of theirs."""

import json

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_kohya_flux_lora_to_diffusers,
    _convert_musubi_wan_lora_to_diffusers,
    _convert_non_diffusers_qwen_lora_to_diffusers,
)
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file

from afterflow.cli.main import main
from afterflow.models.adapters import LoRA, attach
from afterflow.models.lora.files import read_lora
from afterflow.models.lora.kohya import BLOCKS, original_layer, to_kohya
from tinies import FAMILIES, built

THEIRS = {
    "flux": _convert_kohya_flux_lora_to_diffusers,
    "wan": _convert_musubi_wan_lora_to_diffusers,
    "qwen_image": _convert_non_diffusers_qwen_lora_to_diffusers,
}
# What a trainer of another house would adapt besides ours.
ALL = {
    "sd3": ("attn.to_q", "attn.to_v", "attn.add_k_proj", "attn.to_add_out", "ff.net.0.proj"),
    "flux": ("to_q", "to_k", "to_v", "proj_mlp", "0.proj_out", "add_q_proj", "ff_context.net.2", "norm1.linear"),
    "qwen_image": ("to_q", "to_out.0", "add_q_proj", "to_add_out", "img_mlp.net.0.proj", "txt_mlp.net.2"),
    "wan": ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"),
}


@pytest.fixture(params=FAMILIES)
def adapted(request, tmp_path):
    """A model with a random LoRA of rank 4 and alpha 8, saved as diffusers has it."""
    config = built(request.param, tmp_path / "pipeline")
    model, draws = config.load(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in attach(model, LoRA(rank=4, alpha=8, targets=ALL[request.param])).values():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
    model.save_lora(tmp_path / "lora")
    return request.param, config, model


def deltas(tensors):
    """Layer → B A of a dictionary in diffusers' format whose alpha is its rank."""
    layers = [key.split(".lora_A")[0] for key in tensors if ".lora_A" in key]
    return {
        layer.removeprefix("transformer."): tensors[f"{layer}.lora_B.weight"] @ tensors[f"{layer}.lora_A.weight"]
        for layer in layers
    }


def test_diffusers_reads_our_export_as_the_same_lora(adapted, tmp_path):
    name, config, _ = adapted
    lora = read_lora(tmp_path / "lora")
    family = type(config).__name__
    tensors = to_kohya(lora.layers, family)
    assert all(key.startswith("lora_unet_") for key in tensors)
    # Their converter knows the fused layer of FLUX's single blocks in the released width alone.
    tensors = {key: value for key, value in tensors.items() if "linear1" not in key}
    original = {layer: original_layer(layer, family).name for layer in lora.layers}
    ours = {layer: factors for layer, factors in lora.layers.items() if "linear1" not in original[layer]}
    if name in THEIRS:
        found = deltas(THEIRS[name](dict(tensors)))
        present = {layer: delta for layer, delta in found.items() if delta.any()}
        assert present.keys() == ours.keys()
        for layer, factors in ours.items():
            torch.testing.assert_close(present[layer], factors.delta)


def test_no_order_of_a_set_is_in_the_file(adapted, tmp_path):
    with safe_open(tmp_path / "lora" / "pytorch_lora_weights.safetensors", "pt") as file:
        told = json.loads(file.metadata()["lora_adapter_metadata"])
    assert told["transformer.target_modules"] == sorted(told["transformer.target_modules"])
    assert len(told["transformer.target_modules"]) > 3


def test_what_we_export_comes_back_to_the_last_bit(adapted, tmp_path, capsys):
    _, config, _ = adapted
    family, out = type(config).__name__, tmp_path / "comfy" / "mine.safetensors"
    assert main(["export", str(tmp_path / "lora"), "--family", family, "--out", str(out)]) == 0
    assert "rank 4" in capsys.readouterr().out
    before, after = read_lora(tmp_path / "lora"), read_lora(out, family)
    assert after.layers.keys() == before.layers.keys() and after.rank == 4
    for layer, factors in before.layers.items():
        assert torch.equal(after.layers[layer].A, factors.A) and torch.equal(after.layers[layer].B, factors.B)


def test_a_lora_of_another_house_acts_as_it_did_there(adapted, tmp_path):
    """kohya's format, ComfyUI's prefix, and peft's own folder: what is added to each weight is the same."""
    _, config, model = adapted
    family, before = type(config).__name__, read_lora(tmp_path / "lora")
    kohya = to_kohya(before.layers, family)
    save_file(kohya, tmp_path / "kohya.safetensors")
    # The same strength told by alpha instead of by the weights.
    halved = {
        key: value / 2 if "lora_up" in key else 2 * value if key.endswith("alpha") else value
        for key, value in kohya.items()
    }
    save_file(halved, tmp_path / "halved.safetensors")
    (tmp_path / "peft").mkdir()
    own = {
        f"base_model.model.{key}": value.contiguous() for key, value in get_peft_model_state_dict(model.module).items()
    }
    save_file(own, tmp_path / "peft" / "adapter_model.safetensors")
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    for source in ("kohya.safetensors", "halved.safetensors", "peft"):
        again = config.load()
        again.load_lora(tmp_path / source)
        for layer, factors in before.layers.items():
            added = again.module.get_submodule(layer).get_delta_weight("default")
            torch.testing.assert_close(added, factors.delta, atol=1e-4, rtol=1e-4)
        adapters = {n for n, m in again.module.named_modules() if hasattr(m, "lora_A")}
        assert adapters == before.layers.keys()


def test_dotted_names_of_comfyui_are_read_too(tmp_path):
    A, B = torch.randn(2, 24), torch.randn(24, 2)
    key = "diffusion_model.blocks.0.self_attn.q"
    save_file({f"{key}.lora_A.weight": A, f"{key}.lora_B.weight": B}, tmp_path / "dotted.safetensors")
    assert torch.equal(read_lora(tmp_path / "dotted.safetensors", "Wan").layers["blocks.0.attn1.to_q"].delta, B @ A)


def test_every_layer_of_the_tables_has_a_key_of_its_own():
    for family, blocks in BLOCKS.items():
        for stem, (_, table) in blocks.items():
            places = [original_layer(f"{stem}.7.{layer}", family) for layer in table or ()]
            assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    "tensors, family, said",
    [
        (
            {"lora_unet_blocks_0_ffn_0.diff_b": torch.ones(1)},
            "Wan",
            r"more than B A \(lora_unet_blocks_0_ffn_0.diff_b\)",
        ),
        ({"lora_unet_blocks_0_ffn_0.dora_scale": torch.ones(1)}, "Wan", "more than B A"),
        (
            {"lora_unet_x.alpha": torch.ones(1), "lora_te1_x.lora_down.weight": torch.ones(1, 1)},
            "Flux",
            "text encoders",
        ),
        ({"lora_unet_blocks_0_odd.lora_down.weight": torch.ones(1, 1)}, "Wan", "only one of its two factors"),
        (
            {f"lora_unet_blocks_0_odd.lora_{n}.weight": torch.ones(1, 1) for n in ("down", "up")},
            "Wan",
            "no layer of Wan",
        ),
        ({f"lora_unet_x.lora_{n}.weight": torch.ones(1, 1) for n in ("down", "up")}, None, "kohya's format"),
        ({"base_model.model.x.lora_A.weight": torch.ones(1, 1)}, None, "adapter_config.json is not beside it"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, tensors, family, said):
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=said):
        read_lora(tmp_path / "odd.safetensors", family)


def test_a_layer_without_a_name_there_is_not_exported_in_silence(tmp_path, capsys):
    key = "transformer.time_text_embed.timestep_embedder.linear_1"
    save_file({f"{key}.lora_{n}.weight": torch.ones(1, 1) for n in "AB"}, tmp_path / "odd.safetensors")
    assert main(["export", str(tmp_path / "odd.safetensors"), "--family", "Flux"]) == 2
    assert "has no place in Flux's original code" in capsys.readouterr().err


def test_the_family_must_be_known_to_export(tmp_path, capsys):
    save_file({f"transformer.a.lora_{n}.weight": torch.ones(1, 1) for n in "AB"}, tmp_path / "odd.safetensors")
    assert main(["export", str(tmp_path / "odd.safetensors")]) == 2
    assert "add --family" in capsys.readouterr().err
