"""Specialists that teach: adapters of the base model beside the one that is trained."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Teacher:
    name: str
    """What it is called in options and tables."""
    lora: str | None
    """Folder of its LoRA, trained on the same base; None: the base itself, say under more guidance."""
    tasks: tuple[str, ...] = ()
    """What it teaches; none: it is an anchor only."""
    guidance_scale: float | None = None
    """The guidance it was trained for; None: the run's."""

    def guidance(self, of_run: float) -> float:
        """The scale it draws with."""
        return of_run if self.guidance_scale is None else self.guidance_scale
