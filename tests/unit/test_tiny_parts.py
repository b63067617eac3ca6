import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline, StableDiffusion3Pipeline
from transformers import T5EncoderModel

from afterflow.envs.shapes.prompts import draw
from afterflow.envs.shapes.world import TAGS
from afterflow.models.flux2_klein import Flux2Klein
from afterflow.models.sd3 import SD3
from afterflow.models.tiny_parts.autoencoder import make_autoencoder, standardize, to_images
from afterflow.models.tiny_parts.build import draw_records, edit, make_pairs, transformer_config, untrained_tiny_sd3
from afterflow.models.tiny_parts.editing import (
    TEXT_TOKENS,
    TEXT_WIDTH,
    assemble_editing,
    even_out_states,
    make_editing_transformer,
    make_language_model,
    make_patch_autoencoder,
)
from afterflow.models.tiny_parts.ship import ship
from afterflow.models.tiny_parts.text import WIDTHS, contrastive_loss, make_text_encoder, token_ids
from afterflow.models.tiny_parts.tokenizer import EOS_ID, MAX_LENGTH, UNK_ID, make_tokenizer
from afterflow.models.vae import to_pixels

FOLDERS = ("run", "shipped")


def words(prompt):
    tokenizer = make_tokenizer()
    return tokenizer.convert_ids_to_tokens(tokenizer(prompt).input_ids)[1:-1]


def test_each_character_of_a_sign_is_one_token_in_its_place():
    assert words('a sign that says "K4ZN"') == ["a", "sign", "that", "says", '"', *"K4ZN", '"']
    assert words("A a") == ["A", "a"]


def test_every_word_of_the_world_is_known_and_every_train_and_test_prompt_fits():
    tokenizer, rng = make_tokenizer(), np.random.default_rng(0)
    prompts = [draw(split, tag, rng, 64)["prompt"] for split in ("train", "test") for tag in TAGS for _ in range(200)]
    prompts.append('a sign that says "ABCDEFGH"')
    ids = tokenizer(prompts).input_ids
    assert max(map(len, ids)) == MAX_LENGTH
    assert not any(UNK_ID in row for row in ids)


def test_an_unknown_word_is_one_unknown_token():
    assert words("a picture of a zebra") == ["a", "picture", "of", "a", "<unk>"]
    assert words("a Zebra!") == ["a", "<unk>", "<unk>"]


def test_a_prompt_that_is_too_long_is_cut_and_still_ends():
    ids = token_ids(make_tokenizer(), ["a picture of a ring and " * 9])
    assert ids.shape == (1, MAX_LENGTH)
    assert ids[0, -1] == EOS_ID


def test_the_tokenizer_survives_its_folder(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    prompt = 'a sign that says "A1Z" zebra'
    assert again(prompt).input_ids == tokenizer(prompt).input_ids
    assert again.model_max_length == MAX_LENGTH


@torch.no_grad()
def test_the_pooled_output_is_the_state_at_the_end_of_the_prompt():
    encoder = make_text_encoder(WIDTHS[0]).eval()
    ids = token_ids(make_tokenizer(), ["a picture of a ring", 'a sign that says "Z9"', ""])
    ends = (ids == EOS_ID).float().argmax(-1)
    assert ends.tolist() == [6, 9, 1]
    found = encoder(ids, output_hidden_states=True)
    states = encoder.text_model(ids).last_hidden_state
    assert torch.allclose(found.text_embeds, encoder.text_projection(states[torch.arange(3), ends]))


def test_a_prompt_that_says_the_same_is_no_negative():
    logits = torch.tensor([[0.0, 9.0, 1.0, 9.0], [9.0, 0.0, 9.0, 2.0]])
    twins = torch.tensor([[True, True, False, True], [True, True, True, False]])
    to_text = (np.log1p(np.e) + np.log1p(np.exp(2))) / 2
    # Masked twins leave each prompt with its own picture alone, and each picture with one edited prompt.
    assert contrastive_loss(logits, twins).item() == pytest.approx(to_text / 2, rel=1e-5)


def test_pictures_survive_the_change_of_scale():
    images = np.arange(256, dtype=np.uint8).repeat(12).reshape(1, 32, 32, 3)
    assert np.array_equal(to_images(to_pixels(images)), images)


@torch.no_grad()
def test_standardized_latents_have_mean_zero_and_std_one():
    torch.manual_seed(0)
    images = make_pairs(draw_records("train", 32, np.random.default_rng(0)), np.random.default_rng(1)).images
    vae = make_autoencoder().eval()
    standardize(vae, images)
    z = vae.encode(to_pixels(images)).latent_dist.mode()
    z = (z - vae.config.shift_factor) * vae.config.scaling_factor
    assert z.mean().item() == pytest.approx(0, abs=1e-4)
    assert z.std().item() == pytest.approx(1, abs=1e-4)


def test_an_edited_prompt_differs_unless_the_edit_is_held_out():
    rng = np.random.default_rng(0)
    records = [draw("train", tag, rng) for tag in TAGS for _ in range(50)]
    changed = [edit(record, rng)["prompt"] != record["prompt"] for record in records]
    assert 0.5 < np.mean(changed) < 1


def test_the_pipeline_is_saved_and_loaded_and_draws(tmp_path):
    torch.manual_seed(0)
    untrained_tiny_sd3().save_pretrained(tmp_path)
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path, text_encoder_3=None, tokenizer_3=None)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a picture of a red circle", num_inference_steps=2).images[0]
    assert image.size == (32, 32)


@torch.no_grad()
def test_a_prompt_without_t5_is_sixteen_tokens():
    states, _, pooled, _ = untrained_tiny_sd3().encode_prompt("a picture of a star", None, None, max_sequence_length=0)
    assert states.shape == (1, MAX_LENGTH, transformer_config()["joint_attention_dim"])
    assert pooled.shape == (1, transformer_config()["pooled_projection_dim"])


def test_the_shipped_folder_loads_without_a_word_and_its_t5_is_silence(tmp_path):
    """Stock diffusers wants all three encoders; ours says what SD3 sees without one: zeros."""
    torch.manual_seed(0)
    untrained_tiny_sd3().save_pretrained(tmp_path / "run")
    ship(tmp_path / "run", tmp_path / "shipped")
    shipped = StableDiffusion3Pipeline.from_pretrained(tmp_path / "shipped")
    without = StableDiffusion3Pipeline.from_pretrained(tmp_path / "shipped", text_encoder_3=None, tokenizer_3=None)
    assert isinstance(shipped.text_encoder_3, T5EncoderModel)
    # Ours leaves out what says nothing, in the shipped folder and in one fine-tuned from it alike.
    assert SD3(str(tmp_path / "shipped")).load().encode(["a picture"]).sequence.shape[1] == MAX_LENGTH
    drawn = [
        pipe(
            "a picture of a red circle",
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(1),
            output_type="np",
        ).images
        for pipe in (shipped, without)
    ]
    assert drawn[0].shape == (1, 32, 32, 3)
    assert np.array_equal(*drawn)


@torch.no_grad()
def test_the_shipped_klein_has_half_the_bytes_and_loads_in_32_bits(tmp_path):
    """Stock diffusers lets the encoder's own file say in what it computes; halves would not fit the transformer."""
    torch.manual_seed(0)
    pipeline = assemble_editing(make_patch_autoencoder(), make_language_model(), make_editing_transformer(1, 1))
    pipeline.save_pretrained(tmp_path / "run")
    ship(tmp_path / "run", tmp_path / "shipped")
    weights = [sum(file.stat().st_size for file in (tmp_path / name).rglob("*.safetensors")) for name in FOLDERS]
    assert weights[1] < 0.55 * weights[0]
    shipped = Flux2KleinPipeline.from_pretrained(tmp_path / "shipped")
    assert {part.dtype for part in (shipped.transformer, shipped.vae, shipped.text_encoder)} == {torch.float32}
    size = {"height": 64, "width": 64, "num_inference_steps": 1, "max_sequence_length": TEXT_TOKENS}
    assert shipped(prompt="make the red circle blue", **size).images[0].size == (64, 64)
    encoded = (
        Flux2Klein(str(tmp_path / "shipped"), size=64, max_sequence_length=TEXT_TOKENS).load().encode(["remove it"])
    )
    assert encoded.sequence.shape[1:] == (TEXT_TOKENS, 3 * TEXT_WIDTH)


@torch.no_grad()
def test_the_first_layer_of_the_tiny_klein_sees_every_direction_of_text():
    """One word of a request is a small part of its states, and must not be one of what is made of them."""
    torch.manual_seed(0)
    pipeline = assemble_editing(make_patch_autoencoder(), make_language_model(), make_editing_transformer(1, 1))
    requests = [f"make the {color} star {other}" for color in ("red", "blue", "green") for other in ("pink", "black")]

    def share_of_a_word() -> float:
        states, _ = pipeline.encode_prompt(requests, max_sequence_length=TEXT_TOKENS)
        seen = pipeline.transformer.context_embedder(states)
        return float((seen[0] - seen[1]).norm() / seen[0].norm())

    before = share_of_a_word()
    even_out_states(pipeline, requests)
    assert share_of_a_word() > 2 * before
    states = pipeline.encode_prompt(requests, max_sequence_length=TEXT_TOKENS)[0].flatten(0, 1)
    spread = torch.linalg.svdvals(pipeline.transformer.context_embedder(states))
    assert spread[0] < 5 * spread[20]
