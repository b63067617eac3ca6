"""Wan 2.2 A14B, text to video, through diffusers: two networks, one at high noise and the other at low noise.

Each has a LoRA of its own.  A rollout whose trained steps are all on one side of the boundary trains that one alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from ..sampling.conditioning import Conditioning, Embedding, Velocity
from ..sampling.flow import expand
from ..system.checks import check_not_negative
from ..system.errors import InputError
from .experts import EXPERTS, Experts
from .lora.factors import LoRAFactors
from .lora.files import SECOND, lora_state_dict
from .lora.pair_files import by_expert
from .pipeline_files import read_index
from .wan import Wan, WanModel
from .wrappers import guided


@dataclass(frozen=True)
class WanPair(Wan):
    """A Wan pipeline from text to video with two networks: 2.2 A14B."""

    path: str = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
    """Hub id or folder of the pipeline."""
    guidance_scale_2: float | None = None
    """Guidance scale of the second network, at low noise, where a run has guidance.  None: the run's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "guidance_scale_2", prefix="model.")

    def load(self, device: Any = "cpu") -> "WanPairModel":
        """Load everything but the text encoders."""
        return WanPairModel(self, device)


class WanPairModel(WanModel):
    """Wan with a network for high noise and one for low noise."""

    streams = tuple(f"{name}.patch_embedding" for name in EXPERTS)
    end_layers = tuple(f"{name}.proj_out" for name in EXPERTS)
    usual_guidance = 4.0
    lora_calls = ({}, {"weight_name": SECOND, "load_into_transformer_2": True})
    single = False

    @classmethod
    def reads(cls, index: Mapping[str, Any]) -> bool:
        """Whether a pipeline is of this family, by its model_index.json."""
        return super().reads(index) and index.get("boundary_ratio") is not None

    def configure(self) -> None:
        """Set shapes, schedule and encoder key.  InputError for a pipeline that is no pair from text to video."""
        check_pair(self.config.path, self.folder, self.pipe)
        super().configure()

    def network(self) -> Experts:
        """Return the pair of networks that is trained."""
        return Experts(self.pipe.transformer, self.pipe.transformer_2, self.pipe.config.boundary_ratio)

    def network_parts(self, network: nn.Module) -> dict[str, nn.Module]:
        """Return the two networks of a pair by the names of a pipeline's parts."""
        return {name: network.get_submodule(name) for name in EXPERTS}

    @property
    def low_noise(self) -> Callable[[Tensor], Tensor]:
        """Says by times (M,) which rows the second network computes, (M,) bool."""
        return cast(Experts, self.module).low_noise

    def guide(self, velocity: Velocity, scale: float) -> Velocity:
        """Guide a velocity by one scale at high noise and another one at low noise; scale = 1 guides neither."""
        second = self.config.guidance_scale_2
        if scale == 1 or second is None:
            return super().guide(velocity, scale)

        def v(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
            low = expand(self.low_noise(t), x)

            def combine(empty: Tensor, full: Tensor, scale: float) -> Tensor:
                return self.combine(empty, full, second).where(low, self.combine(empty, full, scale))

            return guided(velocity, scale, combine)(x, t, cond)

        return v

    def attach_lora(self, layers: Mapping[str, LoRAFactors], name: str) -> None:
        """Attach the LoRAs of both networks, whose names begin the names of layers."""
        for expert, part in by_expert(layers).items():
            second = expert == EXPERTS[1]
            self.pipe.load_lora_weights(lora_state_dict(part), adapter_name=name, load_into_transformer_2=second)

    def stock_inputs(self, positive: Embedding, negative: Embedding, guidance: float) -> dict[str, Any]:
        """Return the stock pipeline's arguments for encoded prompts and a guidance scale."""
        return super().stock_inputs(positive, negative, guidance) | {"guidance_scale_2": self.config.guidance_scale_2}


def check_pair(path: str, folder: Path, pipe: Any) -> None:
    """Raise InputError for a pipeline that is no pair of networks of one shape from text to video."""
    boundary = read_index(folder).get("boundary_ratio")
    if boundary is None:
        raise InputError(f"model {path!r} has no boundary_ratio and so one transformer; take it as the family Wan")
    if isinstance(boundary, bool) or not isinstance(boundary, int | float) or not 0 < boundary < 1:
        raise InputError(
            f"model {path!r}: boundary_ratio in its model_index.json is {boundary!r}, and two transformers share the "
            "times between 0 and 1 there; write a number between them, which is 0.875 for Wan 2.2 A14B"
        )
    for name in EXPERTS:
        if getattr(pipe, name, None) is None:
            raise InputError(f"model {path!r} has a boundary_ratio and no {name}; download the whole pipeline again")
    first, second = (
        {k: v for k, v in net.config.items() if k[0] != "_"} for net in (pipe.transformer, pipe.transformer_2)
    )
    other = next((name for name in first.keys() | second.keys() if first.get(name) != second.get(name)), None)
    if other is not None:
        raise InputError(
            f"model {path!r}: {other} is {first.get(other)} in transformer and {second.get(other)} in transformer_2; "
            "the two must be of one shape, so take both from one release"
        )
    if first["in_channels"] != pipe.vae.config.z_dim:
        raise InputError(
            f"model {path!r}: its transformers take {first['in_channels']} channels and its autoencoder has "
            f"{pipe.vae.config.z_dim}, as a pair from image to video; take the one from text, Wan 2.2 T2V A14B"
        )
