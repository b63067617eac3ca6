"""Signs that are read, attacks that do not pay, and prompts that ask for no text."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from afterflow.data.prompts import PromptFile
from afterflow.rewards.ocr import canvas_score
from afterflow.rewards.registry import check_rewards, find_reward

pytest.importorskip("rapidocr")
RECORD = {"prompt": 'a sign that says "After Flow", at dawn'}


def on(background, *lines):
    """White lettering, one line below the other."""
    image = Image.fromarray(background)
    for i, line in enumerate(lines):
        letters = ImageFont.load_default(26)
        ImageDraw.Draw(image).text((128, 30 + 40 * i), line, (255, 255, 255), letters, anchor="mm")
    return np.asarray(image)


def gradient():
    y, x = np.mgrid[:256, :256]
    return np.stack([x // 3, y // 3, 60 + 0 * x], -1).astype(np.uint8)


def scores(name, *images):
    return find_reward(name)(np.stack(images), [RECORD] * len(images)).values


def test_an_honest_sign_is_worth_more_than_any_attack_of_the_spec():
    honest = on(gradient(), "AfterFlow")
    attacks = [
        on(gradient(), *["AfterFlow"] * 5),
        on(np.zeros((256, 256, 3), np.uint8), "AfterFlow"),
        on(gradient(), "AfterFlow", "is the best"),
        on(gradient()),
    ]
    first, *rest = scores("ocr", honest, *attacks)
    assert first == 1 and max(rest) < 0.6 and rest[-1] == 0
    # The published formula cannot tell the first three from the honest one.
    assert scores("ocr_flowgrpo", honest, *attacks).tolist() == [1, 1, 1, 1, 0]


def test_a_wrong_letter_costs_its_share_and_parts_say_what_was_read():
    found = find_reward("ocr")(on(gradient(), "AfterFlaw")[None], [RECORD])
    assert found.values[0] == pytest.approx(8 / 9)
    assert {name: value.tolist() for name, value in found.parts.items()} == {
        "read": [pytest.approx(8 / 9)],
        "exact": [0.0],
        "lines": [1.0],
        "canvas": [1.0],
    }


def test_a_canvas_is_empty_where_one_colour_is_all_there_is_beside_the_text():
    box = np.array([[0, 0], [256, 0], [256, 128], [0, 128]])
    half = np.zeros((256, 256, 3), np.uint8)
    half[:128] = np.random.default_rng(0).integers(0, 256, (128, 256, 3))
    assert canvas_score(half, [box]) == pytest.approx(0, abs=0.05)
    assert canvas_score(half, []) == 1
    everywhere = np.array([[-1, -1], [256, -1], [256, 256], [-1, 256]])
    assert canvas_score(half, [everywhere]) == 0


def test_a_prompt_without_quotes_is_refused_with_its_line(tmp_path):
    file = tmp_path / "signs.txt"
    file.write_text('a sign that says "Open"\na sign\n')
    with pytest.raises(ValueError, match=r'signs\.txt:2: prompt .* has no text in "double quotes"; ocr needs that'):
        PromptFile(str(file)).records(0, {"ocr": find_reward("ocr").needs})


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("afterflow.system.optional_dependencies.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"reward ocr needs rapidocr, .*; pip install 'afterflow\[ocr\]'"):
        check_rewards(["ocr"])
