"""HPSv3 and VideoReward on tiny random checkpoints in their own layouts, against their authors' way through them."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import tinies
from afterflow.rewards import clip, hpsv3, qwen2_vl, video_align
from afterflow.rewards.base import RewardModels
from afterflow.rewards.registry import check_rewards, load_reward

PROMPTS = [{"prompt": "a red heart"}, {"prompt": "a blue circle {and} a ring, far away"}, {"prompt": "a star"}]
FRAMES = 9
SEEN = [0, 3, 5, 8]
"""Of nine frames, at 16 a second."""


@pytest.fixture(scope="module")
def pictured(tmp_path_factory):
    return tinies.hpsv3(tmp_path_factory.mktemp("hpsv3"))


@pytest.fixture(scope="module", params=[1, 3])
def filmed(request, tmp_path_factory):
    return tinies.video_reward(tmp_path_factory.mktemp("video_reward"), request.param)


def pictures(tall=40, wide=60, count=3):
    return np.random.default_rng(0).integers(0, 256, (count, tall, wide, 3), dtype=np.uint8)


def clips(tall=40, wide=60, count=3):
    return np.random.default_rng(1).integers(0, 256, (count, FRAMES, tall, wide, 3), dtype=np.uint8)


def asked(name, folder, **options):
    return load_reward(name, RewardModels(weights={name: str(folder)}, **options))


def text_of(token, tokens, words):
    """What Qwen2-VL's template makes of so many tokens of one picture or clip, and of a text."""
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"<|vision_start|>{token * tokens}<|vision_end|>{words}<|im_end|>\n<|im_start|>assistant\n"
    )


def by_authors(model, pad, ids, pixels, grid):
    """Last states (1, L, D): embeddings, what is seen in their midst, and the language model without positions."""
    embedded = model.model.language_model.embed_tokens(ids)
    seen = model.model.visual(pixels, grid_thw=torch.tensor([grid])).pooler_output
    mixed = embedded.masked_scatter((ids == pad)[..., None], seen)
    return model.model.language_model(inputs_embeds=mixed, attention_mask=torch.ones_like(ids)).last_hidden_state


def prepared(image):
    """Patches and grid of a picture by transformers' own processor."""
    limits = {"shortest_edge": 200_704, "longest_edge": 200_704}
    found = Qwen2VLImageProcessorPil(size=limits)([Image.fromarray(image)], return_tensors="pt")
    return found["pixel_values"], found["image_grid_thw"][0].tolist()


# HPSv3


def rated(made, image, prompt, positions=None):
    """(μ, log σ) of one picture."""
    _, tokenizer, model, head = made
    pixels, grid = prepared(image)
    words = f"\nHow good is it?\nTextual prompt - {prompt}\n\nIts rating: <|Reward|>\nEND\n"
    ids = tokenizer([text_of("<|image_pad|>", grid[1] * grid[2] // 4, words)], return_tensors="pt").input_ids
    at = ids[0].tolist().index(tokenizer.convert_tokens_to_ids("<|Reward|>"))
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    with torch.no_grad():
        if positions == "grid":  # as transformers' own forward has them
            told = {"pixel_values": pixels, "image_grid_thw": torch.tensor([grid])}
            states = model.model(input_ids=ids, mm_token_type_ids=(ids == pad).int(), **told).last_hidden_state
        else:
            states = by_authors(model, pad, ids, pixels, grid)
        return head(states[0, at])


def test_hpsv3_is_mu_at_its_token_whatever_the_batch(pictured):
    images = pictures()
    expected = torch.stack([rated(pictured, image, record["prompt"]) for image, record in zip(images, PROMPTS)])
    assert expected.std(0).min() > 1e-3  # pictures and prompts differ
    for batch in (1, 2, 8):
        scored = asked("hpsv3", pictured[0], batch=batch)(images, PROMPTS)
        assert not scored.why
        assert scored.values == pytest.approx(expected[:, 0].numpy(), abs=1e-5)
        assert scored.parts["sigma"] == pytest.approx(expected[:, 1].exp().numpy(), abs=1e-5)
    other = asked("hpsv3", pictured[0])(images, PROMPTS[::-1])
    assert np.abs(other.values - scored.values)[[0, 2]].min() > 1e-4  # it reads the prompt


def test_a_token_counts_as_one_position_although_it_is_a_place_in_a_picture(pictured):
    ours, grid = (rated(pictured, pictures()[0], "a red heart", positions)[0] for positions in (None, "grid"))
    assert abs(ours - grid) > 1e-3
    assert asked("hpsv3", pictured[0])(pictures()[:1], PROMPTS[:1]).values == pytest.approx([ours.item()], abs=1e-5)


@pytest.mark.parametrize(
    "tall, wide, expected",
    [(512, 512, None), (448, 448, (448, 448)), (1024, 1024, None), (720, 1280, (336, 588)), (40, 60, (392, 560))],
)
def test_pictures_are_prepared_as_transformers_does(tall, wide, expected):
    images = pictures(tall, wide, 2)
    ours, grid = qwen2_vl.patchify(hpsv3.resize_images(images))
    assert expected is None or grid == (1, expected[0] // 14, expected[1] // 14)
    patches, grids = zip(*[prepared(image) for image in images])
    assert list(grid) == grids[0]
    torch.testing.assert_close(ours, torch.cat(patches), atol=1e-5, rtol=0)


def test_hpsv3_runs_in_bfloat16_with_a_head_of_float32(pictured):
    exact, half = (asked("hpsv3", pictured[0], dtype=kind)(pictures(), PROMPTS) for kind in ("float32", "bfloat16"))
    assert half.values == pytest.approx(exact.values, abs=0.05) and not np.array_equal(half.values, exact.values)


def test_a_prompt_that_says_the_rewards_token_has_no_score_and_the_others_have_theirs(pictured):
    sly = [PROMPTS[0], {"prompt": "a heart <|Reward|>"}, PROMPTS[2]]
    scored, honest = (asked("hpsv3", pictured[0])(pictures(), records) for records in (sly, PROMPTS))
    assert np.isnan(scored.values).tolist() == [False, True, False]
    assert "must have <|Reward|> once each" in scored.why[1]
    assert scored.values[[0, 2]] == pytest.approx(honest.values[[0, 2]], abs=1e-5)


def test_weights_of_newer_names_are_read_too(pictured, tmp_path):
    folder, *_ = pictured
    shutil.copytree(folder, tmp_path / "newer")
    names = {"model.": "model.language_model.", "visual.": "model.visual."}
    newer = lambda name: next(
        (new + name.removeprefix(old) for old, new in names.items() if name.startswith(old)), name
    )
    stored = load_file(folder / "HPSv3.safetensors")
    save_file({newer(name): value for name, value in stored.items()}, tmp_path / "newer" / "HPSv3.safetensors")
    first, second = (asked("hpsv3", each)(pictures(), PROMPTS) for each in (folder, tmp_path / "newer"))
    assert np.array_equal(first.values, second.values)


# VideoReward


def ratings(made, clip_, prompt):
    """Of one clip, (3,), by the model with its LoRA beside its weights and under the names of a video."""
    _, tokenizer, tuned = made
    frames = video_align.resize_clips(clip_[None, SEEN], 448 * 448)
    pixels, grid = by_loops(frames[0])
    words = f"Rating: <|VQ_reward|>\nRating: <|MQ_reward|>\nTextual prompt - {prompt}\nRating: <|TA_reward|>\nEND\n"
    tokens = grid[0] * grid[1] * grid[2] // 4
    ids = tokenizer([text_of("<|video_pad|>", tokens, words)], return_tensors="pt").input_ids
    at = [ids[0].tolist().index(tokenizer.convert_tokens_to_ids(f"<|{name}_reward|>")) for name in ("VQ", "MQ", "TA")]
    model = tuned.base_model.model
    with torch.no_grad():
        states = by_authors(model, tokenizer.convert_tokens_to_ids("<|video_pad|>"), ids, pixels, grid)
        found = model.rm_head(states[0, at])
    return found[:, 0] if found.shape[1] == 1 else torch.stack([found[i, i] for i in range(3)])


def by_loops(frames):
    """(F, 3, H, W) in [0, 255] → patches in Qwen2-VL's order, one by one, and their grid."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (clip.CLIP_MEAN, clip.CLIP_STD))
    x = (frames / 255 - mean) / std
    T, h, w = len(x) // 2, x.shape[2] // 14, x.shape[3] // 14
    order = [
        (t, 2 * i + a, 2 * j + b)
        for t in range(T)
        for i in range(h // 2)
        for j in range(w // 2)
        for a in range(2)
        for b in range(2)
    ]
    cut = lambda t, i, j: x[2 * t : 2 * t + 2, :, 14 * i : 14 * i + 14, 14 * j : 14 * j + 14].transpose(0, 1)
    return torch.stack([cut(*place).flatten() for place in order]), [T, h, w]


def test_video_align_is_the_sum_of_its_normalised_ratings_whatever_the_batch(filmed):
    mean, std = np.array([3.7, 1.2, 2.8]), np.array([2.2, 1.4, 2.5])
    raw = np.stack([ratings(filmed, each, record["prompt"]).numpy() for each, record in zip(clips(), PROMPTS)])
    expected = (raw - mean) / std
    assert raw.std(0).min() > 1e-3
    for batch in (1, 2, 8):
        scored = asked("video_align", filmed[0], batch=batch)(clips(), PROMPTS)
        assert not scored.why
        assert list(scored.parts) == ["VQ", "MQ", "TA"]
        assert np.stack(list(scored.parts.values()), 1) == pytest.approx(expected, abs=1e-5)
        assert scored.values == pytest.approx(expected.sum(1), abs=1e-5)
    counts = {"video_align_vq": 0.5, "video_align_mq": 0.0, "video_align_ta": 2.0}
    weighted = asked("video_align", filmed[0], options=counts)(clips(), PROMPTS)
    assert weighted.values == pytest.approx(expected @ [0.5, 0, 2], abs=1e-5)


def test_a_clips_patches_are_pairs_of_frames():
    frames = video_align.resize_clips(clips()[:, SEEN], 448 * 448)
    ours, grid = qwen2_vl.patchify(frames)
    theirs, grids = zip(*[by_loops(each) for each in frames])
    assert list(grid) == grids[0] == [2, 20, 28]
    torch.testing.assert_close(ours, torch.cat(theirs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tall, wide, expected", [(40, 60, (280, 392)), (480, 832, (336, 588)), (335, 440, (336, 448))])
def test_a_clips_frames_have_between_128_and_256_tokens(tall, wide, expected):
    sharp = pictures(tall, wide, 2) // 4 + 96  # PIL cuts overshoots twice
    ours = video_align.resize_clips(sharp[None], 448 * 448)[0]
    assert ours.shape[-2:] == expected and ours.frac().abs().max() == 0
    theirs = [np.asarray(Image.fromarray(each).resize(expected[::-1], Image.Resampling.BICUBIC)) for each in sharp]
    assert (ours.permute(0, 2, 3, 1) - torch.from_numpy(np.stack(theirs))).abs().max() <= 1


def test_no_pixel_overshoots_its_edges():
    ours = video_align.resize_clips(clips(), 448 * 448)
    assert (ours.min(), ours.max()) == (0, 255)


def test_frames_are_drawn_evenly_two_a_second_and_at_least_four():
    assert video_align.frame_indices(FRAMES, 16, 2) == SEEN
    assert video_align.frame_indices(81, 16, 2) == [0, 9, 18, 27, 36, 44, 53, 62, 71, 80]
    assert video_align.frame_indices(81, 8, 2)[:3] == [0, 4, 8] and len(video_align.frame_indices(81, 8, 2)) == 20
    assert video_align.frame_indices(5, 16, 2) == [0, 1, 3, 4] and video_align.frame_indices(3, 16, 2) == [0, 2]
    assert len(video_align.frame_indices(2000, 1, 2)) == 768
    with pytest.raises(ValueError, match="at least two frames"):
        video_align.frame_indices(1, 16, 2)


def test_what_a_second_has_of_frames_can_be_told(filmed):
    long = np.random.default_rng(2).integers(0, 256, (1, 40, 16, 16, 3), dtype=np.uint8)
    said = lambda **options: asked("video_align", filmed[0], options=options)(long, PROMPTS[:1]).values
    assert said() == said(video_align_fps=16.0)
    assert np.abs(said() - said(video_align_fps=8.0)) > 1e-4
    with pytest.raises(ValueError, match="video_align_fps = 0"):
        asked("video_align", filmed[0], options={"video_align_fps": 0.0})


def test_a_clip_of_one_frame_has_no_score(filmed):
    scored = asked("video_align", filmed[0])(clips()[:1, :1], PROMPTS[:1])
    assert np.isnan(scored.values[0]) and "at least two frames" in scored.why[0]


# What is not there, or something else


def changed(folder, into, **files):
    """A copy of a folder of weights with other files."""
    shutil.copytree(folder, into)
    for file, content in files.items():
        name = next(path for path in into.rglob("*") if path.stem == file)
        if content is None:
            name.unlink()
        else:
            content(name) if callable(content) else name.write_text(content)
    return into


@pytest.mark.parametrize(
    "files, said",
    [
        ({"data_collator_qwen": None}, "its instruction is a text of its authors, .* github.com/MizzenAI/HPSv3 into a"),
        ({"data_collator_qwen": "INSTRUCTION = '{text_prompt}'"}, "does not assign the instruction to INSTRUCTION and"),
        (
            {"data_collator_qwen": "INSTRUCTION = ''\nprompt_with_special_token = '<|Reward|>'"},
            "does not assign the instruction to INSTRUCTION and",
        ),
        ({"data_collator_qwen": "<html>"}, "is no file of Python"),
        ({"HPSv3": lambda file: save_file({"weight": torch.zeros(1)}, file)}, "it is no checkpoint of HPSv3"),
        ({"HPSv3": lambda file: save_file({"rm_head.0.bias": torch.zeros(1)}, file)}, "it is no checkpoint of HPSv3"),
        (
            {"HPSv3": lambda file: save_file({"rm_head.0.bias": torch.zeros(1), "visual.x": torch.zeros(1)}, file)},
            r"its weights do not fit .*: language_model.embed_tokens.weight is none, and should be \(265, 32\)",
        ),
        ({"HPSv3": "not weights"}, "HPSv3.safetensors holds no weights that can be read"),
    ],
)
def test_what_is_not_hpsv3_is_refused_before_training(pictured, tmp_path, monkeypatch, files, said):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = changed(pictured[0], tmp_path / "other", **files)
    with pytest.raises(
        ValueError, match=f"reward hpsv3 could not be loaded: .*{said}.*; --reward-models.weights hpsv3"
    ):
        check_rewards(["hpsv3"], RewardModels(weights={"hpsv3": str(folder)}))


def test_without_a_folder_the_missing_text_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, file in (("hpsv3", "data_collator_qwen.py"), ("video_align", "prompt_template.py")):
        with pytest.raises(ValueError, match=f"its instruction is a text of its authors, .*: put .*{file} of github"):
            check_rewards([name])


@pytest.mark.parametrize(
    "files, said",
    [
        ({"model": lambda file: torch.save({"weight": torch.zeros(1)}, file)}, "it is no checkpoint of VideoReward"),
        ({"model": "not weights"}, "model.pth holds no weights that can be read"),
        ({"model_config": lambda file: told(file, prompt_template_type="simple")}, "prompt_template_type = 'simple'"),
        ({"model_config": '{"data_config": {}, "peft_lora_config": {}}'}, "has no inference_config"),
        ({"model_config": lambda file: told(file, num_frames=8)}, "num_frames = 8, and only None"),
    ],
)
def test_what_is_not_videoreward_is_refused_before_training(filmed, tmp_path, files, said):
    folder = changed(filmed[0], tmp_path / "other", **files)
    with pytest.raises(ValueError, match=f"reward video_align could not be loaded: .*{said}"):
        check_rewards(["video_align"], RewardModels(weights={"video_align": str(folder)}))


def told(file, **data):
    found = json.loads(file.read_text())
    found["data_config"] |= data
    file.write_text(json.dumps(found))
