"""Text encoders: how many prompts they read at once, what they leave undone, and how often they are loaded."""

import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, Qwen3Config, T5Config

from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.sft import SFT
from afterflow.data.images import ShapesImages
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.models import text_encoders
from afterflow.models.adapters import LoRA
from afterflow.models.pipeline import InputPictures, Model
from afterflow.models.text_encoders import MOST_NUMBERS, prompt_numbers, prompts_per_pass
from afterflow.system.errors import TrainingStopped
from tinies import saved

pytestmark = pytest.mark.usefixtures("own_folder")
PROMPTS = [f"a picture of {count} red hearts" for count in range(5)]
T5_XXL = T5Config(d_model=4096, d_ff=10240, num_layers=24, num_heads=64)
QWEN3_4B = Qwen3Config(hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32)
QWEN3_8B = Qwen3Config(hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32)
CLIP_G = CLIPTextConfig(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20)


@pytest.mark.parametrize(
    "config, tokens, prompts", [(CLIP_G, 77, 64), (T5_XXL, 256, 64), (T5_XXL, 512, 26), (QWEN3_4B, 512, 14)]
)
def test_large_encoders_read_fewer_prompts_at_once(config, tokens, prompts):
    """SD3's three read 64, as before; FLUX.2-klein's keeps the states of 37 layers."""
    pipe = type("Pipe", (), {"text_encoder": type("Encoder", (), {"config": config})})
    assert prompts_per_pass(pipe, {"tokenizer": tokens, "tokenizer_3": 10**6}) == prompts
    pipe.text_encoder_3 = type("Encoder", (), {"config": QWEN3_8B})
    assert prompts_per_pass(pipe, {"tokenizer": tokens, "tokenizer_3": 10**6}) == 1


@pytest.mark.parametrize("name", ["sd3", "flux2_klein", "qwen_image", "qwen_image_edit"])
def test_no_encoder_guesses_words(name):
    model = saved(name).load()
    pipe = model.pipeline_with_encoders(*(["processor"] if name == "qwen_image_edit" else []))
    encoders = [part for name in model.encoders if isinstance(part := getattr(pipe, name, None), torch.nn.Module)]
    assert encoders
    for part in encoders:
        layers = part.modules()
        words = [
            x
            for x in layers
            if isinstance(x, torch.nn.Linear) and x.out_features == part.config.get_text_config().vocab_size
        ]
        assert not words


@pytest.mark.parametrize("name", ["flux2_klein", "qwen_image"])
def test_without_guesses_of_words_prompts_are_encoded_to_the_same_bits(name):
    model = saved(name).load()
    whole = model.pipeline(("vae",))
    assert whole.text_encoder.lm_head.out_features > 100
    with torch.no_grad():
        expected = model.embed(whole, list(PROMPTS)).sequence
    assert torch.equal(model._run_encoders(PROMPTS).sequence, expected)


def test_prompts_pass_in_as_many_as_the_bound_allows(monkeypatch):
    model = saved("flux2_klein").load()
    together = model._run_encoders(PROMPTS)
    config = model.pipeline_with_encoders().text_encoder.config
    monkeypatch.setattr(text_encoders, "MOST_NUMBERS", 2 * prompt_numbers(config, model.text_shape[0]) + 1)
    sizes, embed = [], type(model).embed
    monkeypatch.setattr(type(model), "embed", lambda self, *about: sizes.append(len(about[1])) or embed(self, *about))
    torch.testing.assert_close(model._run_encoders(PROMPTS).sequence, together.sequence)
    assert sizes == [2, 2, 1] and MOST_NUMBERS > 10**9


def small(name, data=None):
    algorithm = FlowGRPO({"jpeg_compressibility": 1.0}, steps=2, group=2) if data is None else SFT()
    prompts = ShapesPrompts(count=3, tags=("counting",)) if data is None else data
    run = Run(algorithm, prompts, saved("sd3"), LoRA(rank=2, alpha=4), name=name)
    held_out = ShapesPrompts("test", count=2, tags=("counting",))
    options = {"eval_every": 1, "eval_images": 1, "held_out": held_out}
    return run.with_options(iterations=1, batch=2, chunk=2, sample_every=0, **options)


@pytest.mark.parametrize("data", [None, ShapesImages(count=4, tags=("counting",))], ids=["explores", "learns"])
def test_a_run_loads_its_encoders_once_and_lets_them_go(data, monkeypatch, tmp_path):
    """For the prompts that it learns from and for those held out, whose embeddings are those of a call of their own."""
    monkeypatch.setenv("AFTERFLOW_CACHE", str(tmp_path / "cache"))
    models, texts, pipeline, run_encoders = [], [], Model.pipeline, Model._run_encoders

    def counted(self, without=(), **parts):
        models.extend([self] if parts else [])
        return pipeline(self, without, **parts)

    def listed(self, prompts):
        texts.append(list(prompts))
        return run_encoders(self, prompts)

    monkeypatch.setattr(Model, "pipeline", counted)
    monkeypatch.setattr(Model, "_run_encoders", listed)
    execute(small("once", data))
    assert len(models) == 1 and len(texts) == 2 and models[0]._loaded is None
    assert all(of_list[-1] == "" for of_list in texts) and not set(texts[0][:-1]) & set(texts[1][:-1])


def test_out_of_memory_while_prompts_are_encoded_has_advice_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("AFTERFLOW_CACHE", str(tmp_path / "cache"))

    def full(*about):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Model, "pipeline_with_encoders", full)
    with pytest.raises(TrainingStopped, match=r"in encoding of prompts: .*--model.max-sequence-length"):
        execute(small("full"))


def test_an_editor_reads_the_empty_text_once_for_the_same_pictures(monkeypatch, tmp_path):
    """And what it reads is what it would be one by one."""
    monkeypatch.setenv("AFTERFLOW_CACHE", str(tmp_path / "cache"))
    model, read = saved("qwen_image_edit").load(), []
    embed = type(model).embed
    seen = [(np.full((64, 64, 3), 80 * i, np.uint8), np.full((64, 64, 3), 80 * i, np.uint8)) for i in range(2)]
    rows = torch.tensor([[0, 1], [0, 1], [1, 0]])
    one_by_one = [
        model.read_with_pictures([text], InputPictures(seen, ["a", "b"], rows[i : i + 1]))
        for i, text in enumerate("xyz")
    ]
    monkeypatch.setattr(type(model), "embed", lambda self, *about: read.append(about[1]) or embed(self, *about))
    together = model.read_with_pictures(list("xyz"), InputPictures(seen, ["a", "b"], rows))
    assert read == [["x"], ["y"], ["z"], [""], [""]]
    for i, alone in enumerate(one_by_one):
        assert torch.equal(together["sequence"][[i, 3 + i]], alone["sequence"])
