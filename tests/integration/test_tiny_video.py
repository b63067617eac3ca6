"""How the parts of the tiny Wan are made."""

import json

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

from afterflow.algorithms.sft import SFT
from afterflow.data.clips import MovingClips
from afterflow.envs.shapes.moving import draw_moving
from afterflow.experiment import stages
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.experiment.stages import BuildParts, Chain, execute_chain
from afterflow.models.adapters import Full
from afterflow.models.tiny_parts import video
from afterflow.models.wan import Wan

PARTS = BuildParts("Wan", "parts", pictures=32, autoencoder_steps=2, text_steps=2)
MODEL = Wan(str(PARTS.model), height=32, width=32, frames=9, max_sequence_length=16)
RUN = Run(SFT(), MovingClips(count=4), MODEL, Full(), name="pretrained").with_options(
    iterations=1, batch=4, chunk=4, inference_steps=2, sample_every=0
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder where a tiny Wan was built and its transformer trained, in this process."""
    folder = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(stages, "train_in_subprocess", lambda run, recipe, processes: execute(run, recipe))
        execute_chain(Chain("scratch", (PARTS, RUN)))
    return folder


@pytest.fixture
def parts(folder):
    return folder / PARTS.model


def test_they_are_a_pipeline_of_wan_and_say_how_they_were_made(parts):
    pipe = WanPipeline.from_pretrained(parts)
    frames = pipe("a red circle moving left", height=32, width=32, num_frames=9, num_inference_steps=2).frames
    assert frames.shape == (1, 9, 32, 32, 3)
    report = json.loads((parts / "parts.json").read_text())
    assert report["steps"] == {"autoencoder": 2, "text": 2} and 0 <= report["figures"]["strict_0.0"] <= 1


def test_latents_have_mean_0_and_std_1_in_every_channel():
    torch.manual_seed(0)
    vae = video.make_video_autoencoder().eval()
    _, clips = video.draw_clips("train", 32, np.random.default_rng(0))
    video.standardize_channels(vae, clips)
    with torch.no_grad():
        z = vae.encode(video.to_pixels(clips)).latent_dist.mode()
    of_channels = lambda values: torch.tensor(values).view(-1, 1, 1, 1)
    z = (z - of_channels(vae.config.latents_mean)) / of_channels(vae.config.latents_std)
    assert z.shape[1:] == (4, 5, 16, 16)
    assert torch.allclose(z.mean((0, 2, 3, 4)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(z.std((0, 2, 3, 4)), torch.ones(4), atol=1e-3)


def test_the_encoder_learns_what_each_clause_says():
    torch.manual_seed(0)
    records = [draw_moving("train", tag, np.random.default_rng(i)) for i in range(200) for tag in ("move_two",)]
    labels = video.fact_labels(records)
    assert labels.shape == (200, 2, 4) and (labels >= 0).all()
    assert (video.fact_labels([draw_moving("train", "move_one", np.random.default_rng(0))])[0, 1] == -100).all()
    reader = video.train_umt5(records, 120, torch.Generator().manual_seed(0), batch=32)
    read = video.fact_accuracy(reader, records)
    assert read["text_moving"] > 0.6 and read["text_color"] > 0.5  # of 4 and of 8


def test_a_transformer_is_trained_from_scratch_on_them(folder):
    model = folder / RUN.folder / "model"
    assert WanPipeline.from_pretrained(model).transformer.config.in_channels == 4
    assert "pipe = WanPipeline.from_pretrained" in (model / "README.md").read_text()


def test_they_are_built_once_and_a_run_from_others_is_refused(folder, monkeypatch, caplog):
    monkeypatch.chdir(folder)
    caplog.set_level("INFO", "afterflow")
    chain = Chain("scratch", (PARTS, RUN))
    execute_chain(chain)
    assert caplog.text.count("is there already") == 2
    (PARTS.model / "another").write_text("")
    with pytest.raises(ValueError, match="pretrained was made from another runs/parts/model; delete it"):
        execute_chain(chain)
    (PARTS.model / "another").unlink()
