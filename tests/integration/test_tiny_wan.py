"""The shipped tiny Wan is what its card says."""

import re

import numpy as np
import pytest
from diffusers import WanPipeline

from afterflow.envs.shapes.motion import verify_clip
from afterflow.envs.shapes.moving import MOVING_TAGS, moving_suite
from afterflow.models.generate import draw_images
from afterflow.models.pipeline_files import TINY_WAN
from afterflow.models.wan import Wan


def test_it_is_small_and_holds_nothing_but_safetensors_and_text():
    files = [file for file in TINY_WAN.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 8 * 2**20
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".md"}
    assert (TINY_WAN / "README.md").is_file()


def test_stock_diffusers_draws_with_it_as_it_is():
    pipe = WanPipeline.from_pretrained(TINY_WAN)
    pipe.set_progress_bar_config(disable=True)
    clip = pipe("a red circle moving left", height=32, width=32, num_frames=9, num_inference_steps=2).frames[0]
    assert clip.shape == (9, 32, 32, 3)


def test_it_moves_what_it_is_asked_for_as_often_as_its_card_says():
    """Fewer prompts and steps than the card's, so a wide margin; a pipeline that drew noise would pass none."""
    said = float(re.search(r"three kinds: (0\.\d+) at guidance 2\.5", (TINY_WAN / "README.md").read_text()).group(1))
    model = Wan("tiny_wan", height=32, width=32, frames=9, max_sequence_length=16).load()
    records = moving_suite("test", 15, 0, MOVING_TAGS)
    clips = draw_images(model, records, 1, 10, 2.5, 0)[:, 0]
    passed = np.array([verify_clip(record, clip)["strict"] for record, clip in zip(records, clips)])
    means = [passed[[r["tag"] == tag for r in records]].mean() for tag in MOVING_TAGS]
    assert np.mean(means) == pytest.approx(said, abs=0.2)
