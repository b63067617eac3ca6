"""CLIP's rewards on tiny random towers: preprocessing and numbers as transformers has them, open_clip's names read."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPImageProcessor, CLIPModel

import tinies
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.models.adapters import LoRA
from afterflow.models.sd3 import SD3
from afterflow.models.tiny_parts.tokenizer import make_tokenizer
from afterflow.rewards import clip
from afterflow.rewards.base import RewardModels
from afterflow.rewards.registry import check_rewards, find_reward, load_reward

PROMPTS = [{"prompt": "a picture of a red heart"}, {"prompt": "a blue circle"}, {"prompt": "a picture of a red heart"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tinies.clip(tmp_path_factory.mktemp("clip"), words=40)


def pictures(height=40, width=60, count=3):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def models(folder, *names, **options):
    return RewardModels(weights=dict.fromkeys(names, str(folder)), **options)


def by_hand(folder, images, pixels):
    """(B,) cosines by transformers' own path."""
    model, tokens = CLIPModel.from_pretrained(folder), make_tokenizer()
    found = model(
        **tokens([record["prompt"] for record in PROMPTS], padding=True, return_tensors="pt"), pixel_values=pixels
    )
    return (found.text_embeds * found.image_embeds).sum(1).detach().numpy(), model.logit_scale.exp().item()


@pytest.mark.parametrize("height, width", [(40, 60), (61, 33), (28, 28), (20, 20)])
def test_images_are_prepared_as_clips_processor_does(height, width):
    images = pictures(height, width)
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    theirs = CLIPImageProcessor(**size)([Image.fromarray(image) for image in images], return_tensors="pt")
    torch.testing.assert_close(clip.crop_square(images, 28), theirs["pixel_values"], atol=1e-5, rtol=0)


def test_hps_pads_what_is_not_square_with_black_and_only_scales_what_is():
    wide = clip.pad_square(np.full((1, 20, 40, 3), 255, np.uint8), 28)
    black, white = ((level - torch.tensor(clip.CLIP_MEAN)) / torch.tensor(clip.CLIP_STD) for level in (0.0, 1.0))
    assert wide.shape == (1, 3, 28, 28)
    torch.testing.assert_close(wide[0, :, 6, 14], black)
    torch.testing.assert_close(wide[0, :, 7, 14], white, atol=1e-5, rtol=0)
    torch.testing.assert_close(wide[0, :, 20, 14], white, atol=1e-5, rtol=0)
    torch.testing.assert_close(wide[0, :, 21, 14], black)
    near = clip.pad_square(pictures(56, 56), 28) - clip.crop_square(pictures(56, 56), 28)  # two bicubic filters
    assert near.abs().mean() < 0.05


def test_clipscore_and_pickscore_are_the_published_numbers(folder):
    images = pictures()
    cosine, length = by_hand(folder, images, clip.crop_square(images, 28))
    options = models(folder, "clipscore", "pickscore", batch=2)
    assert load_reward("clipscore", options)(images, PROMPTS).values == pytest.approx(100 * cosine / 30, abs=1e-5)
    assert load_reward("pickscore", options)(images, PROMPTS).values == pytest.approx(length * cosine / 26, abs=1e-5)
    assert length == pytest.approx(math.exp(2.6592), rel=1e-3)
    half = load_reward("pickscore", replace(options, dtype="bfloat16"))(images, PROMPTS).values
    assert half == pytest.approx(length * cosine / 26, abs=0.03) and not np.array_equal(half, length * cosine / 26)


def test_hps_is_the_cosine_of_the_padded_picture(folder):
    images = pictures()
    cosine, _ = by_hand(folder, images, clip.pad_square(images, 28))
    assert load_reward("hpsv2", models(folder, "hpsv2"))(images, PROMPTS).values == pytest.approx(cosine, abs=1e-5)


def test_a_prompt_longer_than_clip_reads_is_cut_and_counted(folder):
    long = [{"prompt": "a picture of " + "a red heart and " * 30}, PROMPTS[0], PROMPTS[1]]
    scored = load_reward("clipscore", models(folder, "clipscore"))(pictures(), long)
    assert scored.parts["cut"].tolist() == [1, 0, 0] and np.isfinite(scored.values).all()


def test_open_clips_weights_are_read_under_transformers_names(folder):
    """Written by hand the other way round, as open_clip lays a ViT out."""
    theirs = CLIPModel.from_pretrained(folder).state_dict()
    ours = {
        "positional_embedding": theirs["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": theirs["text_model.embeddings.token_embedding.weight"],
        "text_projection": theirs["text_projection.weight"].T,
        "logit_scale": theirs["logit_scale"],
        "ln_final.weight": theirs["text_model.final_layer_norm.weight"],
        "ln_final.bias": theirs["text_model.final_layer_norm.bias"],
        "visual.class_embedding": theirs["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": theirs["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": theirs["vision_model.embeddings.patch_embedding.weight"],
        "visual.proj": theirs["visual_projection.weight"].T,
    }
    for kind in ("weight", "bias"):
        ours[f"visual.ln_pre.{kind}"] = theirs[f"vision_model.pre_layrnorm.{kind}"]
        ours[f"visual.ln_post.{kind}"] = theirs[f"vision_model.post_layernorm.{kind}"]
        for mine, its in (("visual.transformer", "vision_model"), ("transformer", "text_model")):
            for i in range(2):
                block, layer = f"{mine}.resblocks.{i}", f"{its}.encoder.layers.{i}"
                qkv = [theirs[f"{layer}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
                ours[f"{block}.attn.in_proj_{kind}"] = torch.cat(qkv)
                ours[f"{block}.attn.out_proj.{kind}"] = theirs[f"{layer}.self_attn.out_proj.{kind}"]
                ours[f"{block}.ln_1.{kind}"] = theirs[f"{layer}.layer_norm1.{kind}"]
                ours[f"{block}.ln_2.{kind}"] = theirs[f"{layer}.layer_norm2.{kind}"]
                ours[f"{block}.mlp.c_fc.{kind}"] = theirs[f"{layer}.mlp.fc1.{kind}"]
                ours[f"{block}.mlp.c_proj.{kind}"] = theirs[f"{layer}.mlp.fc2.{kind}"]
    found = clip.from_open_clip(ours)
    assert set(found) == set(theirs)
    assert all(torch.equal(found[name], theirs[name]) for name in theirs)
    with pytest.raises(KeyError):
        clip.from_open_clip({"visual.head.weight": torch.zeros(1)})


def test_the_aesthetic_predictor_is_its_layers_one_after_another(folder, tmp_path):
    layers = tinies.aesthetic(tmp_path / "predictor.safetensors")
    torch.save(load_file(tmp_path / "predictor.safetensors"), tmp_path / "predictor.pth")
    images = pictures()
    pixels = clip.crop_square(images, 28)
    embedding = CLIPModel.from_pretrained(folder).get_image_features(pixel_values=pixels)
    x = torch.nn.functional.normalize(clip.embeddings(embedding), dim=-1)
    for layer in layers:
        x = layer(x)
    for kind in ("safetensors", "pth"):
        options = RewardModels(weights={"clipscore": str(folder), "aesthetic": str(tmp_path / f"predictor.{kind}")})
        assert load_reward("aesthetic", options)(images, PROMPTS).values == pytest.approx(
            x[:, 0].detach().numpy(), abs=1e-5
        )
    with pytest.raises(ValueError, match="aesthetic could not be loaded: name its weights"):
        check_rewards(["aesthetic"])
    for kind in ("safetensors", "pth"):
        (tmp_path / f"page.{kind}").write_text("<html>")
        options = RewardModels(weights={"clipscore": str(folder), "aesthetic": str(tmp_path / f"page.{kind}")})
        with pytest.raises(ValueError, match=rf"page\.{kind} holds no weights that can be read"):
            check_rewards(["aesthetic"], options)


def test_weights_that_are_not_there_stop_before_training(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"pickscore could not be loaded: .*; --reward-models.weights pickscore PATH"):
        check_rewards(["pickscore"], RewardModels(weights={"pickscore": "nobody/nothing"}))
    with pytest.raises(ValueError, match=r"reward_models\.batch = 0"):
        RewardModels(batch=0)


def test_a_run_is_rewarded_by_one(folder, pipeline, own_folder):
    run = Run(
        FlowGRPO({"pickscore": 1.0}, steps=3, group=4, beta=0.0),
        ShapesPrompts(count=10),
        SD3(pipeline, max_sequence_length=0),
        LoRA(rank=4, alpha=8),
        reward_models=models(folder, "pickscore", ignore_canary=("pickscore",)),
    ).with_options(iterations=1, batch=2, chunk=8, sample_every=0)
    assert '"part/pickscore/cut": 0.0' in (execute(run, "clip") / "metrics.jsonl").read_text()


def test_a_picture_is_most_like_itself(folder, tmp_path):
    images = pictures()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    records = [{"prompt": "x", "image": str(tmp_path / f"{i}.png")} for i in (0, 1, 0)]
    found = load_reward("image_similarity", models(folder, "clipscore"))(images, records).values
    assert found[:2] == pytest.approx(1, abs=1e-5) and found[2] < 1 - 1e-4
    plain = np.stack([np.full((32, 48, 3), c, np.uint8) for c in range(0, 256, 5)])
    for i, image in enumerate(plain):
        Image.fromarray(image).save(tmp_path / f"plain{i}.png")
    records = [{"prompt": "x", "image": str(tmp_path / f"plain{i}.png")} for i in range(len(plain))]
    assert load_reward("image_similarity", models(folder, "clipscore"))(plain, records).values.max() <= 1
    with pytest.raises(ValueError, match="is None and not there"):
        find_reward("image_similarity").needs({"prompt": "x"})
