"""Which pipeline and which LoRA a command is about."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ..models.base import Model


@dataclass(frozen=True)
class ModelOptions:
    """Which weights, and in which precision."""

    size: int | None = None
    """Height and width in pixels; None: the model's own."""
    width: int | None = None
    """In pixels, where it is not the height."""
    height: int | None = None
    """Of clips, in pixels."""
    frames: int | None = None
    """Of clips."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights."""
    max_sequence_length: int | None = None
    """Tokens of the longest text encoder; None: the family's own default (for SD3 256, or 0 where its T5 is mute)."""

    def load(self, path: str, lora: str | None) -> "Model":
        """The pipeline, on the accelerator if there is one, with its LoRA."""
        from ..models.base import default_device
        from ..models.families import pretrained
        from ..models.pipeline import no_progress_bars

        no_progress_bars()
        told = {name: getattr(self, name) for name in ("size", "width", "height", "frames", "max_sequence_length")}
        config = pretrained(path, self.dtype, {name: value for name, value in told.items() if value is not None})
        model = config.load(default_device())
        if lora is not None:
            model.load_lora(lora)
        return model


def check_sources(pipelines: Sequence[str | None], loras: Sequence[str | None]) -> None:
    """ValueError for what is not there, before hours go into what is."""
    from ..models.lora.files import lora_file
    from ..models.pipeline import locate

    for lora in filter(None, loras):
        lora_file(lora)
    for pipeline in filter(None, pipelines):
        locate(pipeline, None)
