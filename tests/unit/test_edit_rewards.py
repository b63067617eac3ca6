"""Rewards of edits: ratings by a server, EditReward on a tiny checkpoint, and what a mask leaves alone."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import tinies
from afterflow.data.prompt_lists import read_prompts
from afterflow.rewards.base import RewardModels
from afterflow.rewards.registry import find_reward, load_reward
from afterflow.rewards.vlm.answers import Unanswered, parse_ratings
from afterflow.rewards.vlm.edit_ratings import SCHEMA
from afterflow.system.errors import ConfigError, InputError
from afterflow.system.input_pictures import png_address
from fake_server import said, serving, words

RNG = np.random.default_rng(0)
BEFORE = RNG.integers(0, 256, (48, 64, 3), np.uint8)
AFTER = RNG.integers(0, 256, (2, 32, 32, 3), np.uint8)
EDITS = ("vlm_edit", "vlm_edit_done", "vlm_edit_preserved")


def record(prompt="make it red", mask=None, before=BEFORE):
    return {"prompt": prompt, "input": png_address(before)} | ({} if mask is None else {"mask": png_address(mask)})


# Ratings by a server


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("afterflow.rewards.vlm.client.time", SimpleNamespace(sleep=lambda seconds: None))


def rated(answer, images=AFTER[:1], records=None):
    """All three rewards of some pictures, and what the server was asked."""
    with serving(answer) as (url, seen):
        models = RewardModels(weights={"vlm_edit": f"{url}#judge"})
        return [load_reward(name, models)(images, records or [record()] * len(images)) for name in EDITS], seen


def rating(done, preserved):
    return said(json.dumps({"reason": "so", "done": done, "preserved": preserved}))


def test_an_edit_is_rated_once_for_all_three_rewards():
    (both, done, preserved), seen = rated(lambda body, n: rating(9, 4))
    assert both.values == pytest.approx([math.sqrt(36) / 10]) and both.parts["done"] == [9]
    assert done.values == pytest.approx([0.9]) and preserved.values == pytest.approx([0.4])
    assert len(seen) == 1
    assert rated(lambda body, n: rating(10, 0))[0][0].values == [0]


def test_the_server_is_shown_the_input_as_the_model_saw_it_and_the_request():
    _, seen = rated(lambda body, n: rating(5, 5))
    texts, images = words(seen[0][0])
    assert "make it red" in " ".join(texts) and len(images) == 2
    fitted = np.asarray(Image.fromarray(BEFORE[:, 8:56]).resize((32, 32), Image.Resampling.LANCZOS))
    assert np.abs(images[0].astype(int) - fitted).mean() < 2  # cropped to the square that was drawn
    assert (images[1] == AFTER[0]).all()


@pytest.mark.parametrize("kind, field", [("vllm", "response_format"), ("openai", "response_format"), ("other", None)])
def test_servers_that_can_are_held_to_the_form_of_an_answer(kind, field):
    from afterflow.rewards.vlm.servers import request_fields, without_refused

    fields = request_fields(kind, 10, False, (), {}, SCHEMA)
    assert ("response_format" in fields) == (field is not None)
    if field:
        assert fields[field]["json_schema"]["schema"] == SCHEMA
    assert "response_format" not in without_refused(fields, ["response_format"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "9 and 4",
        '{"done": 9}',
        '{"done": 9, "preserved": "all"}',
        '{"done": 11, "preserved": 4}',
        '{"done": -1, "preserved": 4}',
        '{"done": true, "preserved": 4}',
        '{"done": NaN, "preserved": 4}',
        '{"done": null, "preserved": 4}',
        '{"done": 9, "preserved": 4',
        "[9, 4]",
        '{"a": ' * 600,
    ],
)
def test_what_is_no_rating_is_no_score(text):
    with pytest.raises(Unanswered):
        parse_ratings(text, ("done", "preserved"), 10)
    scored, _ = rated(lambda body, n: said(text or " "))
    for one in scored:
        assert np.isnan(one.values).all() and one.why


def test_the_last_object_counts_and_text_around_it_does_not():
    text = (
        'As {"done": 1, "preserved": 1} would be wrong: ```json\n{"reason": "a } b", "done": 7.5, "preserved": 3}\n```'
    )
    assert parse_ratings(text, ("done", "preserved"), 10) == [7.5, 3.0]


def test_one_picture_without_an_answer_leaves_the_others_their_scores():
    dark = lambda body: words(body)[1][1].mean() < AFTER.mean()
    (both, *_), _ = rated(lambda body, n: said("?") if dark(body) else rating(4, 9), AFTER)
    assert np.isnan(both.values).sum() == 1 and len(both.why) == 1 and np.nanmax(both.values) == pytest.approx(0.6)


def test_a_judge_of_edits_sees_the_input_and_goes_by_the_request():
    from afterflow.rewards.base import ImagePairs
    from afterflow.rewards.vlm.judge import CRITERIA, EDIT_CRITERIA, VLMJudge

    other = RNG.integers(0, 256, (32, 32, 3), np.uint8)
    first, second = np.array([0, 1, 2]), np.array([1, 0, 3])
    images, about = AFTER[[0, 1, 0, 1]], [record(), record(), record(before=other), record(before=other)]
    pairs = ImagePairs(images, about, first, second, first)
    with serving(lambda body, n: said("1", {"1": math.log(0.9), "2": math.log(0.1)})) as (url, seen):
        judge = VLMJudge(url, "judge")
        assert judge(pairs).values == pytest.approx([0.9] * 3)
        assert judge(pairs).values == pytest.approx([0.9] * 3)
    assert len(seen) == 3, "the same pictures with another input are another question, and none is asked twice"
    texts, shown = words(seen[0][0])
    assert len(shown) == 3 and "make it red" in texts[0] and EDIT_CRITERIA in texts[-1] and CRITERIA not in texts[-1]


# EditReward


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    return tinies.edit_reward(tmp_path_factory.mktemp("edit_reward"))


def by_authors(made, image, of, prompt):
    """(2 heads, μ and log σ), a picture at a time: embeddings, what is seen in their midst, no positions."""
    _, tokenizer, model, heads = made
    limits = {"shortest_edge": 200_704, "longest_edge": 200_704}
    seen = Qwen2VLImageProcessorPil(size=limits)([Image.fromarray(one) for one in (of, image)], return_tensors="pt")
    grids = seen["image_grid_thw"]
    shown = "".join(f"<|vision_start|>{'<|image_pad|>' * (int(g.prod()) // 4)}<|vision_end|>" for g in grids)
    rows = []
    for text, head in zip(("Is it done? ", "How good? "), heads.values()):
        whole = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            f"{shown}{text}{prompt}\nRating: <|Reward|>\nEND\n<|im_end|>\n<|im_start|>assistant\n"
        )
        ids = tokenizer([whole], return_tensors="pt").input_ids
        embedded = model.model.language_model.embed_tokens(ids)
        pixels = model.model.visual(seen["pixel_values"], grid_thw=grids).pooler_output
        mixed = embedded.masked_scatter((ids == model.config.image_token_id)[..., None], pixels)
        states = model.model.language_model(inputs_embeds=mixed, attention_mask=torch.ones_like(ids)).last_hidden_state
        rows.append(head(states[0, ids[0].tolist().index(tokenizer.convert_tokens_to_ids("<|Reward|>"))]))
    return torch.stack(rows)


@torch.no_grad()
def test_edit_reward_is_the_mean_of_both_heads_whatever_the_batch(released):
    squares = [RNG.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(2)]
    records = [record("make it red", before=squares[0]), record("remove the {hat}, far away", before=squares[1])]
    expected = torch.stack([by_authors(released, *row, r["prompt"]) for *row, r in zip(AFTER, squares, records)])
    assert expected.std(0).min() > 1e-3
    for batch in (1, 8):
        models = RewardModels(weights={"edit_reward": str(released[0])}, batch=batch)
        scored = load_reward("edit_reward", models)(AFTER, records)
        assert not scored.why
        assert scored.values == pytest.approx(expected[:, :, 0].mean(1).numpy(), abs=1e-4)
        assert scored.parts["done"] == pytest.approx(expected[:, 0, 0].numpy(), abs=1e-4)
        assert scored.parts["quality"] == pytest.approx(expected[:, 1, 0].numpy(), abs=1e-4)
        assert scored.parts["sigma"] == pytest.approx(expected[:, :, 1].mean(1).exp().numpy(), abs=1e-4)
    swapped = load_reward("edit_reward", models)(AFTER, records[::-1])
    assert np.abs(swapped.values - scored.values).min() > 1e-4  # it sees what was before, and the request


def test_edit_reward_needs_its_weights_named_and_its_texts_there(released, tmp_path):
    with pytest.raises(ConfigError, match=r"name its weights: --reward-models\.weights edit_reward FOLDER"):
        load_reward("edit_reward", RewardModels())
    for name in ("config.json", "prompts.py", "data_collator_qwen_edit.py"):
        (tmp_path / name).write_text((released[0] / name).read_text())
    (tmp_path / "prompts.py").write_text("INSTRUCTION_EDIT_FOLLOWING = 'no place for a request'")
    with pytest.raises(ConfigError, match="does not assign the instruction to INSTRUCTION_EDIT_FOLLOWING, which has"):
        load_reward("edit_reward", RewardModels(weights={"edit_reward": str(tmp_path)}))


# What a mask leaves alone


def left_half(height=48, width=64):
    mask = np.zeros((height, width, 3), np.uint8)
    mask[:, : width // 2] = 255
    return mask


def test_pixels_outside_of_the_mask_are_compared_and_none_inside():
    before = RNG.integers(0, 200, (32, 32, 3), np.uint8)
    changed = before.copy()
    changed[:, :16] = 255 - changed[:, :16]
    brighter = changed.copy()
    brighter[:, 16:] += 51
    records = [record(mask=left_half(32, 32), before=before)] * 3
    scored = find_reward("pixel_preservation")(np.stack([before, changed, brighter]), records)
    assert scored.values == pytest.approx([1, 1, 0.8])


def test_clip_does_not_see_what_is_masked(tmp_path):
    models = RewardModels(weights={"clipscore": str(tinies.clip(tmp_path))})
    score = load_reward("clip_preservation", models)
    before, other = (RNG.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(2))
    inside, outside = before.copy(), before.copy()
    inside[:, :16], outside[:, 16:] = other[:, :16], other[:, 16:]
    mask = left_half(32, 32)
    records = [record(mask=mask, before=before)] * 2 + [record(mask=mask, before=other)]
    scored = score(np.stack([inside, outside, inside]), records)
    assert scored.values[0] == pytest.approx(1, abs=1e-6) and max(scored.values[1:]) < 0.999


@pytest.mark.parametrize(
    "change, words",
    [
        ({"input": None}, "it has no input, the picture that is edited"),
        ({"mask": None}, "its mask, a picture that is white where the edit may change something, is None"),
        ({"mask": png_address(left_half(32, 64))}, "its mask has 64 x 32 px and its input 64 x 48; give it the same"),
        ({"mask": png_address(np.full((48, 64, 3), 255, np.uint8))}, "its mask is white everywhere"),
        ({"input": "data:image/png;base64,AAAA"}, "data:image/png;base64,AAAA"),
    ],
)
@pytest.mark.parametrize("name", ["pixel_preservation", "clip_preservation"])
def test_a_record_without_what_is_compared_is_refused(name, change, words):
    with pytest.raises(InputError, match=words.replace("(", "\\(")):
        find_reward(name).needs(record(mask=left_half()) | change)


def test_a_mask_that_leaves_nothing_of_the_drawn_square_alone_is_no_score():
    mask = np.zeros((48, 64, 3), np.uint8)
    mask[:, 4:60] = 255
    scored = find_reward("pixel_preservation")(AFTER[:1], [record(mask=mask)])
    assert np.isnan(scored.values).all() and "leaves nothing alone" in scored.why[0]


def test_masks_of_a_prompt_file_are_found_beside_it_and_nowhere_else(tmp_path):
    for name, pixels in (("a.png", BEFORE), ("m.png", left_half())):
        Image.fromarray(pixels).save(tmp_path / name)
    line = {"prompt": "make it red", "input": "a.png", "mask": "m.png"}
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps(line))
    [read] = read_prompts(str(file))
    assert read["mask"] == str(tmp_path / "m.png") and read["input"] == str(tmp_path / "a.png")
    find_reward("pixel_preservation").needs(read)
    for mask, said_of in (("n.png", "n.png is not there"), ("../m.png", "leads out of|is not there")):
        file.write_text(json.dumps(line | {"mask": mask}))
        with pytest.raises(InputError, match=said_of):
            read_prompts(str(file))
