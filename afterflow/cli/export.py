"""afterflow export: a LoRA in another program's format."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from ..system.errors import ConfigError, InputError
from ..system.names import unknown_name
from .parsing import parse_options

if TYPE_CHECKING:
    from ..experiment.run_folder import RunFolder


def export_command(args: Sequence[str]) -> None:
    """Write a LoRA for ComfyUI and kohya's trainers, or one of theirs for diffusers."""
    parse_options(Export, args, "afterflow export")()


@dataclass(frozen=True)
class Export:
    """Write a LoRA in another program's format.  Its scale is then part of its weights, and alpha is its rank."""

    lora: Positional[str]
    """A run's folder, a LoRA's folder, or a .safetensors file."""
    to: Literal["kohya", "diffusers"] = "kohya"
    """kohya writes the names of sd-scripts and musubi-tuner, which ComfyUI reads too.  diffusers reads any format.  Of
    a pair of transformers, kohya has one file for high noise and one for low noise."""
    out: str | None = None
    """A .safetensors file for kohya, a folder for diffusers.  None: beside the LoRA."""
    family: str | None = None
    """Family of the model that the LoRA adapts, such as SD3 or Flux.  None: that of its run, or of its layers."""

    def __post_init__(self) -> None:
        if self.to == "kohya" and self.out is not None and Path(self.out).suffix != ".safetensors":
            raise ConfigError(f"--out {self.out}: kohya's format is one file, so it must end with .safetensors")
        if self.to == "diffusers" and self.out is not None and Path(self.out).suffix == ".safetensors":
            raise ConfigError(f"--out {self.out}: diffusers' format is a folder; leave the .safetensors away")

    def __call__(self) -> None:
        from ..experiment.run_folder import folder_of_lora
        from ..models.lora.files import lora_file, read_lora, write_kohya, write_lora
        from ..models.lora.layer_names import BLOCKS

        if self.family is not None and self.family not in BLOCKS:
            raise unknown_name("family", self.family, BLOCKS)
        file = lora_file(self.lora)
        run = None if self.family is not None else folder_of_lora(file)
        lora = read_lora(self.lora, self.family if run is None else family_of(run))
        if self.to == "diffusers":
            out = file.parent / "diffusers" if self.out is None else Path(self.out)
            write_lora(out, lora.layers, lora.family, lora.alpha)
        else:
            if lora.family is None:
                raise ConfigError(f"{self.lora}: its layers may be of several families; say which by --family")
            out = file.parent / "kohya.safetensors" if self.out is None else Path(self.out)
            out = " and ".join(map(str, write_kohya(out, lora)))
        print(f"{out}: {len(lora.layers)} layers, rank {lora.rank}")


def family_of(folder: "RunFolder") -> str | None:
    """Return the family of a record's model; InputError for one that this version does not know."""
    from ..experiment.compatibility import BUILT_MODELS
    from ..models.lora.layer_names import BLOCKS

    recorded = folder.family()
    if recorded is None:
        return None
    family = BUILT_MODELS.get(recorded, {}).get("type", recorded)
    if family not in BLOCKS:
        raise InputError(f"{folder.record_file}: {family!r} is no family of this version of afterflow; update it")
    return family
