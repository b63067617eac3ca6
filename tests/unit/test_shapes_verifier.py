"""The verifier passes true pictures, fails near misses, and `closed` is not to be fooled.

Small samples of the bars that bench/verifier.py measures.
"""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from afterflow.envs.shapes import verify as verifier
from afterflow.envs.shapes.detector import detect
from afterflow.envs.shapes.fidelity import fidelity, fidelity_factors
from afterflow.envs.shapes.population import diversity, frechet_distance, texture_features
from afterflow.envs.shapes.prompts import draw, hard_negative
from afterflow.envs.shapes.reader import SignReading, read_sign
from afterflow.envs.shapes.render import (
    PlacedObject,
    background,
    develop,
    draw_objects,
    draw_sign,
    place_objects,
    render_image,
)
from afterflow.envs.shapes.verify import edit_distance, text_reward_flowgrpo, verify
from afterflow.envs.shapes.world import COLORS, SHAPES, TAGS

both_sizes = pytest.mark.parametrize("size", [32, 64])


@cache
def shown(tag, size, count=40, split="train", seed=0):
    rng = np.random.default_rng([seed, size, TAGS.index(tag)])
    records = [draw(split, tag, rng, size) for _ in range(count)]
    pictures = tuple((record, render_image(record, size, rng)) for record in records)
    for _, image in pictures:
        image.setflags(write=False)  # other tests see it too
    return pictures


def scene(size, *objects, seed=0):
    rng = np.random.default_rng(seed)
    canvas = background(size, rng)
    draw_objects(canvas, objects)
    return develop(canvas, rng)


@both_sizes
@pytest.mark.parametrize("tag", TAGS)
def test_true_pictures_earn_everything(tag, size):
    verdicts = [verify(record, image) for record, image in shown(tag, size)]
    for key in verdicts[0]:
        assert np.mean([verdict[key] for verdict in verdicts]) > (0.99 if "partial" in key else 0.97)


@both_sizes
@pytest.mark.parametrize("tag", TAGS[1:])
def test_true_pictures_of_unseen_kinds_earn_everything(tag, size):
    strict = [verify(record, image)["strict"] for record, image in shown(tag, size, 20, "ood")]
    assert np.mean(strict) >= 0.95


@both_sizes
@pytest.mark.parametrize("tag", TAGS)
def test_one_edited_fact_fails_and_keeps_some_partial_credit(tag, size):
    rng = np.random.default_rng(1)
    verdicts = [verify(hard_negative(record, rng), image) for record, image in shown(tag, size)]
    assert not any(verdict["official"] or verdict["strict"] or verdict["closed"] for verdict in verdicts)
    partial = np.mean([verdict["partial"] for verdict in verdicts])
    # A lone object of the wrong class has nothing right about it.
    assert partial == 0 if tag == "single_object" else 0.3 < partial < 0.9


@both_sizes
def test_a_detection_says_what_was_drawn_and_where(size):
    k = size / 32
    for i, shape in enumerate(SHAPES):
        left = PlacedObject(shape, COLORS[i], 8.3 * k, 10.4 * k, 5.0 * k, 0.1)
        right = PlacedObject(SHAPES[i - 1], COLORS[i - 3], 23.1 * k, 20.7 * k, 5.0 * k, -0.1)
        found = sorted(detect(scene(size, left, right)).detections, key=lambda d: d.box[0])
        assert [(d.cls, d.color) for d in found] == [(o.cls, o.color) for o in (left, right)]
        for detection, item in zip(found, (left, right), strict=True):
            x0, y0, x1, y1 = detection.box
            assert abs((x0 + x1) / 2 - item.cx) < 0.15 * item.r and abs((y0 + y1) / 2 - item.cy) < 0.2 * item.r


def test_a_dark_object_is_not_taken_together_with_a_shadow_beside_it():
    angle = np.radians(70)
    for gap in (1.5, 2.5, 3.0):
        x, y = 9 + (8 + gap) * np.cos(angle), 9 + (8 + gap) * np.sin(angle)
        pair = PlacedObject("circle", "white", 9.0, 9.0, 4.0, 0.0), PlacedObject("circle", "brown", x, y, 4.0, 0.0)
        for seed in range(10):
            dark = next(d for d in detect(scene(32, *pair, seed=seed)).detections if d.color == "brown")
            np.testing.assert_allclose(dark.box, (x - 4, y - 4, x + 4, y + 4), atol=0.7)


def attack(name, size, rng, record, image):
    if name == "noise":
        return rng.integers(0, 256, image.shape).astype(np.uint8)
    if name == "smooth noise":
        blobs = ndimage.gaussian_filter(rng.normal(size=image.shape), (3, 3, 0))
        return np.clip(128 + 500 * blobs, 0, 255).astype(np.uint8)
    if name == "blank":
        return scene(size, seed=int(rng.integers(1000)))
    if name == "shotgun":
        c = size / 3
        every = [
            PlacedObject(s, COLORS[rng.integers(10)], c * (i % 3 + 0.5), c * (i // 3 + 0.5), 0.36 * c, 0.0)
            for i, s in enumerate(SHAPES)
        ]
        return scene(size, *every)
    return np.full_like(image, 160)


@both_sizes
@pytest.mark.parametrize("name", ["noise", "smooth noise", "blank", "shotgun", "constant"])
def test_closed_is_not_fooled_by_pictures_that_ignore_the_prompt(name, size):
    rng = np.random.default_rng(0)
    for tag in TAGS:
        for record, image in shown(tag, size, 6):
            assert verify(record, attack(name, size, rng, record, image))["closed"] == 0


@both_sizes
def test_closed_rejects_a_foreign_object_that_strict_lets_pass(size):
    rng = np.random.default_rng(0)
    for tag in ("single_object", "two_object", "colors", "position", "color_attr"):
        for record, _ in shown(tag, size, 8):
            used = {clause["class"] for clause in record["include"]}
            other = next(shape for shape in SHAPES if shape not in used)
            cluttered = {**record, "include": [*record["include"], {"class": other, "count": 1}]}
            verdict = verify(record, render_image(cluttered, size, rng))
            assert (verdict["strict"], verdict["closed"]) == (1, 0)
            assert verdict["partial"] < 0.75 and verdict["partial_flowgrpo"] == 1


@both_sizes
def test_closed_reads_signs_to_the_last_character_and_looks_around_them(size):
    rng = np.random.default_rng(0)
    for record, _ in shown("text", size, 20):
        text = record["text"]
        longer = verify(record, render_image({**record, "text": text + "X"}, size, rng))
        assert (longer["official"], longer["ocr_flowgrpo"], longer["strict"], longer["closed"]) == (
            1,
            1,
            0,
            0,
        )
        shorter = verify(record, render_image({**record, "text": text[:-1]}, size, rng))
        assert shorter["strict"] == shorter["closed"] == 0
        canvas = background(size, rng)
        at = np.random.default_rng(3)
        draw_sign(canvas, text, at, ("white", "black"))
        alone = develop(canvas, rng)
        y0 = read_sign(alone).box[1]
        far = 5.5 if y0 > size / 2 else size - 6.5
        draw_objects(canvas, [PlacedObject("circle", "red", 10.0, far, 3.5, 0.0)])
        assert verify(record, alone)["closed"] == 1
        cluttered = verify(record, develop(canvas, rng))
        assert (cluttered["strict"], cluttered["closed"]) == (1, 0)


def test_any_picture_is_judged_without_a_nan():
    rng = np.random.default_rng(0)
    for size in (8, 32, 48, 64):
        pictures = [np.full((size, size, 3), level, np.uint8) for level in (0, 1, 128, 255)]
        pictures += [rng.integers(0, 256, (size, size, 3)).astype(np.uint8) for _ in range(3)]
        pictures += [rng.integers(0, 2, (size, size, 1)).astype(np.uint8).repeat(3, 2) * 255 for _ in range(2)]
        split = np.zeros((size, size, 3), np.uint8)
        split[:, size // 2 :, 0] = 255
        for image in [*pictures, split]:
            for tag in TAGS:
                verdict = verify(draw("train", tag, rng), image)
                assert np.isfinite(list(verdict.values())).all() and 0 <= verdict["partial"] <= 1
            assert 0 <= fidelity(image) <= 1


@both_sizes
def test_the_same_picture_gets_the_same_verdict_and_is_left_alone(size):
    for record, image in (shown(tag, size, 1)[0] for tag in TAGS):
        before = image.copy()
        image.setflags(write=False)
        assert verify(record, image) == verify(record, image) and fidelity(image) == fidelity(image)
        assert (image == before).all()


@both_sizes
def test_strict_and_quality_fall_with_corruption(size):
    rng = np.random.default_rng(0)
    pairs = [pair for tag in TAGS[:6] for pair in shown(tag, size, 4)]
    strict, quality = [], []
    for sigma in (0.0, 1.7, 3.5):
        blurred = [(r, ndimage.gaussian_filter(image, (sigma, sigma, 0)) if sigma else image) for r, image in pairs]
        strict.append(np.mean([verify(r, image)["strict"] for r, image in blurred]))
        quality.append(np.mean([fidelity(image) for _, image in blurred]))
    assert strict[0] > strict[1] > strict[2] and quality[0] > 0.95 > quality[1] > quality[2]
    noisy = [np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8) for _, image in pairs]
    assert np.mean([fidelity(image) for image in noisy]) < 0.4


def test_each_factor_of_quality_notices_its_own_artefact():
    _, image = shown("two_object", 64, 1)[0]
    pixels = image.astype(float)
    rng = np.random.default_rng(0)
    blotches = 80 * ndimage.gaussian_filter(rng.normal(size=pixels.shape), (2.5, 2.5, 0))
    islands = pixels.copy()
    islands[4::5, 4::5] = (40, 160, 65)
    cases = {
        "noise": pixels + rng.normal(0, 8, pixels.shape),
        "mottle": pixels + blotches,
        "sharpness": ndimage.gaussian_filter(pixels, (1.8, 1.8, 0)),
        "color": pixels * 0.45,
        "speckle": islands,
    }
    assert min(vars(fidelity_factors(image)).values()) > 0.97
    for name, picture in cases.items():
        assert vars(fidelity_factors(np.clip(np.rint(picture), 0, 255).astype(np.uint8)))[name] < 0.6, name


@pytest.mark.parametrize("text", ["K4ZN", "OQ8", "IIII", "WMNH", "2Z7"])
@both_sizes
def test_the_reader_reads_dark_on_light_and_light_on_dark(text, size):
    for colors in (("white", "black"), ("black", "yellow"), ("blue", "white"), ("orange", "black")):
        rng = np.random.default_rng(0)
        canvas = background(size, rng)
        draw_sign(canvas, text, rng, colors)
        reading = read_sign(develop(canvas, rng))
        assert reading.text == text and reading.confidence > 0.9 and reading.rival < 0.5


def test_a_second_line_is_noticed():
    rng = np.random.default_rng(0)
    canvas = background(64, rng)
    draw_sign(canvas, "ABCDE", rng, ("white", "black"))
    twice = develop(canvas, rng)
    y0 = read_sign(twice).box[1]
    twice = np.concatenate([twice[y0 - 4 : y0 + 12], twice[y0 - 4 : y0 + 12], twice[:32]])
    assert read_sign(twice).rival > 1


def test_edit_distance_and_the_published_text_reward_on_known_strings():
    pairs = (("KITTEN", "SITTING"), ("", "AB"), ("AB", "AB"), ("AB", "BA"))
    assert [edit_distance(*pair) for pair in pairs] == [3, 2, 0, 2]
    assert text_reward_flowgrpo("XXABCXX", "ABC") == 1
    assert text_reward_flowgrpo("ABX", "ABC") == pytest.approx(2 / 3)
    assert text_reward_flowgrpo("ZZZZZZZZZ", "ABC") == 0


def test_frechet_sees_one_layout_and_a_wiped_background_where_verdicts_do_not():
    def pictures(seed, layout=None):
        rng = np.random.default_rng(seed)
        records = [draw("train", TAGS[i % 6], rng) for i in range(240)]
        return np.stack([render_image(r, 32, np.random.default_rng(layout) if layout else rng) for r in records])

    reference = texture_features(pictures(1))
    fresh = frechet_distance(texture_features(pictures(2)), reference)
    assert frechet_distance(reference, reference) == pytest.approx(0, abs=1e-3)
    assert fresh < 2
    assert frechet_distance(texture_features(pictures(2, layout=5)), reference) > 5 * fresh


def test_frechet_between_gaussians_is_the_closed_form():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(200_000, 2))
    # Scaled by the reference's spread of 1: (shift² + (2 - 1)²) over two independent axes.
    b = a * [1.0, 2.0] + [3.0, 0.0]
    assert frechet_distance(b, a) == pytest.approx(9 + 1, rel=0.02)


def test_diversity_is_zero_for_copies_and_falls_when_layouts_collapse():
    record = {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a test"}
    rng = np.random.default_rng(0)
    free = np.stack([render_image(record, 32, rng) for _ in range(12)])
    item = place_objects(record, 32, rng)
    still = np.stack([scene(32, *item, seed=7) for _ in range(12)])
    assert diversity(still) == 0
    backdrops = np.stack([scene(32, *item, seed=seed) for seed in range(12)])
    assert 0 < diversity(backdrops) < diversity(free)
    with pytest.raises(ValueError, match="two images"):
        diversity(free[:1])


# Bounds of a sign, one at a time.

CLEAN = dict(text="AB", confidence=0.9, rival=0.2, contrast=60.0, box=(8, 8, 20, 16), scale=1)


def judged(monkeypatch, target="AB", around=0.0, size=32, **reading):
    """The verdicts on a sign that was read so, and beside which this share of the pixels is something else."""
    other = np.zeros((size, size), bool)
    other.reshape(-1)[: round(around * size**2)] = True
    monkeypatch.setattr(verifier, "read_sign", lambda image: SignReading(**(CLEAN | reading)))
    monkeypatch.setattr(verifier, "segment", lambda image: SimpleNamespace(background=~other))
    monkeypatch.setattr(verifier, "clutter", lambda pixels: pixels.mean())
    return verify({"tag": "text", "text": target, "prompt": ""}, np.zeros((size, size, 3), np.uint8))


@pytest.mark.parametrize(
    "name, inside, outside", [("rival", 0.499, 0.5), ("contrast", 45.1, 45.0), ("confidence", 0.801, 0.8)]
)
def test_closed_needs_a_clear_sign(monkeypatch, name, inside, outside):
    assert judged(monkeypatch, **{name: inside})["closed"] == 1
    assert judged(monkeypatch, **{name: outside})["closed"] == 0
    assert judged(monkeypatch, **{name: outside})["strict"] == 1


def test_closed_needs_nothing_around_the_sign(monkeypatch):
    assert judged(monkeypatch, around=4 / 32**2)["closed"] == 1  # .0039
    assert judged(monkeypatch, around=5 / 32**2)["closed"] == 0
    assert judged(monkeypatch, text="AC")["closed"] == 0


@pytest.mark.parametrize("scale", [1, 2])
def test_the_plate_and_its_edge_belong_to_the_sign(monkeypatch, scale):
    edge = 2 * scale + 1
    x0, y0, x1, y1 = CLEAN["box"]
    for corner, belongs in [
        ((y0 - edge, x0 - edge), 1),
        ((y0 - edge - 1, x0), 0),
        ((y1 + edge - 1, x1 + edge - 1), 1),
        ((y1, x1 + edge), 0),
    ]:
        background = np.ones((32, 32), bool)
        background[corner] = False
        monkeypatch.setattr(verifier, "read_sign", lambda image: SignReading(**(CLEAN | {"scale": scale})))
        monkeypatch.setattr(verifier, "segment", lambda image, seen=background: SimpleNamespace(background=seen))
        monkeypatch.setattr(verifier, "clutter", lambda pixels: float(pixels.any()))
        assert verify({"tag": "text", "text": "AB", "prompt": ""}, np.zeros((32, 32, 3), np.uint8))["closed"] == belongs


@pytest.mark.parametrize(
    "reading, agreement, visible, rivalled",
    [
        ({}, 1, 1, 1),
        (dict(text="AC"), 1 / 2, 1, 1),
        (dict(text="ABCD"), 1 / 2, 1, 1),
        (dict(text="A"), 1 / 2, 1, 1),
        (dict(contrast=15.0), 1, 0, 1),
        (dict(contrast=5.0), 1, 0, 1),
        (dict(contrast=30.0), 1, 0.5, 1),
        (dict(contrast=45.0), 1, 1, 1),
        (dict(rival=0.3), 1, 1, 1),
        (dict(rival=0.8), 1, 1, np.exp(-0.5)),
    ],
)
def test_partial_credit_of_a_sign_is_a_product(monkeypatch, reading, agreement, visible, rivalled):
    assert judged(monkeypatch, **reading)["partial"] == pytest.approx(agreement * visible * rivalled)


def test_the_published_rewards_of_a_sign(monkeypatch):
    longer = judged(monkeypatch, text="XABY")
    assert (longer["official"], longer["strict"], longer["ocr_flowgrpo"]) == (1, 0, 1)
    wrong = judged(monkeypatch, text="AXYZ", target="ABC")
    assert wrong["official"] == 0 and wrong["partial_flowgrpo"] == wrong["ocr_flowgrpo"] == pytest.approx(0.0)
    near = judged(monkeypatch, text="ABX", target="ABC")
    assert near["ocr_flowgrpo"] == pytest.approx(2 / 3)


@both_sizes
def test_each_size_has_thresholds_of_its_own(monkeypatch, size):
    seen = []
    record = {"tag": "counting", "include": [{"class": "circle", "count": 1}], "prompt": ""}
    monkeypatch.setattr(verifier, "detect", lambda image: SimpleNamespace(detections=["d"], unexplained=0.25))
    monkeypatch.setattr(verifier, "score_detections", lambda *words, **options: seen.append((words, options)) or 0.5)
    verdicts = verify(record, np.zeros((size, size, 3), np.uint8))
    assert set(verdicts) == set(verifier.MODES) and set(verdicts.values()) == {0.5}
    detection, counting = {32: (0.66, 0.68), 64: (0.76, 0.78)}[size]
    for (asked, detections, _), options in seen:
        assert asked is record and detections == ["d"]
        assert options == {"threshold": detection, "counting_threshold": counting, "unexplained": 0.25}
