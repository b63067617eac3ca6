"""Signs that are read, attacks that do not pay, and prompts that ask for no text."""

import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from afterflow.data.prompts import PromptFile
from afterflow.rewards import ocr
from afterflow.rewards.ocr import alphabet, canvas_score, fold_known, fold_text, target_texts
from afterflow.rewards.quotes import quoted_texts
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


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """A picture that two rewards score is read once: most of a second, and they differ in what they make of it."""
    reading = ocr._read
    read = cache(lambda content, shape: reading(np.frombuffer(content, np.uint8).reshape(shape)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ocr, "_read", lambda image: read(image.tobytes(), image.shape))
        yield


def scores(name, *images, prompt=RECORD["prompt"]):
    return find_reward(name)(np.stack(images), [{"prompt": prompt}] * len(images)).values


def lettering(*lines):
    """Lettering in a font that has accents, which Pillow's own has not."""
    folder = Path(pytest.importorskip("matplotlib").get_data_path()) / "fonts" / "ttf"
    image = Image.fromarray(gradient())
    for i, line in enumerate(lines):
        font = ImageFont.truetype(folder / "DejaVuSans.ttf", 36)
        ImageDraw.Draw(image).text((128, 60 + 60 * i), line, (255, 255, 255), font, anchor="mm")
    return np.asarray(image)


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


# Texts as people write them


@pytest.mark.parametrize("name", ["ocr", "ocr_flowgrpo"])
@pytest.mark.parametrize(
    "prompt, lines",
    [
        ('a sign that says "Café Zoë"', ["Café Zoë"]),
        ('a sign that says "CAFE\u0301 ZOE\u0308"', ["Café Zoë"]),
        ('a sign that says "ＯＰＥＮ ２４"', ["OPEN 24"]),
        ("a sign that says “Don’t stop”", ["Don't stop"]),
        ('a sign that says "Straße"', ["STRASSE"]),
        ('a 10" cake that says "Hi there"', ["Hi there"]),
        ('a door with "Coffee" and a mat with "Welcome"', ["Coffee", "Welcome"]),
        ('a mat with "Welcome" and a door with "Coffee"', ["Coffee", "Welcome"]),
    ],
)
def test_what_is_drawn_rightly_scores_1(name, prompt, lines):
    find_reward(name).needs({"prompt": prompt})
    assert scores(name, lettering(*lines), prompt=prompt)[0] == 1


def test_an_accent_that_is_missing_costs_its_letter_and_a_text_that_is_missing_its_share():
    assert scores("ocr", lettering("Cafe Zoë"), prompt='"Café Zoë"')[0] == pytest.approx(6 / 7)
    both = 'a door with "Coffee" and a mat with "Welcome"'
    assert scores("ocr", lettering("Coffee"), prompt=both)[0] == pytest.approx(6 / 13)
    assert scores("ocr_flowgrpo", lettering("Coffee"), prompt=both)[0] < 0.7


@pytest.mark.parametrize(
    "text, name",
    [
        ("Привет", r"'п' \(CYRILLIC SMALL LETTER PE\), 'р' \(CYRILLIC SMALL LETTER ER\)"),
        ("50 ฿", r"'฿' \(THAI CURRENCY SYMBOL BAHT\)"),
        ("\U00013080 Eye", "EGYPTIAN HIEROGLYPH D010"),
        ("\ue000 mine", r"\(U\+E000\)"),
    ],
)
@pytest.mark.parametrize("reward", ["ocr", "ocr_flowgrpo"])
def test_characters_that_no_picture_could_be_read_for_are_refused_by_name(text, name, reward, tmp_path):
    file = tmp_path / "signs.txt"
    file.write_text(f'a sign that says "Open"\na sign that says "{text}"\n', encoding="utf-8")
    with pytest.raises(ValueError, match=rf"signs\.txt:2: prompt .* does not know and no picture .*{name}"):
        PromptFile(str(file)).records(0, {reward: find_reward(reward).needs})


def test_an_accent_that_the_reader_does_not_know_does_not_count():
    assert "ệ" not in alphabet() and target_texts({"prompt": '"Việt Nam"'}) == ("vietnam",)


@pytest.mark.parametrize(
    "prompt, texts",
    [
        ('a 10" cake that says "Hi"', ["Hi"]),
        ("a 10” cake that says “Hi”", ["Hi"]),
        ('a 10 " cake that says "Hi"', ["Hi"]),
        ('a ½" pipe beside a sign "X"', ["X"]),
        ('a man of 6\'2" with a sign "Hi"', ["Hi"]),
        ('a 3" x 5" card that says "A 4" bolt"', ['A 4" bolt']),
        ('a screen of 24" with "Win 95" and a 3" disk', ["Win 95"]),
        ('doors "5" and "7"', ["5", "7"]),
        ('a "10" on a shirt', ["10"]),
        ("„Hallo“ und „Tschüss“", ["Hallo", "Tschüss"]),
        ("«Salut» et ”Hej” »Hallo«", ["Salut", "Hej", "Hallo"]),
        ('写着"你好"的牌子，「再见」', ["你好", "再见"]),
        ('a note: "He said “Go” now"', ["He said “Go” now"]),
        ('an escaped \\"Hi\\"', ["Hi"]),
        ('a sign “Hi" of a slip', ["Hi"]),
        ('a 12" by 12" frame', []),
        ('a sign that says "Open', []),
        ('nothing in ""', []),
    ],
)
def test_quotation_marks_are_read_as_a_person_reads_them(prompt, texts):
    assert list(quoted_texts(prompt)) == texts


def test_every_text_comes_back_from_every_kind_of_quotation_beside_any_inches():
    rng = np.random.default_rng(0)
    letters = list("abcXYZ 0123456789'’.,!?&-éßñ你好½")
    styles = ['"{}"', "“{}”", "„{}“", "„{}”", "«{}»", "「{}」", "『{}』", "＂{}＂"]
    around = ['a {}" cake', "a tv of {}”", 'a {}" by {}" card', "a plain wall"]
    for _ in range(3000):
        texts = ["".join(rng.choice(letters, rng.integers(1, 12))).strip() or "x" for _ in range(rng.integers(1, 4))]
        inches = around[rng.integers(len(around))].replace("{}", str(rng.integers(1, 99)))
        quoted = [styles[rng.integers(len(styles))].format(text) for text in texts]
        prompt = f"{inches} that says {' and '.join(quoted)} in the sun"
        assert list(quoted_texts(prompt)) == texts, prompt


def test_folding_knows_no_form_of_a_text():
    """Composed or not, full-width or not, upper or lower case, spaced or not: it is one text, and folded once."""
    rng = np.random.default_rng(0)
    letters = sorted(c for c in alphabet() if unicodedata.name(c, "").startswith(("LATIN SMALL", "DIGIT", "HIRAGANA")))
    wide = {i: i + 0xFEE0 for i in range(0x21, 0x7F)}
    for _ in range(300):
        text = "".join(rng.choice(letters, 12))
        folded = fold_known(text, alphabet())
        forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")]
        forms += [text.translate(wide), " \u3000\u200b\u00ad".join(text), fold_text(text), folded]
        assert {fold_known(form, alphabet()) for form in forms} == {folded}
        assert fold_text(text.upper()) == fold_text(text.upper().lower()) and set(folded) <= alphabet()


def test_most_of_what_a_latin_keyboard_has_can_be_asked_for():
    for text in (
        "Łódź",
        "Smørrebrød",
        "Dvořák",
        "naïve",
        "İstanbul",
        "½ price",
        "№ 5",
        "…wait – what?",
        "50 °C",
        "don´t",
    ):
        find_reward("ocr").needs({"prompt": f'a sign that says "{text}"'})
