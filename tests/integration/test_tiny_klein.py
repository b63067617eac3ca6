"""The shipped tiny FLUX.2-klein is what its card says."""

import re

import numpy as np
import pytest
from diffusers import Flux2KleinPipeline
from PIL import Image

from afterflow.envs.shapes.edit_verifier import verify_edit
from afterflow.envs.shapes.edits import edit_suite
from afterflow.models.generate import draw_images
from afterflow.models.pipeline_files import TINY_KLEIN
from afterflow.recipes.editing_shapes import TINY_KLEIN as MODEL
from afterflow.system.input_pictures import read_input


def test_it_is_small_and_holds_nothing_but_safetensors_and_text():
    files = [file for file in TINY_KLEIN.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 6 * 2**20
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".jinja", ".md"}
    assert (TINY_KLEIN / "README.md").is_file()


def test_stock_diffusers_edits_with_it_as_it_is():
    pipe = Flux2KleinPipeline.from_pretrained(TINY_KLEIN)
    pipe.set_progress_bar_config(disable=True)
    options = {"height": 64, "width": 64, "num_inference_steps": 2, "max_sequence_length": 16}
    edited = pipe(prompt="make the red circle blue", image=Image.new("RGB", (64, 64), "gray"), **options).images[0]
    assert edited.size == (64, 64)


def test_it_does_what_it_is_asked_as_often_as_its_card_says():
    """Fewer requests and steps than the card's, so a wide margin; a pipeline that drew noise would pass none."""
    said = float(re.search(r"seven tasks: (0\.\d+) without guidance", (TINY_KLEIN / "README.md").read_text()).group(1))
    records = edit_suite("test", 8, 0)
    pictures = draw_images(MODEL.load(), records, 1, 10, 1.0, 0)[:, 0]
    verdicts = [verify_edit(record, picture).strict for record, picture in zip(records, pictures)]
    assert np.mean(verdicts) == pytest.approx(said, abs=0.15) and np.mean(verdicts) > 0.05
    unchanged = [verify_edit(record, read_input(record["input"])).strict for record in records]
    assert np.mean(unchanged) == 0
