"""Files of LoRAs in diffusers' format."""

from pathlib import Path

from safetensors import safe_open
from torch import nn


def lora_file(folder: str | Path) -> Path:
    """Where an adapter lies; ValueError when it does not."""
    file = Path(folder)
    file = file / "pytorch_lora_weights.safetensors" if file.is_dir() else file
    if not file.is_file():
        raise ValueError(f"LoRA {folder}: no pytorch_lora_weights.safetensors there")
    return file


def check_lora_fits(file: Path, module: nn.Module) -> None:
    """ValueError unless every factor of the LoRA meets a layer of its shape; diffusers would skip it in silence."""
    # A layer that has an adapter already is kept inside it.
    linear = ((name, m) for name, m in module.named_modules() if isinstance(m, nn.Linear))
    layers = {name.removesuffix(".base_layer"): m.weight for name, m in linear}
    with safe_open(file, "pt") as stored:
        keys = [key for key in stored.keys() if ".lora_A." in key or ".lora_B." in key]  # noqa: SIM118
        if not keys:
            raise ValueError(f"LoRA {file}: no lora_A tensors in it, so it is no LoRA in diffusers' format")
        for key in keys:
            name, _, factor = key.removeprefix("transformer.").rpartition(".lora_")
            shape = list(stored.get_slice(key).get_shape())
            side = 1 if factor.startswith("A") else 0  # A meets the layer's input, B its output
            if name not in layers or layers[name].shape[side] != shape[side]:
                raise ValueError(
                    f"LoRA {file} is of another architecture: its tensor {key} {shape} meets no layer of this "
                    "model; take the model it was trained on"
                )
