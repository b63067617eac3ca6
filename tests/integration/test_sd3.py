"""The border to diffusers: what we draw, save and load is what the stock pipeline draws, saves and loads."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel

from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.cli.main import main
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.models import sd3
from afterflow.models.adapters import Full, LoRA, attach, before_training
from afterflow.models.generate import decode_groups, solve_ode
from afterflow.models.lora import files as lora
from afterflow.models.sd3 import SD3
from afterflow.models.tiny_parts.autoencoder import make_autoencoder
from afterflow.models.tiny_parts.build import assemble, transformer_config, untrained_tiny_sd3
from afterflow.models.tiny_parts.text import WIDTHS, make_text_encoder
from afterflow.models.tiny_parts.tokenizer import make_tokenizer
from afterflow.models.wrappers import guided, in_context
from afterflow.sampling.conditioning import condition
from afterflow.system.errors import ConfigError
from tinies import T5, built, keep_blocks

PROMPTS = ["a picture of a red heart and a blue circle", 'a sign that says "K4ZN"']
NO_T5 = {"text_encoder_3": None, "tokenizer_3": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Path(built("sd3", tmp_path_factory.mktemp("pipeline")).path)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AFTERFLOW_CACHE", str(tmp_path / "cache"))


def load(folder, **options):
    return SD3(str(folder), **options).load()


def stock_images(folder, noise, steps, guidance, length, lora_folder=None, absent=NO_T5, **size):
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, **absent)
    pipe.set_progress_bar_config(disable=True)
    if lora_folder is not None:
        pipe.load_lora_weights(lora_folder)
    drawn = pipe(
        PROMPTS,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=noise,
        max_sequence_length=length,
        output_type="np",
        **size,
    )
    return np.rint(255 * drawn.images).astype(np.uint8)


def our_images(model, noise, steps, guidance):
    cond = condition(model.encode(PROMPTS), model.encode([""]), [{"prompt": prompt} for prompt in PROMPTS])
    velocity = guided(model.velocity(model.module), guidance)
    return decode_groups(model, solve_ode(velocity, cond, noise[:, None], model.schedule.times(steps)))[:, 0]


@pytest.mark.parametrize("steps, guidance, length", [(4, 1.0, 0), (5, 4.5, 0), (3, 7.0, 256)])
def test_the_ode_draws_what_the_stock_pipeline_draws(folder, steps, guidance, length):
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    ours = our_images(load(folder, max_sequence_length=length), noise, steps, guidance)
    stock = stock_images(folder, noise, steps, guidance, length)
    # One grey level where rounding to a byte falls the other way.
    assert np.abs(ours.astype(int) - stock).max() <= 1
    assert (ours != stock).mean() < 0.01


def test_a_saved_lora_draws_the_same_in_the_stock_pipeline(folder, tmp_path):
    """alpha is not the rank here: without the adapter's metadata diffusers would load it at half its strength."""
    model = load(folder, max_sequence_length=0)
    for parameter in attach(model, LoRA(rank=4, alpha=8)).values():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(2))
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    model.save_lora(tmp_path / "lora")
    ours, stock = our_images(model, noise, 3, 1.0), stock_images(folder, noise, 3, 1.0, 0, tmp_path / "lora")
    untouched = stock_images(folder, noise, 3, 1.0, 0)
    assert np.abs(ours.astype(int) - stock).max() <= 1
    assert np.abs(ours.astype(int) - untouched).mean() > 1


def test_a_lora_comes_back_bit_for_bit(folder, tmp_path):
    model, again = (load(folder, max_sequence_length=0) for _ in range(2))
    for parameter in attach(model, LoRA(rank=4, alpha=8)).values():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(2))
    model.save_lora(tmp_path / "lora")
    again.load_lora(tmp_path / "lora")
    noise = torch.randn(2, 4, 16, 16)
    assert np.array_equal(our_images(model, noise, 3, 1.0), our_images(again, noise, 3, 1.0))


def test_a_full_fine_tune_is_a_pipeline_of_its_own(folder, tmp_path):
    model = load(folder, max_sequence_length=0)
    with torch.no_grad():
        for parameter in attach(model, Full()).values():
            parameter.mul_(1.05)
    model.save_pipeline(tmp_path / "model", model.module)
    noise = torch.randn(2, 4, 16, 16)
    ours, stock = our_images(model, noise, 3, 1.0), stock_images(tmp_path / "model", noise, 3, 1.0, 0)
    assert np.abs(ours.astype(int) - stock).max() <= 1


@pytest.mark.parametrize("tune", [LoRA(rank=2, alpha=4), Full()], ids=["LoRA", "Full"])
def test_the_reference_stays_where_training_began(folder, tune):
    model = load(folder, max_sequence_length=0)
    cond = condition(model.encode(PROMPTS), model.encode([""]), [{"prompt": prompt} for prompt in PROMPTS])
    x, t = torch.randn(2, 4, 16, 16), torch.full((2,), 0.7)
    with torch.no_grad():
        before = model.velocity(model.module)(x, t, cond)
        parameters = attach(model, tune)
        frozen = in_context(*before_training(model, tune))
        for parameter in parameters.values():
            parameter.add_(0.1)
        torch.testing.assert_close(frozen(x, t, cond), before, rtol=0, atol=0)
        assert not torch.allclose(model.velocity(model.module)(x, t, cond), before, atol=1e-3)


def test_images_survive_the_way_into_latents_in_our_range_and_layout(folder):
    model = load(folder)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    latents = model.encode_images(images)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    expected = (model.vae.encode(pixels).latent_dist.mode() - model.vae.config.shift_factor) * (
        model.vae.config.scaling_factor
    )
    torch.testing.assert_close(latents, expected)
    assert latents.shape[1:] == model.latent_shape
    assert model.decode(latents).shape == images.shape


def test_prompts_are_encoded_once(folder, monkeypatch):
    model = load(folder, max_sequence_length=0)
    first = model.encode(PROMPTS)
    monkeypatch.setattr(sd3.SD3Model, "_run_encoders", lambda *_: pytest.fail("encoded twice"))
    again = load(folder, max_sequence_length=0).encode(PROMPTS)
    assert torch.equal(first.sequence, again.sequence)
    assert first.pooled is not None and again.pooled is not None and torch.equal(first.pooled, again.pooled)


def test_other_encoders_or_another_length_are_not_taken_from_the_cache(folder, tmp_path):
    torch.manual_seed(1)
    untrained_tiny_sd3().save_pretrained(tmp_path / "other")
    texts = [
        load(folder, max_sequence_length=0),
        load(folder, max_sequence_length=3),
        load(tmp_path / "other", max_sequence_length=256),
    ]
    sequences = [model.encode(PROMPTS).sequence for model in texts]
    assert [sequence.shape[1] for sequence in sequences] == [16, 19, 16 + 256]
    assert not torch.equal(sequences[0], sequences[2][:, :16])


def test_a_t5_that_speaks_is_heard_and_a_missing_one_leaves_no_zeros(folder, tmp_path):
    assert not sd3.t5_speaks(folder)
    assert load(folder).encode(PROMPTS).sequence.shape[1] == 16
    (tmp_path / "text_encoder_3").mkdir()
    for loud in (True, False):
        weights = {"encoder.final_layer_norm.weight": torch.full((4,), float(loud))}
        save_file(weights, tmp_path / "text_encoder_3" / "model.safetensors")
        assert sd3.t5_speaks(tmp_path) == loud


def test_a_lora_of_another_architecture_is_refused(folder, tmp_path):
    model = load(folder, max_sequence_length=0)
    attach(model, LoRA(rank=2, alpha=4, targets=("to_q",)))
    model.save_lora(tmp_path / "lora")
    narrow = torch.nn.ModuleDict({"transformer_blocks": torch.nn.Linear(3, 3)})
    with pytest.raises(ValueError, match="another architecture"):
        lora.check_lora_fits(lora.read_lora(tmp_path / "lora"), narrow)


# What the released models have and have not.

RELEASED = {
    "SD3 medium": {"qk_norm": None},
    "SD3.5 medium": {"dual_attention_layers": (0,), "pos_embed_max_size": 24},
    "SD3.5 large": {"dual_attention_layers": (), "pos_embed_max_size": 12},
}
"""Arguments of networks with the features of each."""


def saved(folder, model, t5):
    """The folder of a tiny pipeline with the features of a released one, whose T5 speaks, is null or is not named."""
    torch.manual_seed(0)
    network = SD3Transformer2DModel(**transformer_config(2) | RELEASED[model])
    pipe = assemble(make_autoencoder(), [make_text_encoder(width) for width in WIDTHS], network)
    if t5 == "speaks":
        third = T5EncoderModel(T5Config(**T5 | {"d_model": sum(WIDTHS)}))
        pipe.register_modules(text_encoder_3=third, tokenizer_3=make_tokenizer())
    pipe.save_pretrained(folder)
    if t5 == "unnamed":
        forget_t5(folder / "model_index.json")
    return folder


def forget_t5(file):
    index = json.loads(file.read_text())
    file.write_text(json.dumps({name: part for name, part in index.items() if name not in NO_T5}))


CASES = [(model, t5) for model in RELEASED for t5 in ("speaks", "null", "unnamed")]


@pytest.mark.parametrize("model, t5", CASES)
def test_every_released_kind_draws_what_the_stock_pipeline_draws(tmp_path, model, t5):
    folder = saved(tmp_path / "pipeline", model, t5)
    ours = load(folder, size=32, width=64)
    assert ours.text_shape[0] == (16 + 256 if t5 == "speaks" else 16)
    noise = torch.randn(2, *ours.latent_shape, generator=torch.Generator().manual_seed(1))
    absent = {} if t5 == "speaks" else NO_T5
    for steps, guidance in ((1, 1.0), (3, 4.5)):
        size = {"height": 32, "width": 64}
        stock = stock_images(folder, noise, steps, guidance, ours.t5_tokens, absent=absent, **size)
        made = our_images(ours, noise, steps, guidance)
        assert made.shape == (2, 32, 64, 3) and made.std() > 5
        assert np.abs(made.astype(int) - stock).max() <= 1 and (made != stock).mean() < 0.01


SOME = [("SD3 medium", "speaks"), ("SD3.5 medium", "unnamed"), ("SD3.5 large", "unnamed")]
BOTH = ("to_q", "to_out.0")  # of both attentions


@pytest.mark.parametrize("model, t5", SOME)
def test_a_lora_of_every_released_kind_draws_the_same_in_the_stock_pipeline(tmp_path, model, t5):
    folder = saved(tmp_path / "pipeline", model, t5)
    ours, again = load(folder), load(folder)
    for parameter in attach(ours, LoRA(rank=8, alpha=3, targets=BOTH)).values():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(2))
    ours.save_lora(tmp_path / "lora")
    layers = again.load_lora(tmp_path / "lora").layers
    assert any("attn2" in layer for layer in layers) == (model == "SD3.5 medium")
    noise = torch.randn(2, *ours.latent_shape, generator=torch.Generator().manual_seed(1))
    absent = {} if t5 == "speaks" else NO_T5
    stock = stock_images(folder, noise, 3, 4.5, ours.t5_tokens, tmp_path / "lora", absent)
    drawn = our_images(ours, noise, 3, 4.5).astype(int)
    assert np.abs(drawn - stock).max() <= 1 and np.abs(drawn - our_images(again, noise, 3, 4.5)).max() <= 1
    assert np.abs(drawn - our_images(load(folder), noise, 3, 4.5)).max() > 5


@pytest.mark.parametrize("model, t5", SOME)
def test_every_released_kind_replays_its_rollout_at_ratio_one(tmp_path, monkeypatch, model, t5):
    monkeypatch.chdir(tmp_path)
    config, tune = SD3(str(saved(tmp_path / "pipeline", model, t5))), LoRA(rank=2, alpha=4, targets=BOTH)
    algorithm = FlowGRPO({"jpeg_compressibility": 1.0}, steps=3, group=2, beta=0.01)
    run = Run(algorithm, ShapesPrompts(count=4), config, tune, name="kind")
    run = run.with_options(iterations=1, batch=2, chunk=4, retained_rows=0, sample_every=0, guidance_scale=3.0)
    line = json.loads((execute(run, "kind").folder / "metrics.jsonl").read_text())
    assert line["ratio_max"] == line["ratio_mean"] == 1.0 and line["grad_norm"] > 0


def test_a_size_beyond_the_network_s_positions_is_refused_before_weights(tmp_path):
    folder = saved(tmp_path / "pipeline", "SD3.5 large", "null")
    assert load(folder, size=96).latent_shape == (4, 48, 48)
    for wrong in ({"size": 104}, {"size": 32, "width": 104}):
        with pytest.raises(ConfigError, match="this model draws up to 96 pixels a side"):
            SD3(str(folder), **wrong).load("meta")


@pytest.mark.parametrize("t5", ["speaks", "unnamed"])
def test_sd35_large_is_planned_from_its_configuration(tmp_path, monkeypatch, capsys, t5):
    monkeypatch.chdir(tmp_path)
    released = runpy.run_path(str(Path(__file__).parents[2] / "bench" / "released.py"))
    released["write_configurations"](released["SD35_LARGE"], tmp_path / "large")
    if t5 == "unnamed":
        forget_t5(tmp_path / "large" / "model_index.json")
        (tmp_path / "large" / "text_encoder_3" / "config.json").unlink()
        (tmp_path / "large" / "text_encoder_3").rmdir()
    model = SD3(str(tmp_path / "large"), dtype="bfloat16").load("meta")
    assert model.latent_shape == (16, 128, 128)
    assert model.text_shape == (77 + (256 if t5 == "speaks" else 0), 4096, 2048)
    assert len(model.module.transformer_blocks) == 38
    assert sum(parameter.numel() for parameter in model.module.parameters()) == pytest.approx(8.06e9, rel=0.01)
    keep_blocks(tmp_path / "large", num_layers=2)
    assert main(["train", "shapes_flow_grpo", "--plan", "--base", "large", "--model.size", "512"]) == 0
    assert "frozen and trained weights" in capsys.readouterr().out
