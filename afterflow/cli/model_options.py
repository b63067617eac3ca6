"""The pipeline and the LoRA that a command uses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ..models.pipeline import Model, Pretrained


@dataclass(frozen=True)
class ModelOptions:
    """Size and precision of the model that a command loads."""

    size: int | None = None
    """Height and width in pixels; None: the model's own."""
    width: int | None = None
    """Width in pixels, where it is not the height."""
    height: int | None = None
    """Height of clips in pixels."""
    frames: int | None = None
    """Number of frames of clips."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the weights."""
    max_sequence_length: int | None = None
    """Tokens of the longest text encoder; None: the family's own default (for SD3 256, or 0 where its T5 is mute)."""

    def config(self, path: str, inputs: bool) -> "Pretrained":
        """Return the configuration of a pipeline that draws prompts with or without input pictures."""
        from ..models.families import pretrained

        options = {name: value for name, value in vars(self).items() if name != "dtype" and value is not None}
        return pretrained(path, self.dtype, options, inputs)

    def check_prompts(self, path: str, records: Sequence[dict]) -> "Pretrained":
        """Return the configuration of a pipeline that draws records; no weights are fetched.

        InputError where its family has no use for their input pictures, or needs some.
        """
        from ..models.families import FAMILIES
        from ..system.input_pictures import check_inputs, input_names

        config = self.config(path, any(map(input_names, records)))
        family = FAMILIES[type(config)]
        check_inputs(records, family.takes_pictures, family.stock, family.most_pictures)
        return config

    def load(self, path: str, lora: str | None, inputs: bool = False) -> "Model":
        """Load a pipeline, on the accelerator if there is one, with its LoRA.

        inputs: Whether it draws prompts with input pictures, which decides between families that share a pipeline.
        """
        from ..models.base import default_device
        from ..models.pipeline import no_progress_bars

        no_progress_bars()
        model = self.config(path, inputs).load(default_device())
        if lora is not None:
            model.load_lora(lora)
        return model


def check_sources(pipelines: Sequence[str | None], loras: Sequence[str | None]) -> None:
    """Raise ValueError for a pipeline or a LoRA that does not exist, before any is used or weights are fetched."""
    from ..models.lora.files import lora_file
    from ..models.pipeline_files import locate

    for lora in filter(None, loras):
        lora_file(lora)
    for pipeline in filter(None, pipelines):
        locate(pipeline, None, weights=False)
