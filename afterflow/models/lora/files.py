"""Files of LoRAs: ours and diffusers', peft's, and those of kohya's trainers and ComfyUI."""

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ...system.atomic_files import apply_umask, make_folder, writing
from ...system.errors import InputError
from ...system.json_text import read_json
from .factors import LoRAFactors, pad_rank
from .kohya import from_original

NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
PEFT, FOREIGN = "base_model.model.", ("lora_unet_", "diffusion_model.")


@dataclass(frozen=True)
class StoredLoRA:
    """A LoRA as it was read from a file."""

    folder: str
    """Folder or file that it came from."""
    layers: dict[str, LoRAFactors]
    """Factors in fp32 by the layers' names in diffusers."""
    rank: int
    """Rank of every layer."""


def lora_file(folder: str | Path) -> Path:
    """Return the file of an adapter.  InputError where there is none."""
    file = Path(folder)
    file = next((file / name for name in NAMES if (file / name).is_file()), file / NAMES[0]) if file.is_dir() else file
    if not file.is_file():
        raise InputError(f"LoRA {folder}: no {NAMES[0]} there")
    return file


def is_diffusers_lora(file: Path) -> bool:
    """Whether the names in a file are those of diffusers' format."""
    with safe_open(file, "pt") as stored:
        return any(key.startswith("transformer.") and ".lora_A." in key for key in stored.keys())  # noqa: SIM118


def read_lora(folder: str | Path, family: str | None = None) -> StoredLoRA:
    """Read a LoRA by diffusers' names.  InputError for a file that is none, or that is more than B A.

    family: name of the model's family, which kohya's names of layers depend on.  Where ranks differ from layer to
    layer, all become the highest.
    """
    file, source = lora_file(folder), str(folder)
    with safe_open(file, "pt") as stored:
        metadata = json.loads((stored.metadata() or {}).get("lora_adapter_metadata", "{}"))
        tensors = {key: stored.get_tensor(key).float() for key in stored.keys()}  # noqa: SIM118
    if any(key.startswith(FOREIGN) for key in tensors):
        if family is None:
            raise InputError(
                f"LoRA {folder} is in kohya's format, where names depend on the model; make it readable with: "
                "afterflow export LORA --to diffusers --family FAMILY"
            )
        layers = from_original(tensors, family, source)
        rank = max((len(factors.A) for factors in layers.values()), default=0)
        return StoredLoRA(source, {layer: pad_rank(factors, rank) for layer, factors in layers.items()}, rank)
    config = {key.split(".", 1)[1]: value for key, value in metadata.items()}
    if any(key.startswith(PEFT) for key in tensors):
        config = peft_config(file)
        tensors = {key.removeprefix(PEFT): value for key, value in tensors.items()}
    layers = scaled_pairs({key.removeprefix("transformer."): value for key, value in tensors.items()}, config, source)
    return StoredLoRA(source, layers, len(next(iter(layers.values())).A))


def scaled_pairs(tensors: dict[str, Tensor], config: dict, source: str) -> dict[str, LoRAFactors]:
    """Pair the tensors lora_A and lora_B of layers, alpha / rank in B.  InputError where they are more than that."""
    odd = [name for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern") if config.get(name)]
    if odd:
        raise InputError(f"LoRA {source}: it has {' and '.join(odd)}; only plain LoRAs of one rank can be read")
    pairs = {key: key.replace(".lora_A.", ".lora_B.") for key in tensors if ".lora_A." in key}
    ranks = {len(tensors[key]) for key in pairs}
    if len(ranks) != 1 or set(tensors) != {*pairs, *pairs.values()}:
        raise InputError(f"LoRA {source}: it is not made of pairs lora_A and lora_B of one rank")
    rank = ranks.pop()
    scale = config.get("lora_alpha", rank) / rank  # without metadata, diffusers takes alpha to be the rank
    return {a.split(".lora_A.")[0]: LoRAFactors(tensors[a], scale * tensors[b]) for a, b in pairs.items()}


def peft_config(file: Path) -> dict:
    """Read the configuration that peft writes beside its weights.  InputError without it, because it has the scale."""
    beside = file.parent / "adapter_config.json"
    if not beside.is_file():
        raise InputError(f"LoRA {file}: peft's adapter_config.json is not beside it, and with it its alpha")
    return read_json(beside)


def lora_state_dict(layers: dict[str, LoRAFactors]) -> dict[str, Tensor]:
    """Return the tensors of diffusers' format; alpha is the rank."""
    tensors = {}
    for name, factors in layers.items():
        tensors[f"transformer.{name}.lora_A.weight"] = factors.A.contiguous()
        tensors[f"transformer.{name}.lora_B.weight"] = factors.B.contiguous()
    return tensors


def write_lora(folder: Path, layers: dict[str, LoRAFactors]) -> None:
    """Write a LoRA in diffusers' format, with rank and alpha in its metadata."""
    from peft import LoraConfig

    rank = len(next(iter(layers.values())).A)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(layers)).to_dict()
    config["target_modules"] = sorted(config["target_modules"])
    about = json.dumps({f"transformer.{name}": value for name, value in config.items()}, default=str)
    make_folder(folder)
    with writing(folder / NAMES[0]):
        save_file(lora_state_dict(layers), folder / NAMES[0], metadata={"lora_adapter_metadata": about, "format": "pt"})
        apply_umask(folder / NAMES[0])


def check_lora_fits(file: Path, shapes: dict[str, tuple[int, int]], module: nn.Module) -> None:
    """Raise InputError unless every layer, (out, in), meets one of the model.  diffusers would skip it in silence."""
    # A layer that has an adapter already is kept inside it.
    linear = ((name, m) for name, m in module.named_modules() if isinstance(m, nn.Linear))
    layers = {name.removesuffix(".base_layer"): tuple(m.weight.shape) for name, m in linear}
    if not shapes:
        raise InputError(f"LoRA {file}: no lora_A tensors in it, so it is no LoRA in diffusers' format")
    for name, shape in shapes.items():
        if layers.get(name) != shape:
            raise InputError(
                f"LoRA {file} is of another architecture: its layer {name} {shape} meets no layer of this model; "
                "take the model it was trained on"
            )


def layer_shapes(file: Path) -> dict[str, tuple[int, int]]:
    """Read the shape (out, in) of every layer from the head of a file in diffusers' format."""
    with safe_open(file, "pt") as stored:
        shapes = {key: tuple(stored.get_slice(key).get_shape()) for key in stored.keys()}  # noqa: SIM118
    pairs = {key: key.replace(".lora_A.", ".lora_B.") for key in shapes if ".lora_A." in key}
    return {
        a.removeprefix("transformer.").split(".lora_A.")[0]: (shapes[b][0], shapes[a][1])
        for a, b in pairs.items()
        if b in shapes
    }
