"""afterflow export: a LoRA in another program's format."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from ..system.errors import ConfigError
from ..system.names import unknown_name
from .parsing import parse_options


def export_command(args: Sequence[str]) -> None:
    """Write a LoRA for ComfyUI and kohya's trainers, or one of theirs for diffusers."""
    parse_options(Export, args, "afterflow export")()


@dataclass(frozen=True)
class Export:
    """Write a LoRA in another program's format.  Its scale is then part of its weights, and alpha is its rank."""

    lora: Positional[str]
    """A run's folder, a LoRA's folder, or a .safetensors file."""
    to: Literal["kohya", "diffusers"] = "kohya"
    """kohya writes the names of sd-scripts and musubi-tuner, which ComfyUI reads too.  diffusers reads any format."""
    out: str | None = None
    """A .safetensors file for kohya, a folder for diffusers.  None: beside the LoRA."""
    family: str | None = None
    """Family of the model that the LoRA adapts, such as SD3 or Flux.  None: the family of its run."""

    def __post_init__(self) -> None:
        if self.to == "kohya" and self.out is not None and Path(self.out).suffix != ".safetensors":
            raise ConfigError(f"--out {self.out}: kohya's format is one file, so it must end with .safetensors")
        if self.to == "diffusers" and self.out is not None and Path(self.out).suffix == ".safetensors":
            raise ConfigError(f"--out {self.out}: diffusers' format is a folder; leave the .safetensors away")

    def __call__(self) -> None:
        from safetensors.torch import save_file

        from ..models.lora.files import lora_file, read_lora, write_lora
        from ..models.lora.kohya import BLOCKS, to_kohya

        if self.family is not None and self.family not in BLOCKS:
            raise unknown_name("family", self.family, BLOCKS)
        folder = Path(self.lora) / "lora" if (Path(self.lora) / "lora").is_dir() else Path(self.lora)
        family = self.family or family_of_run(folder)
        lora = read_lora(folder, family)
        beside = lora_file(folder).parent
        if self.to == "diffusers":
            out = beside / "diffusers" if self.out is None else Path(self.out)
            write_lora(out, lora.layers)
        else:
            if family is None:
                raise ConfigError(f"{self.lora}: no run.json says which model it adapts; add --family")
            out = beside / "kohya.safetensors" if self.out is None else Path(self.out)
            tensors = to_kohya(lora.layers, family)
            out.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, out, metadata={"format": "pt"})
        print(f"{out}: {len(lora.layers)} layers, rank {lora.rank}")


def family_of_run(folder: Path) -> str | None:
    """Return the family of the model of the run that trained this LoRA; None where no run is recorded above it."""
    from ..experiment.run_folder import read_run

    for parent in (folder, folder.parent):
        if (parent / "run.json").is_file():
            return type(read_run(parent)[0].model).__name__
    return None
