"""Judge a LoRA of the shipped pipeline on held-out prompts: `python examples/evaluate_a_lora.py FOLDER [PROMPTS]`."""

import sys

from rich.console import Console

from afterflow.evaluation.report import ShapesSettings, render_report
from afterflow.evaluation.shapes_suite import compare_pictures, suite_pictures, suite_prompts
from afterflow.models.sd3 import SD3


def main(lora: str, prompts: int = 280) -> None:
    """Draw the same prompts from the same noise with and without the LoRA, and print figures with intervals."""
    settings = ShapesSettings(prompts=prompts, images=4)
    model = SD3("tiny").load()
    records = suite_prompts(settings, model.drawn_size)
    base = suite_pictures(model, records, settings)
    model.load_lora(lora)
    tuned = suite_pictures(model, records, settings)
    report, _, _ = compare_pictures(settings, records, tuned, base, lora, "tiny")
    Console().print(render_report(report))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
