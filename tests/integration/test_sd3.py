"""The border to diffusers: what we draw, save and load is what the stock pipeline draws, saves and loads."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import save_file

from afterflow.models import sd3
from afterflow.models.adapters import Full, LoRA, attach, before_training
from afterflow.models.generate import decode_groups, solve_ode
from afterflow.models.lora import files as lora
from afterflow.models.sd3 import SD3
from afterflow.models.tiny_parts.build import untrained_tiny_sd3
from afterflow.models.wrappers import guided, in_context
from afterflow.sampling.conditioning import condition
from tinies import built

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


def stock_images(folder, noise, steps, guidance, length, lora_folder=None):
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, **NO_T5)
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
