"""afterflow sample: pictures of prompts by a model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from ..system.atomic_files import make_folder
from ..system.checks import check_at_least_one
from ..system.errors import ConfigError
from ..system.input_pictures import read_input
from ..system.own_folders import check_own_file, is_own_picture
from ..system.text_files import check_text
from .model_options import ModelOptions, check_sources, trained_guidance
from .output import check_png, print_progress
from .parsing import parse_options


def sample_command(args: Sequence[str]) -> None:
    """Draw pictures of prompts."""
    parse_options(Sample, args, "afterflow sample")()


@dataclass(frozen=True)
class Sample:
    """Draw pictures of prompts into one grid, a row for each prompt."""

    model: Positional[str]
    """Hub id or folder of a pipeline, or `tiny`."""
    prompts: Positional[tuple[str, ...]]
    """The prompts, every one in quotes."""
    lora: str | None = None
    """Run, folder or file of a LoRA to put on MODEL."""
    input: tuple[str, ...] = ()
    """Files of the pictures that the prompts are about, for a model that edits or begins with a picture."""
    images: Annotated[int, arg(aliases=["-n"])] = 8
    """Number of images of each prompt."""
    out: str = "grid.png"
    """File of the picture."""
    steps: int = 20
    """Number of ODE steps."""
    guidance: float | None = None
    """Scale of classifier-free guidance; 1 is without guidance.  None: the scale that the LoRA was trained with, or the
    usual one of the family, and 1 of a pipeline that comes with afterflow."""
    seed: int = 0
    """Seed of the starting noise."""
    source: OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)

    def __post_init__(self) -> None:
        if not self.prompts or not all(prompt.strip() for prompt in self.prompts):
            raise ConfigError("a prompt is missing or empty; put each in quotes")
        for prompt in self.prompts:
            check_text(prompt, "prompt")
        check_at_least_one(self, "images", "steps")
        check_png("--out", self.out)
        for file in (Path(self.out), Path(self.out).with_suffix(".gif")):  # the second of clips
            check_own_file(file, is_own_picture)

    def __call__(self) -> None:
        check_sources([self.model], [self.lora], self.source.revision)
        from ..experiment.image_grid import save_groups
        from ..models.families import check_guidance
        from ..models.generate import draw_images

        for name in self.input:
            read_input(name)  # what cannot be read is said before weights are loaded
            if Path(name).resolve() == Path(self.out).resolve():
                raise ConfigError(f"--out {self.out}: it is the input, which would be replaced; name another file")
        records = [{"prompt": prompt, "input": list(self.input)} for prompt in self.prompts]
        source = self.source.as_trained(self.model, (self.lora,))
        config, scale = source.check_prompts(self.model, records), self.scale(source.revision)
        check_guidance(config, scale)
        model = source.load(self.model, self.lora, inputs=bool(self.input))
        images = draw_images(model, records, self.images, self.steps, scale, self.seed)
        make_folder(Path(self.out).parent)
        save_groups(Path(self.out), records, images, 1)
        print(self.out)

    def scale(self, revision: str | None) -> float:
        """Return the guidance scale: as given, of the LoRA's training, or usual for the family."""
        from ..models.families import usual_guidance

        scale = trained_guidance((self.lora,)) if self.guidance is None else self.guidance
        if scale is None:
            scale = usual_guidance(self.model, revision)
        if self.guidance is None and scale != 1:
            print_progress(f"guidance scale {scale:g}")
        return scale
