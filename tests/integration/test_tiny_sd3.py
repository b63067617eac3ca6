"""The shipped pipeline is what its card says."""

import re

import numpy as np
import pytest
from diffusers import StableDiffusion3Pipeline

from afterflow.envs.shapes.verify import verify
from afterflow.evaluation.report import ShapesSettings
from afterflow.evaluation.shapes_suite import suite_pictures, suite_prompts
from afterflow.models.pipeline_files import TINY
from afterflow.models.sd3 import SD3


def test_it_is_small_and_holds_nothing_but_safetensors_and_text():
    files = [file for file in TINY.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 16 * 2**20
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".md"}
    assert (TINY / "README.md").is_file()


def test_stock_diffusers_draws_with_it_as_it_is():
    pipe = StableDiffusion3Pipeline.from_pretrained(TINY)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a picture of a red circle", num_inference_steps=2).images[0].size == (32, 32)


def test_it_has_at_most_16_latent_tokens():
    config = SD3(str(TINY)).load().module.config
    assert (config.sample_size // config.patch_size) ** 2 <= 16


def test_it_draws_what_it_is_asked_for_as_often_as_its_card_says():
    """Fewer prompts than the card's, so a wide margin; a pipeline that drew noise would pass none."""
    said = float(re.search(r"six tags: (0\.\d+) at guidance 2\.5", (TINY / "README.md").read_text()).group(1))
    settings = ShapesSettings(prompts=49, images=1, guidance=2.5)
    records = [record for record in suite_prompts(settings, (32, 32)) if record["tag"] != "text"]
    pictures = suite_pictures(SD3("tiny").load(), records, settings)[:, 0]
    passed = [verify(record, picture)["strict"] for record, picture in zip(records, pictures)]
    tags = sorted({record["tag"] for record in records})
    means = [np.mean([p for p, r in zip(passed, records) if r["tag"] == tag]) for tag in tags]
    assert np.mean(means) == pytest.approx(said, abs=0.2)
