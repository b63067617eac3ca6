"""ImageReward on a tiny random checkpoint in its own layout."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tinies
from afterflow.models.tiny_parts.tokenizer import make_tokenizer
from afterflow.rewards import clip
from afterflow.rewards.base import RewardModels
from afterflow.rewards.image_reward import RATING_MEAN, RATING_STD
from afterflow.rewards.registry import check_rewards, load_reward

PROMPTS = [{"prompt": "a picture of a red heart"}, {"prompt": "a blue circle and a ring"}, {"prompt": "a star"}]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tinies.image_reward(tmp_path_factory.mktemp("image_reward"))


def pictures(count=3):
    return np.random.default_rng(0).integers(0, 256, (count, 40, 60, 3), dtype=np.uint8)


def test_it_is_the_rating_of_the_texts_first_state_with_the_published_constants(made):
    file, eye, reader, layers = made
    ids = make_tokenizer()([record["prompt"] for record in PROMPTS], padding=True, return_tensors="pt")
    with torch.no_grad():
        seen = eye(pixel_values=clip.crop_square(pictures(), 28)).last_hidden_state
        x = reader(ids.input_ids, attention_mask=ids.attention_mask, encoder_hidden_states=seen).last_hidden_state[:, 0]
        for layer in layers:
            x = layer(x)
    scored = load_reward("image_reward", RewardModels(weights={"image_reward": str(file)}, batch=2))(
        pictures(), PROMPTS
    )
    assert scored.values == pytest.approx(((x[:, 0] - RATING_MEAN) / RATING_STD).numpy(), abs=1e-5)
    assert pytest.approx((0.16717, 1.03334), abs=1e-5) == (RATING_MEAN, RATING_STD)
    other = load_reward("image_reward", RewardModels(weights={"image_reward": str(file)}))(pictures(), PROMPTS[::-1])
    assert np.abs(other.values - scored.values)[[0, 2]].min() > 1e-5  # it reads the prompt


def test_a_prompt_that_is_cut_is_counted(made):
    score = load_reward("image_reward", RewardModels(weights={"image_reward": str(made[0])}))
    long = {"prompt": "a red heart and " * 20}
    assert score(pictures(), [long, *PROMPTS[:2]]).parts["cut"].tolist() == [1, 0, 0]


def test_another_checkpoint_is_refused_before_training(tmp_path):
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="image_reward could not be loaded: it is no checkpoint of ImageReward"):
        check_rewards(["image_reward"], RewardModels(weights={"image_reward": str(tmp_path / "other.safetensors")}))
