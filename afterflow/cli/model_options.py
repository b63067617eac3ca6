"""The pipeline and the LoRA that a command uses."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ..system.errors import InputError
from .output import print_progress

if TYPE_CHECKING:
    from ..experiment.run_folder import RunFolder
    from ..models.pipeline import Model, Pretrained


@dataclass(frozen=True)
class ModelOptions:
    """Size and precision of the model that a command loads."""

    size: int | None = None
    """Height and width in pixels; None: what the LoRA was trained at, or the model's own."""
    width: int | None = None
    """Width in pixels, where it is not the height."""
    height: int | None = None
    """Height of clips in pixels."""
    frames: int | None = None
    """Number of frames of clips."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Precision of the weights; None: that of the LoRA's training, or float32."""
    max_sequence_length: int | None = None
    """Tokens of the longest text encoder; None: those of the LoRA's training, or the family's own default (for SD3 256,
    or 0 where its T5 is mute)."""

    embedded_guidance: float | None = None
    """Guidance scale that FLUX.1 gets as an input; None: that of the LoRA's training, or 3.5 (Kontext 2.5)."""
    guidance_scale_2: float | None = None
    """Guidance scale of the second transformer of Wan 2.2's pair."""
    guidance_cap: float | None = None
    """Largest length of Z-Image's guided velocity over that of the prompt's own; 0 is no limit."""
    picture_size: int | None = None
    """Pixels on a side that Qwen-Image-Edit scales input pictures to."""
    revision: str | None = None
    """Branch, tag or commit of a pipeline on the hub; None: that of the LoRA's training, or main."""

    def as_trained(self, path: str, loras: Sequence[str | None]) -> "ModelOptions":
        """Return the options with those that are not set as the first LoRA with a record was trained, and say which.

        A record of another family than that of the pipeline at `path` says nothing.
        """
        from ..models.families import pretrained

        folder = next(recorded_folders(loras), None)
        if folder is None:
            return self
        try:
            trained = folder.run().model
        except InputError as error:  # such as the record of a newer version, whose LoRA can be drawn all the same
            print_progress(f"how {folder.path} was trained is not known ({error}); set --size and the like yourself")
            return self
        at = {"revision": self.revision}
        if type(trained) not in {type(pretrained(path, "float32", at, inputs)) for inputs in (False, True)}:
            return self
        options = {name: getattr(trained, name, None) for name, value in vars(self).items() if value is None}
        foreign = () if trained.path == path else ("revision",)
        options = {name: value for name, value in options.items() if value is not None and name not in foreign}
        bits = "" if trained.quantize is None else f"; its base had {trained.quantize} weights then and has not here"
        if options != {"dtype": "float32"} or bits:
            words = ", ".join(f"{name} {value}" for name, value in options.items())
            print_progress(f"as {folder.path} was trained: {words}; options of these names set others{bits}")
        return replace(self, **options)

    def config(self, path: str, inputs: bool) -> "Pretrained":
        """Return the configuration of a pipeline that draws prompts with or without input pictures."""
        from ..models.families import pretrained

        options = {name: value for name, value in vars(self).items() if name != "dtype" and value is not None}
        return pretrained(path, self.dtype or "float32", options, inputs)

    def check_prompts(self, path: str, records: Sequence[dict]) -> "Pretrained":
        """Return the configuration of a pipeline that draws records; no weights are fetched.

        InputError where its family has no use for their input pictures, or needs some, and where one cannot be read.
        """
        from ..models.families import FAMILIES
        from ..system.input_pictures import check_all_readable, check_inputs, input_names

        config = self.config(path, any(map(input_names, records)))
        family = FAMILIES[type(config)]
        check_inputs(records, family.takes_pictures, family.stock, family.most_pictures)
        check_all_readable(records)
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


def trained_guidance(loras: Sequence[str | None]) -> float | None:
    """Return the guidance scale that the first LoRA with a record was trained with; None where none has one."""
    scales = (folder.guidance_scale() for folder in recorded_folders(loras))
    return next((scale for scale in scales if scale is not None), None)


def recorded_folders(loras: Sequence[str | None]) -> "Iterator[RunFolder]":
    """Yield the folders with the records of these LoRAs, of those that have one."""
    from ..experiment.run_folder import folder_of_lora
    from ..models.lora.files import lora_file

    folders = (folder_of_lora(lora_file(lora)) for lora in loras if lora is not None)
    yield from (folder for folder in folders if folder is not None)


def check_sources(pipelines: Sequence[str | None], loras: Sequence[str | None], revision: str | None) -> None:
    """Raise ValueError for a pipeline or a LoRA that does not exist, before any is used or weights are fetched."""
    from ..models.lora.files import lora_file
    from ..models.pipeline_files import locate

    for lora in filter(None, loras):
        lora_file(lora)
    for pipeline in filter(None, pipelines):
        locate(pipeline, revision, weights=False)
