"""Files of LoRAs: ours and diffusers', peft's, and those of kohya's trainers and ComfyUI."""

import json
from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ...system.names import Family
from .factors import LoRAFactors, pad_rank
from .kohya import from_original

NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
PEFT, FOREIGN = "base_model.model.", ("lora_unet_", "diffusion_model.")


@dataclass(frozen=True)
class StoredLoRA:
    folder: str
    layers: dict[str, LoRAFactors]  # fp32, by diffusers' names
    rank: int


def lora_file(folder: str | Path) -> Path:
    """Where an adapter lies; ValueError when it does not."""
    file = Path(folder)
    file = next((file / name for name in NAMES if (file / name).is_file()), file / NAMES[0]) if file.is_dir() else file
    if not file.is_file():
        raise ValueError(f"LoRA {folder}: no {NAMES[0]} there")
    return file


def is_diffusers_lora(file: Path) -> bool:
    with safe_open(file, "pt") as stored:
        return any(key.startswith("transformer.") and ".lora_A." in key for key in stored.keys())  # noqa: SIM118


def read_lora(folder: str | Path, family: Family | None = None) -> StoredLoRA:
    """A LoRA by diffusers' names; ValueError for what is none, or is more than B A.

    kohya's names mean something else in every family, so it has to be told for them.  Where ranks differ from layer to
    layer, all become the highest.
    """
    file = lora_file(folder)
    with safe_open(file, "pt") as stored:
        told = json.loads((stored.metadata() or {}).get("lora_adapter_metadata", "{}"))
        tensors = {key: stored.get_tensor(key).float() for key in stored.keys()}  # noqa: SIM118
    if any(key.startswith(FOREIGN) for key in tensors):
        if family is None:
            raise ValueError(
                f"LoRA {folder} is in kohya's format, where names depend on the model; make it readable with: "
                "afterflow export LORA --to diffusers --family FAMILY"
            )
        layers = from_original(tensors, family, str(folder))
        rank = max((len(factors.A) for factors in layers.values()), default=0)
        return StoredLoRA(str(folder), {layer: pad_rank(factors, rank) for layer, factors in layers.items()}, rank)
    config = {key.split(".", 1)[1]: value for key, value in told.items()}
    if any(key.startswith(PEFT) for key in tensors):
        config = peft_config(file)
        tensors = {key.removeprefix(PEFT).removeprefix("transformer."): value for key, value in tensors.items()}
    tensors = {key.removeprefix("transformer."): value for key, value in tensors.items()}
    odd = [name for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern") if config.get(name)]
    if odd:
        raise ValueError(f"LoRA {folder}: it has {' and '.join(odd)}; only plain LoRAs of one rank can be read")
    pairs = {key: key.replace(".lora_A.", ".lora_B.") for key in tensors if ".lora_A." in key}
    ranks = {len(tensors[key]) for key in pairs}
    if len(ranks) != 1 or set(tensors) != {*pairs, *pairs.values()}:
        raise ValueError(f"LoRA {folder}: it is not made of pairs lora_A and lora_B of one rank")
    rank = ranks.pop()
    scale = config.get("lora_alpha", rank) / rank  # without a word about it, diffusers takes alpha to be the rank
    layers = {a.split(".lora_A.")[0]: LoRAFactors(tensors[a], scale * tensors[b]) for a, b in pairs.items()}
    return StoredLoRA(str(folder), layers, rank)


def peft_config(file: Path) -> dict:
    """What peft writes beside its weights; ValueError without it, because the scale is there."""
    beside = file.parent / "adapter_config.json"
    if not beside.is_file():
        raise ValueError(f"LoRA {file}: peft's adapter_config.json is not beside it, and with it its alpha")
    return json.loads(beside.read_text())


def lora_state_dict(layers: dict[str, LoRAFactors]) -> dict[str, Tensor]:
    """Layers as the tensors of diffusers' format; their alpha is their rank."""
    tensors = {}
    for name, factors in layers.items():
        tensors[f"transformer.{name}.lora_A.weight"] = factors.A.contiguous()
        tensors[f"transformer.{name}.lora_B.weight"] = factors.B.contiguous()
    return tensors


def write_lora(folder: Path, layers: dict[str, LoRAFactors]) -> None:
    """In diffusers' format, with rank and alpha."""
    rank = len(next(iter(layers.values())).A)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(layers)).to_dict()
    config["target_modules"] = sorted(config["target_modules"])
    about = json.dumps({f"transformer.{name}": value for name, value in config.items()}, default=str)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(lora_state_dict(layers), folder / NAMES[0], metadata={"lora_adapter_metadata": about, "format": "pt"})


def check_lora_fits(file: Path, shapes: dict[str, tuple[int, int]], module: nn.Module) -> None:
    """ValueError unless every layer, (out, in), meets one of the model; diffusers would skip it in silence."""
    # A layer that has an adapter already is kept inside it.
    linear = ((name, m) for name, m in module.named_modules() if isinstance(m, nn.Linear))
    layers = {name.removesuffix(".base_layer"): tuple(m.weight.shape) for name, m in linear}
    if not shapes:
        raise ValueError(f"LoRA {file}: no lora_A tensors in it, so it is no LoRA in diffusers' format")
    for name, shape in shapes.items():
        if layers.get(name) != shape:
            raise ValueError(
                f"LoRA {file} is of another architecture: its layer {name} {shape} meets no layer of this model; "
                "take the model it was trained on"
            )


def layer_shapes(file: Path) -> dict[str, tuple[int, int]]:
    """Layer → (out, in), from the head of a file in diffusers' format."""
    with safe_open(file, "pt") as stored:
        shape = {key: tuple(stored.get_slice(key).get_shape()) for key in stored.keys()}  # noqa: SIM118
    pairs = {key: key.replace(".lora_A.", ".lora_B.") for key in shape if ".lora_A." in key}
    return {
        a.removeprefix("transformer.").split(".lora_A.")[0]: (shape[b][0], shape[a][1])
        for a, b in pairs.items()
        if b in shape
    }
