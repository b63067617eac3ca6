"""LoRAs of other programs: what ComfyUI, kohya's trainers and diffusers make of our files, and we of theirs."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_kohya_flux2_lora_to_diffusers,
    _convert_kohya_flux_lora_to_diffusers,
    _convert_musubi_wan_lora_to_diffusers,
    _convert_non_diffusers_qwen_lora_to_diffusers,
    _convert_non_diffusers_z_image_lora_to_diffusers,
)
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from afterflow.cli.main import main
from afterflow.models.adapters import LoRA, attach, frozen
from afterflow.models.lora.factors import LoRAFactors
from afterflow.models.lora.files import lora_file, lora_state_dict, read_lora, write_lora
from afterflow.models.lora.kohya import to_kohya
from afterflow.models.lora.layer_names import BLOCKS, diffusers_layers, original_layer, original_layers
from afterflow.models.lora.merge import LoRAMerge
from afterflow.models.pipeline import Model, Pretrained
from tinies import FAMILIES as ALL_FAMILIES

FAMILIES = [name for name in ALL_FAMILIES if name != "wan_pair"]  # whose LoRA is two files: test_wan_pair.py
DIFFUSERS, COMFYUI = "pytorch_lora_weights.safetensors", "comfyui.safetensors"
THEIRS = {
    "flux": _convert_kohya_flux_lora_to_diffusers,
    "wan": _convert_musubi_wan_lora_to_diffusers,
    "qwen_image": _convert_non_diffusers_qwen_lora_to_diffusers,
    "flux2_klein": _convert_kohya_flux2_lora_to_diffusers,
    "z_image": _convert_non_diffusers_z_image_lora_to_diffusers,
}
# What a trainer of another house would adapt besides ours.
ALL = {
    "sd3": ("attn.to_q", "attn.to_v", "attn.add_k_proj", "attn.to_add_out", "ff.net.0.proj", "norm1_context.linear"),
    "flux": ("to_q", "to_k", "to_v", "proj_mlp", "0.proj_out", "add_q_proj", "ff_context.net.2", "norm1.linear"),
    "qwen_image": ("to_q", "to_out.0", "add_q_proj", "to_add_out", "img_mlp.net.0.proj", "txt_mlp.net.2", "img_mod.1"),
    "wan": ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"),
    "flux2_klein": ("to_q", "to_k", "to_v", "to_qkv_mlp_proj", "0.attn.to_add_out", "add_q_proj", "linear_in"),
    "z_image": ("to_q", "to_k", "to_v", "to_out.0", "feed_forward.w2", "layers.0.adaLN_modulation.0"),
}


def randomised(config, tune):
    """The model with random adapters."""
    model, draws = config.load(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in attach(model, tune).values():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
    return model


def trained_deltas(model, name="default"):
    """Layer → what the adapter adds to its weight, by peft itself."""
    layers = {layer: m for layer, m in model.module.named_modules() if hasattr(m, "lora_A") and name in m.lora_A}
    return {layer: m.get_delta_weight(name).detach() for layer, m in layers.items()}


def assert_equal_deltas(found, expected):
    assert found.keys() == expected.keys()
    for layer, delta in expected.items():
        assert (found[layer] - delta).abs().max() <= 1e-6 * delta.abs().max(), layer


class Adapted(NamedTuple):
    """A model with a random LoRA of rank 4 and alpha 8, and the folder that it is saved in."""

    name: str
    family: str
    config: Pretrained
    model: Model
    folder: Path


@pytest.fixture(params=FAMILIES, scope="module")
def adapted(request, tinies, tmp_path_factory):
    """Of every family; not to be changed."""
    config, folder = tinies[request.param], tmp_path_factory.mktemp("adapted") / "lora"
    model = randomised(config, LoRA(rank=4, alpha=8, targets=ALL[request.param]))
    model.save_lora(folder)
    return Adapted(request.param, type(config).__name__, config, model, folder)


# Other programs read what we leave.


def rows_of(family, layer, width):
    """Where ComfyUI's own network has a layer of diffusers: its weight, and the first of the rows there."""
    stem, _, inside = layer.partition("blocks.")
    number, _, inside = inside.partition(".")
    attention, _, end = inside.partition(".")
    letter = {"to_q": 0, "to_k": 1, "to_v": 2, "add_q_proj": 0, "add_k_proj": 1, "add_v_proj": 2}.get(end)
    text = end.startswith("add_") or end == "to_add_out" or "context" in attention
    if family == "QwenImage":
        return layer, 0
    if family == "ZImage":
        letter = {"to_q": 0, "to_k": 1, "to_v": 2}.get(layer.rsplit(".", 1)[1])
        inside = layer if letter is None else f"{layer.rsplit('.', 1)[0]}.qkv"
        return inside.replace("to_out.0", "out"), (letter or 0) * width
    if family == "Wan":
        kind, letter = {"attn1": "self_attn", "attn2": "cross_attn"}.get(attention), end.removeprefix("to_")[0]
        plain = {"ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"}.get(inside, f"{kind}.{letter}")
        return f"blocks.{number}.{plain}", 0
    if stem == "single_transformer_":
        first = 3 * width if inside == "proj_mlp" else (letter or 0) * width
        return f"single_blocks.{number}.{'linear2' if inside in ('proj_out', 'attn.to_out') else 'linear1'}", first
    if family in ("Flux", "Flux2Klein"):
        half = "txt" if text else "img"
        if letter is not None:
            return f"double_blocks.{number}.{half}_attn.qkv", letter * width
        ends = {"to_out.0": "attn.proj", "to_add_out": "attn.proj", "net.0.proj": "mlp.0", "net.2": "mlp.2"}
        ends |= {"linear_in": "mlp.0", "linear_out": "mlp.2"}
        return f"double_blocks.{number}.{half}_{ends.get(end, 'mod.lin')}", 0
    half = "context_block" if text else "x_block"
    if letter is not None:
        return f"joint_blocks.{number}.{half}.{attention}.qkv", letter * width
    ends = {"to_out.0": f"{attention}.proj", "to_add_out": "attn.proj", "net.0.proj": "mlp.fc1", "net.2": "mlp.fc2"}
    return f"joint_blocks.{number}.{half}.{ends.get(end, 'adaLN_modulation.1')}", 0


@dataclass(frozen=True)
class Loader:
    """The rule by which ComfyUI and kohya's trainers read a file, for one network.

    ComfyUI looks every weight up under the names it knows for it: lora_unet_ and its own name with underscores, or
    diffusion_model. and its own name; for SD3, FLUX and Qwen-Image also transformer. and diffusers' name, which may be
    some rows of a weight; for Wan it knows no name of diffusers.  What it adds is alpha / rank B A, with the file's own
    alpha, and B A where it has none; it reads no metadata.  kohya's trainers know the first name alone, and their rule
    for the scale is the same.
    """

    family: str
    places: dict
    """Layer of diffusers → (weight, first row)."""

    def names(self, kohya):
        found = {f"lora_unet_{weight.replace('.', '_')}": (weight, 0) for weight, _ in self.places.values()}
        if kohya:
            return found
        found |= {f"diffusion_model.{weight}": (weight, 0) for weight, _ in self.places.values()}
        if self.family != "Wan":
            found |= {f"transformer.{layer}": place for layer, place in self.places.items()}
        return found

    def read(self, file, shapes, kohya=False):
        """Weight → what is added to it; every tensor of the file must be used."""
        tensors, unused = load_file(file), set(load_file(file))
        added = {weight: torch.zeros(shape) for weight, shape in shapes.items()}
        for name, (weight, first) in self.names(kohya).items():
            for down, up in (("lora_down", "lora_up"), ("lora_A", "lora_B")):
                A, B = (tensors.get(f"{name}.{half}.weight") for half in (down, up))
                if A is None or B is None:
                    continue
                alpha = tensors.get(f"{name}.alpha")
                scale = 1.0 if alpha is None else alpha.item() / len(A)
                added[weight][first : first + len(B)] += scale * (B @ A)
                unused -= {f"{name}.{down}.weight", f"{name}.{up}.weight", f"{name}.alpha"}
        assert not unused
        return added


@pytest.mark.parametrize("rank, alpha", [(8, 3), (32, 64), (4, 4)])
@pytest.mark.parametrize("name", FAMILIES)
def test_comfyui_and_kohya_apply_a_run_s_folder_at_its_strength(tinies, tmp_path, name, rank, alpha):
    config = tinies[name]
    family, model = type(config).__name__, randomised(config, LoRA(rank, alpha))
    model.save_lora(tmp_path)
    ours = trained_deltas(model)
    width = next(delta.shape[1] for layer, delta in ours.items() if layer.endswith("to_q"))
    loader = Loader(family, {layer: rows_of(family, layer, width) for layer in ours})
    shapes = {}
    for layer, (weight, first) in loader.places.items():
        rows = max(first + len(ours[layer]), shapes.get(weight, (0, 0))[0])
        shapes[weight] = (rows, ours[layer].shape[1])
    # FLUX has the first layer of the single blocks' MLP in the weight too.
    if family == "Flux":
        widest = lambda weight, rows: 7 * width if weight.endswith("linear1") else rows
        shapes = {weight: (widest(weight, rows), n) for weight, (rows, n) in shapes.items()}
    expected = {weight: torch.zeros(shape) for weight, shape in shapes.items()}
    for layer, (weight, first) in loader.places.items():
        expected[weight][first : first + len(ours[layer])] += ours[layer]
    assert_equal_deltas(loader.read(tmp_path / COMFYUI, shapes), expected)
    assert_equal_deltas(loader.read(tmp_path / COMFYUI, shapes, kohya=True), expected)
    if family != "Wan":
        assert_equal_deltas(loader.read(tmp_path / DIFFUSERS, shapes), expected)


def test_diffusers_reads_our_export_as_the_same_lora(adapted):
    name, family, *_ = adapted
    lora = read_lora(adapted.folder)
    tensors = load_file(adapted.folder / COMFYUI)
    assert all(key.startswith("lora_unet_") for key in tensors)
    # Their converter knows the fused layer of FLUX's single blocks in the released width alone.
    tensors = {key: value for key, value in tensors.items() if "linear1" not in key}
    original = {layer: original_layer(layer, family).name for layer in lora.layers}
    ours = {layer: factors.delta for layer, factors in lora.layers.items() if "linear1" not in original[layer]}
    if name in THEIRS:
        found = THEIRS[name](dict(tensors))
        found = {
            key.split(".lora_A")[0].removeprefix("transformer."): found[key.replace("lora_A", "lora_B")] @ found[key]
            for key in found
            if ".lora_A" in key
        }
        assert_equal_deltas({layer: delta for layer, delta in found.items() if delta.any()}, ours)


def test_alpha_is_the_rank_in_every_file_and_no_order_of_a_set(adapted):
    with safe_open(adapted.folder / DIFFUSERS, "pt") as file:
        told = json.loads(file.metadata()["lora_adapter_metadata"])
        assert json.loads(file.metadata()["afterflow"])["alpha"] == 8
    assert told["transformer.r"] == told["transformer.lora_alpha"] == 4
    assert told["transformer.target_modules"] == sorted(told["transformer.target_modules"])
    tensors = load_file(adapted.folder / COMFYUI)
    ranks = {key.removesuffix(".lora_down.weight"): len(t) for key, t in tensors.items() if "lora_down" in key}
    assert {key: tensors[f"{key}.alpha"].item() for key in ranks} == ranks


def test_a_scale_that_is_a_power_of_two_changes_no_bit(adapted):
    stored = load_file(adapted.folder / DIFFUSERS)
    for key, value in get_peft_model_state_dict(adapted.model.module).items():
        assert torch.equal(stored[f"transformer.{key}"], value * (2 if "lora_B" in key else 1))


@pytest.mark.parametrize("rank, alpha", [(8, 3), (32, 64), (4, 4)])
def test_training_goes_on_with_the_alpha_and_the_parameters_it_had(tinies, tmp_path, rank, alpha):
    config, tune = tinies["sd3"], LoRA(rank, alpha)
    model = randomised(config, tune)
    model.save_lora(tmp_path)
    before = get_peft_model_state_dict(model.module)
    again = config.load()
    attach(again, LoRA(rank, alpha, start=str(tmp_path)))
    frozen(again, str(tmp_path), "start")
    for name in ("default", "start"):
        after = get_peft_model_state_dict(again.module, adapter_name=name)
        assert after.keys() == before.keys()
        for key, value in before.items():
            bound = 0 if alpha in (rank, 2 * rank) else 1e-7
            torch.testing.assert_close(after[key], value, rtol=bound, atol=0)
    for _, layer in again.module.named_modules():
        if hasattr(layer, "lora_A"):
            assert layer.scaling["default"] == layer.scaling["start"] == alpha / rank


def test_a_lora_of_0_1_has_its_scale_in_its_metadata(tinies, tmp_path):
    """That version left alpha beside weights that are not scaled by it."""
    model = randomised(tinies["sd3"], LoRA(rank=4, alpha=8))
    tensors = {f"transformer.{key}": value for key, value in get_peft_model_state_dict(model.module).items()}
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["to_q"]).to_dict() | {"target_modules": ["to_q"]}
    about = json.dumps({f"transformer.{name}": value for name, value in config.items()}, default=str)
    save_file(tensors, tmp_path / DIFFUSERS, metadata={"format": "pt", "lora_adapter_metadata": about})
    lora = read_lora(tmp_path)
    assert (lora.rank, lora.alpha) == (4, 8)
    assert_equal_deltas({layer: factors.delta for layer, factors in lora.layers.items()}, trained_deltas(model))
    again = tinies["sd3"].load()
    attach(again, LoRA(rank=4, alpha=8, start=str(tmp_path)))
    for key, value in get_peft_model_state_dict(again.module).items():
        assert torch.equal(value, tensors[f"transformer.{key}"])


# We read what other programs leave.


def test_what_we_export_comes_back_to_the_last_bit(adapted, tmp_path, capsys):
    out = tmp_path / "comfy" / "mine.safetensors"
    assert main(["export", str(adapted.folder), "--out", str(out)]) == 0
    assert "rank 4" in capsys.readouterr().out
    before = read_lora(adapted.folder)
    for after in (read_lora(out, adapted.family), read_lora(adapted.folder / COMFYUI)):
        assert after.layers.keys() == before.layers.keys() and after.rank == 4
        for layer, factors in before.layers.items():
            assert torch.equal(after.layers[layer].A, factors.A) and torch.equal(after.layers[layer].B, factors.B)


def renamed(layers, name, ends=("lora_down.weight", "lora_up.weight"), alpha=None):
    """Tensors of a file whose layers are called by `name`; with an alpha, B holds what alpha / rank leaves."""
    tensors = {}
    for layer, factors in layers.items():
        scale = 1.0 if alpha is None else alpha / len(factors.A)
        tensors |= {f"{name(layer)}{end}": t for end, t in zip(ends, (factors.A, factors.B / scale))}
        if alpha is not None:
            tensors[f"{name(layer)}.alpha"] = torch.tensor(float(alpha))
    return {key.replace("..", "."): value.contiguous() for key, value in tensors.items()}


def flat(name):
    return name.replace(".", "_")


DOWN, AB = (".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight")
LAYOUTS = {
    "transformer. with alphas": lambda layers: renamed(layers, "transformer.{}".format, AB, 2),
    "transformer. with lora_down": lambda layers: renamed(layers, "transformer.{}".format, DOWN, 2),
    "bare lora_down": lambda layers: renamed(layers, str, DOWN, 2),
    "bare lora_down without alphas": lambda layers: renamed(layers, str, DOWN),
    "bare lora_A": lambda layers: renamed(layers, str, AB),
    "OneTrainer": lambda layers: renamed(layers, lambda layer: f"lora_transformer_{flat(layer)}", DOWN, 1),
    "SimpleTuner": lambda layers: renamed(layers, lambda layer: f"lycoris_{flat(layer)}", DOWN, 1),
    "peft, with its adapter's name": lambda layers: renamed(
        layers, str, (".lora_A.default.weight", ".lora_B.default.weight")
    ),
    "peft's prefix with alphas": lambda layers: renamed(layers, "base_model.model.{}".format, AB, 2),
    "old diffusers": lambda layers: renamed(layers, "transformer.{}".format, (".lora.down.weight", ".lora.up.weight")),
    "older diffusers": lambda layers: renamed(
        layers, "transformer.{}".format, ("_lora.down.weight", "_lora.up.weight")
    ),
    "diffusers' training scripts": lambda layers: renamed(
        layers, "transformer.{}".format, (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")
    ),
    "half precision": lambda layers: {key: t.half() for key, t in renamed(layers, str, AB).items()},
    "one half of each": lambda layers: (
        renamed(dict(list(layers.items())[::2]), "transformer.{}".format, AB)
        | renamed(dict(list(layers.items())[1::2]), lambda layer: f"lora_transformer_{flat(layer)}", DOWN, 1)
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_in_diffusers_names_is_read_in_any_layout(adapted, tmp_path, layout):
    before = read_lora(adapted.folder)
    save_file(LAYOUTS[layout](before.layers), tmp_path / "theirs.safetensors")
    after = read_lora(tmp_path / "theirs.safetensors", adapted.family)
    assert after.layers.keys() == before.layers.keys()
    for layer, factors in before.layers.items():
        close = {"rtol": 1e-2, "atol": 1e-1} if layout == "half precision" else {"rtol": 1e-6, "atol": 1e-6}
        torch.testing.assert_close(after.layers[layer].delta, factors.delta, **close)


@pytest.mark.parametrize(
    "name, ends",
    [
        ("lora_unet_{}", DOWN),
        ("lora_unet__{}", DOWN),
        ("diffusion_model.{}", DOWN),
        ("diffusion_model.{}", AB),
        ("{}", AB),
        ("pipe.dit.{}", (".lora_A.default.weight", ".lora_B.default.weight")),
    ],
)
def test_a_file_in_original_names_is_read_in_any_layout(adapted, tmp_path, name, ends):
    before = read_lora(adapted.folder)
    family = adapted.family
    names = {flat(original_layer(layer, family).name): original_layer(layer, family).name for layer in before.layers}
    tensors = {}
    for key, value in load_file(adapted.folder / COMFYUI).items():
        stem, _, end = key.removeprefix("lora_unet_").partition(".")
        called = name.format(stem if "_unet_" in name else names[stem])
        end = dict(zip(("lora_down.weight", "lora_up.weight"), ends)).get(end, f".{end}")
        tensors[called + end] = value
    save_file(tensors, tmp_path / "theirs.safetensors")
    after = read_lora(tmp_path / "theirs.safetensors", family)
    assert_equal_deltas(
        {layer: factors.delta for layer, factors in after.layers.items()},
        {layer: factors.delta for layer, factors in before.layers.items()},
    )


def test_a_lora_of_another_house_acts_as_it_did_there(adapted, tmp_path):
    """kohya's format, another alpha there, and peft's own folder: what is added to each weight is the same."""
    _, _, config, model, folder = adapted
    kohya = load_file(folder / COMFYUI)
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
    for source in ("halved.safetensors", "peft"):
        again = config.load()
        again.load_lora(tmp_path / source)
        assert_equal_deltas(trained_deltas(again), trained_deltas(model))


@pytest.mark.parametrize("rslora", [False, True])
def test_ranks_and_alphas_may_differ_from_layer_to_layer(tinies, tmp_path, rslora):
    """The scale of a layer is alpha / rank by its own rank and alpha; peft itself says what is right."""
    model, draws = tinies["sd3"].load(), torch.Generator().manual_seed(0)
    patterns = {"rank_pattern": {"to_k": 3, "^transformer_blocks.0.attn.to_q": 5}, "alpha_pattern": {"to_k": 7}}
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_k", "to_v"], use_rslora=rslora, **patterns)
    model.module.add_adapter(config)
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draws))
    tensors = {f"transformer.{key}": value for key, value in get_peft_model_state_dict(model.module).items()}
    told = {"r": 4, "lora_alpha": 8, "use_rslora": rslora, **patterns}
    about = json.dumps({f"transformer.{name}": value for name, value in told.items()})
    save_file(tensors, tmp_path / DIFFUSERS, metadata={"lora_adapter_metadata": about})
    lora = read_lora(tmp_path)
    assert lora.rank == lora.alpha == 5
    found = {layer: factors.delta for layer, factors in lora.layers.items()}
    assert_equal_deltas(found, trained_deltas(model))
    save_file(tensors, tmp_path / DIFFUSERS)  # without metadata each scale is 1, as in diffusers and ComfyUI
    theirs, ours = tinies["sd3"].load(), read_lora(tmp_path)
    theirs.pipe.load_lora_weights(tmp_path, adapter_name="default")
    assert_equal_deltas({layer: factors.delta for layer, factors in ours.layers.items()}, trained_deltas(theirs))
    again = tinies["sd3"].load()
    again.load_lora(tmp_path)
    assert_equal_deltas(trained_deltas(again), trained_deltas(theirs))


@pytest.mark.parametrize("outer", ["transformer", "module", "pipe.dit"])
def test_a_pattern_gives_a_layer_by_its_whole_name_in_peft(tinies, tmp_path, outer):
    """A network that is trained as a part of another module has that part's name in peft, and before its tensors."""
    model, whole = tinies["sd3"].load(), torch.nn.Module()
    *above, last = outer.split(".")
    part = whole
    for name in above:
        part.add_module(name, torch.nn.Module())
        part = part.get_submodule(name)
    part.add_module(last, model.module)
    patterns = {f"{outer}.transformer_blocks.0.attn.to_k": 7, f"^{outer}.transformer_blocks.1.attn.to_q": 3, "to_v": 5}
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_k", "to_v"], alpha_pattern=patterns)
    adapted, draws = get_peft_model(whole, config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draws))
    adapted.save_pretrained(tmp_path)
    read = {layer: factors.delta for layer, factors in read_lora(tmp_path).layers.items()}
    assert_equal_deltas(read, trained_deltas(model))


def test_scale_and_shift_of_sd3_s_last_block_stand_in_the_other_order():
    """There the text is modulated by these two alone: kohya's default network adapts it in every block."""
    draws = torch.Generator().manual_seed(0)
    A, B = torch.randn(2, 6, generator=draws), torch.randn(36, 2, generator=draws)
    layers = {
        "transformer_blocks.0.norm1_context.linear": LoRAFactors(A, B),
        "transformer_blocks.1.norm1_context.linear": LoRAFactors(A, B[:12]),
        "norm_out.linear": LoRAFactors(A, B[:12]),
    }
    tensors = to_kohya(layers, "SD3")
    key = "lora_unet_joint_blocks_{}_context_block_adaLN_modulation_1.lora_up.weight"
    assert torch.equal(tensors[key.format(0)], B)
    assert torch.equal(tensors[key.format(1)], torch.cat([B[6:12], B[:6]]))
    assert torch.equal(tensors["lora_unet_final_layer_adaLN_modulation_1.lora_up.weight"], torch.cat([B[6:12], B[:6]]))


def network(family, tinies):
    """A network with every kind of layer that a family may have."""
    if family == "sd3":  # 3.5 medium attends twice in some blocks
        small = {"sample_size": 4, "num_layers": 2, "attention_head_dim": 4, "num_attention_heads": 2}
        return SD3Transformer2DModel(
            **small,
            joint_attention_dim=8,
            caption_projection_dim=8,
            pooled_projection_dim=8,
            dual_attention_layers=(0,),
        )
    return tinies[family].load().module


@pytest.mark.parametrize("name", FAMILIES)
def test_every_linear_layer_has_a_name_of_its_own_in_the_original(tinies, name, tmp_path):
    """So no run's result can fail to be written for ComfyUI, whatever its targets are."""
    family = type(tinies[name]).__name__
    linear = {layer: m for layer, m in network(name, tinies).named_modules() if isinstance(m, torch.nn.Linear)}
    places = {layer: original_layer(layer, family) for layer in linear}
    assert len(set(places.values())) == len(places)
    layers = {
        layer: LoRAFactors(torch.randn(1, m.in_features), torch.ones(m.out_features, 1)) for layer, m in linear.items()
    }
    write_lora(tmp_path, layers, family)
    for file in (DIFFUSERS, COMFYUI):
        back = read_lora(tmp_path / file, family).layers
        assert back.keys() == layers.keys()
        for layer, factors in layers.items():
            assert torch.equal(back[layer].delta, factors.delta), layer


def test_no_two_layers_share_a_name_with_underscores():
    for family in BLOCKS:
        layers = original_layers(family)
        assert len({flat(layer) for layer in layers}) == len(layers)
        for layer, place in layers.items():
            layer, name = layer.replace("#", "7"), place.name.replace("#", "7")
            assert list(diffusers_layers(flat(layer), family)) == [layer]
            assert layer in diffusers_layers(flat(name), family) and layer in diffusers_layers(name, family)


def test_a_layer_that_is_not_trained_yet_is_read_as_nothing_added(tmp_path):
    key = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    save_file(
        {f"{key}.lora_down.weight": torch.ones(2, 6), f"{key}.lora_up.weight": torch.zeros(18, 2)},
        tmp_path / "a.safetensors",
    )
    lora = read_lora(tmp_path / "a.safetensors")
    assert lora.rank == 2 and [f.delta.any().item() for f in lora.layers.values()] == [False] * 3


# What cannot be read


def pair(layer, ends=AB):
    return {f"{layer}{end}": torch.ones(1, 1) for end in ends}


FLUX = "transformer.transformer_blocks.0.attn.to_q"


@pytest.mark.parametrize(
    "tensors, family, said",
    [
        ({**pair(FLUX), f"{FLUX}.lora_magnitude_vector": torch.ones(1)}, "Flux", "magnitude_vector: DoRA"),
        ({**pair(FLUX), f"{FLUX}.dora_scale": torch.ones(1)}, "Flux", r"more than B A \(.*dora_scale: DoRA\)"),
        (
            {f"{FLUX}.hada_w1_a": torch.ones(1), f"{FLUX}.hada_w2_a": torch.ones(1)},
            "Flux",
            "hada_w1_a and 1 more: LoHa",
        ),
        ({f"{FLUX}.lokr_w1": torch.ones(1), f"{FLUX}.alpha": torch.ones(1)}, "Flux", "LoKr"),
        ({**pair(FLUX), f"{FLUX}.lora_B.bias": torch.ones(1)}, "Flux", "a LoRA with biases"),
        ({f"{FLUX}.oft_blocks": torch.ones(1)}, "Flux", "OFT"),
        ({"lora_unet_blocks_0_ffn_0.diff_b": torch.ones(1)}, "Wan", "a change of whole weights"),
        ({**pair(FLUX), "step": torch.ones(1)}, "Flux", "step: of no known kind"),
        ({"lora_unet_x.alpha": torch.ones(1), **pair("lora_te1_x", DOWN)}, "Flux", "text encoders"),
        ({**pair("text_encoder.text_model.x"), **pair(FLUX)}, "Flux", "text encoders"),
        ({f"{FLUX}.lora_A.weight": torch.ones(1, 1)}, "Flux", "only one of its two factors"),
        ({f"{FLUX}.alpha": torch.ones(1)}, "Flux", "only one of its two factors"),
        ({**pair(FLUX), **pair(FLUX, DOWN)}, "Flux", "there twice, by two names"),
        (
            {**pair(FLUX), **pair("lora_transformer_transformer_blocks_0_attn_to_q")},
            "Flux",
            "there twice, by two names",
        ),
        ({**pair(FLUX), f"{FLUX}.alpha": torch.tensor(float("nan"))}, "Flux", "not one finite number"),
        ({f"{FLUX}{end}": torch.ones(1, 1, 1, 1) for end in AB}, "Flux", "is a convolution"),
        ({f"{FLUX}{end}": torch.ones(n, n) for n, end in enumerate(AB, 1)}, "Flux", "have ranks 1 and 2"),
        (pair("lora_unet_blocks_0_odd", DOWN), "Wan", "blocks_0_odd is no layer of Wan that afterflow knows; take the"),
        (pair("lora_unet_double_blocks_0_img_attn_qkv", DOWN), "SD3", "no layer of SD3 .* it is of Flux"),
        (
            {**pair(FLUX), **pair("unet.down_blocks.0.to_q")},
            None,
            "down_blocks.0.to_q is no layer that afterflow knows",
        ),
        (pair("transformer_2.blocks.0.attn1.to_q"), "Wan", "no layer of Wan"),
        (pair("double_blocks.0.processor.qkv_lora1", (".down.weight", ".up.weight")), "Flux", "no known kind"),
        (pair("base_model.model.transformer_blocks.0.attn.to_q"), None, "adapter_config.json is not beside it"),
        (
            pair("lora_unet_img_in", DOWN),
            None,
            "may be of Flux or Flux2Klein or QwenImage; say which by --family",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(tmp_path, tensors, family, said):
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=said) as refusal:
        read_lora(tmp_path / "odd.safetensors", family)
    assert "\n" not in str(refusal.value) and "odd.safetensors" in str(refusal.value)


@pytest.mark.parametrize(
    "config, said",
    [
        ({"use_dora": True}, "use_dora"),
        ({"lora_alpha": float("nan")}, "its alpha is nan"),
        ({"alpha_pattern": {"to_q": "8"}}, "its alpha is '8'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights pissa_niter_4"),
        ("[]", "no JSON object"),
        ("{", "no JSON object"),
    ],
)
def test_a_configuration_of_more_than_b_a_is_refused(tmp_path, config, said):
    save_file(pair("base_model.model.transformer_blocks.0.attn.to_q"), tmp_path / "adapter_model.safetensors")
    text = config if isinstance(config, str) else json.dumps({"r": 1, "lora_alpha": 1, **config})
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_lora(tmp_path)


# Where it is


def test_a_run_a_folder_and_a_file_are_the_same_lora(tinies, tmp_path):
    model = randomised(tinies["sd3"], LoRA(rank=2, alpha=4))
    model.save_lora(tmp_path / "run" / "lora")
    file = tmp_path / "run" / "lora" / DIFFUSERS
    assert {lora_file(source) for source in (tmp_path / "run", tmp_path / "run" / "lora", file)} == {file}
    (tmp_path / "theirs").mkdir()
    shutil.copy(file, tmp_path / "theirs" / "my lora.safetensors")
    assert lora_file(tmp_path / "theirs").name == "my lora.safetensors"


def test_what_holds_no_lora_is_refused(tmp_path):
    for name, file in (
        ("pipeline", "model_index.json"),
        ("running", "run.json"),
        ("two", "a.safetensors"),
        ("bare", "x"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("")
    (tmp_path / "two" / "b.safetensors").write_text("")
    (tmp_path / "full" / "model").mkdir(parents=True)
    for name, said in (
        ("pipeline", "holds a whole pipeline and no LoRA"),
        ("full", "holds a whole pipeline and no LoRA"),
        ("running", "the run has no lora/ yet"),
        ("two", r"there are 2 files in it \(a.safetensors, b.safetensors\); name one"),
        ("bare", f"no {DIFFUSERS} there"),
        ("two/a.safetensors", "is no whole .safetensors file"),
    ):
        with pytest.raises(ValueError, match=said):
            read_lora(tmp_path / name)


def test_merges_and_exports_say_their_family_and_leave_no_old_file(tinies, tmp_path, capsys):
    for name in ("a", "b"):
        randomised(tinies["wan"], LoRA(rank=2, alpha=4)).save_lora(tmp_path / name / "lora")
    sources = (str(tmp_path / "a"), str(tmp_path / "b" / "lora" / COMFYUI))
    LoRAMerge(sources).write(tmp_path / "both")
    one, both = read_lora(sources[0]), read_lora(tmp_path / "both" / COMFYUI)
    assert both.family == "Wan" and both.alpha == both.rank == 4
    for layer, factors in one.layers.items():
        torch.testing.assert_close(both.layers[layer].delta, factors.delta, atol=1e-5, rtol=1e-5)
    write_lora(tmp_path / "both", both.layers)
    assert not (tmp_path / "both" / COMFYUI).exists()


def test_the_family_must_be_known_to_export(tmp_path, capsys):
    save_file(pair(FLUX), tmp_path / "odd.safetensors")
    assert main(["export", str(tmp_path / "odd.safetensors")]) == 2
    assert "may be of several families; say which by --family" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "odd.safetensors"), "--family", "Flux"]) == 0


def test_a_target_that_no_file_could_hold_is_refused_before_training(tinies):
    with pytest.raises(ValueError, match=r"pos_embed\.proj, of the kind Conv2d; a LoRA adapts Linear"):
        attach(tinies["sd3"].load(), LoRA(targets=("pos_embed.proj",)))


def test_our_own_tensors_are_diffusers_format(tinies):
    layers = {"proj_out": LoRAFactors(torch.ones(1, 2), torch.ones(3, 1))}
    assert set(lora_state_dict(layers)) == {"transformer.proj_out.lora_A.weight", "transformer.proj_out.lora_B.weight"}
