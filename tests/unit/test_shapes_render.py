"""Renders show what they are asked for, where an independent look at the pixels says so."""

import numpy as np
import pytest
from scipy import ndimage

from afterflow.envs.shapes.prompts import draw
from afterflow.envs.shapes.render import background, place_objects, render_batch, render_image
from afterflow.envs.shapes.world import CHARS, COLORS, GLYPHS, PALETTE_LAB, PALETTE_RGB, SHAPES, TAGS, coverage, lab


def one(shape, color=None, count=1):
    clause = {"class": shape, "count": count} | ({"color": color} if color else {})
    return {"tag": "colors", "include": [clause], "prompt": "a test"}


AREAS = {
    "circle": np.pi,
    "square": (2 * 0.92) ** 2,
    "triangle": 1.81 * 1.81 / 1.81,
    "diamond": 2.0,
    "cross": 2 * 2 * 0.66 - 0.66**2,
    "ring": np.pi * (1 - 0.52**2),
    "star": 5 * 0.47 * np.sin(np.pi / 5),
}


@pytest.mark.parametrize("shape", AREAS)
@pytest.mark.parametrize("rot", [0.0, 0.2])
def test_coverage_integrates_to_the_area_of_the_shape(shape, rot):
    mask = coverage(shape, 40, 19.3, 20.8, 15.0, rot)
    assert mask.sum() == pytest.approx(AREAS[shape] * 15.0**2, rel=0.01)


def test_a_rotation_turns_clockwise_on_the_screen():
    mask = coverage("triangle", 40, 20.0, 20.0, 15.0, 0.2)
    apex_x = np.average(np.arange(40) + 0.5, weights=mask[5:9].sum(0))
    assert apex_x > 20.0 + 10 * np.sin(0.2) / 2


def test_a_moved_shape_is_the_same_shape_elsewhere():
    for shape in SHAPES:
        here, there = coverage(shape, 32, 10.2, 11.4, 5.0, 0.1), coverage(shape, 32, 17.2, 14.4, 5.0, 0.1)
        np.testing.assert_allclose(np.roll(here, (3, 7), (0, 1)), there, atol=0.09)


def test_lab_agrees_with_known_colors():
    np.testing.assert_allclose(lab([255, 255, 255]), [100, 0, 0], atol=0.05)
    np.testing.assert_allclose(lab([255, 0, 0]), [53.24, 80.09, 67.20], atol=0.1)
    np.testing.assert_allclose(lab([0, 0, 0]), [0, 0, 0], atol=0.05)


def test_no_two_palette_colors_are_close():
    gaps = np.linalg.norm(PALETTE_LAB[:, None] - PALETTE_LAB[None], axis=-1)
    assert gaps[np.triu_indices(len(COLORS), 1)].min() > 29


def test_no_two_glyphs_are_close():
    flat = np.array([GLYPHS[char].ravel() for char in CHARS])
    apart = abs(flat[:, None] - flat[None]).sum(-1)[np.triu_indices(len(CHARS), 1)]
    assert apart.min() >= 2


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("color", COLORS)
def test_an_object_has_its_color(size, color):
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        image = render_image(one(shape, color), size, rng)
        near = np.linalg.norm(image - PALETTE_RGB[COLORS.index(color)], axis=-1) < 30
        assert near.sum() > 0.01 * size**2


@pytest.mark.parametrize("size", [32, 64])
def test_objects_are_as_many_as_asked_and_do_not_touch(size):
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        for count in (1, 2, 3, 4, 5):
            image = render_image(one(shape, "black", count), size, rng)
            dark = ndimage.label(image.max(-1) < 80, np.ones((3, 3)))[1]
            assert dark == count


def test_places_obey_the_relation_and_stay_inside():
    rng = np.random.default_rng(0)
    for size in (32, 64):
        for _ in range(100):
            record = draw("train", "position", rng)
            target, mover = place_objects(record, size, rng)
            dx, dy = mover.cx - target.cx, mover.cy - target.cy
            along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}
            relation = record["include"][1]["position"][0]
            assert along[relation] == max(along.values())
            assert all(p.r < p.cx < size - p.r and p.r < p.cy < size - p.r for p in (target, mover))


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("split", ["train", "ood"])
def test_every_kind_of_prompt_can_be_rendered(size, split):
    rng = np.random.default_rng(0)
    tags = [tag for tag in TAGS if (split, tag) != ("ood", "single_object")]
    images = render_batch([draw(split, tag, rng, size) for tag in tags for _ in range(20)], size, rng)
    assert images.shape == (20 * len(tags), size, size, 3) and images.dtype == np.uint8


def test_a_render_follows_from_its_generator():
    record = one("star", count=3)
    images = [render_image(record, 32, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert (images[0] == images[1]).all() and (images[0] != images[2]).any()


def test_the_letters_of_a_sign_stand_in_the_picture_as_drawn():
    record = {"tag": "text", "include": [], "text": "K4Z", "prompt": "a test"}
    grey = render_image(record, 32, np.random.default_rng(0)).mean(-1)
    line = np.concatenate([GLYPHS["K"], np.zeros((7, 1)), GLYPHS["4"], np.zeros((7, 1)), GLYPHS["Z"]], 1)
    windows = np.lib.stride_tricks.sliding_window_view(grey, line.shape).reshape(-1, line.size)
    windows = windows[windows.std(1) > 20]
    match = [abs(np.corrcoef(window, line.ravel())[0, 1]) for window in windows]
    assert max(match) > 0.99


def test_what_prompts_leave_open_varies():
    rng = np.random.default_rng(0)
    planes = np.stack([background(32, rng) for _ in range(200)])
    assert planes.mean((1, 2)).std(0).min() > 5
    assert abs(planes[:, :, -1] - planes[:, :, 0]).mean() > 5
    corner = np.stack([render_image(one("circle"), 32, rng)[:, 0] for _ in range(200)]).astype(float)
    assert 0.5 < np.diff(corner, axis=1).std(1).mean() / np.sqrt(2) < 1.5


def test_a_shadow_darkens_below_and_to_the_right():
    around = []
    for seed in range(40):
        record = one("square", "white")
        item = place_objects(record, 64, _after_background(seed))[0]
        image = render_image(record, 64, np.random.default_rng(seed)).mean(-1)
        off = int(item.r * 1.2) + 1
        y, x = int(item.cy), int(item.cx)
        if off < min(y, x) and max(y, x) < 62 - off:
            around.append((image[y, x - off - 1], image[y, x + off - 1], image[y - off - 1, x], image[y + off - 1, x]))
    left, right, above, below = np.mean(around, 0)
    assert right < left - 3 and below < above - 3


def test_light_falls_on_an_object_from_the_top_left():
    lit, dim = [], []
    for seed in range(10):
        item = place_objects(one("square", "orange"), 64, _after_background(seed))[0]
        image = render_image(one("square", "orange"), 64, np.random.default_rng(seed)).mean(-1)
        reach, x, y = int(0.45 * item.r), int(item.cx), int(item.cy)
        lit.append(image[y - reach, x - reach])
        dim.append(image[y + reach, x + reach])
    assert np.mean(dim) < np.mean(lit) - 3


def _after_background(seed):
    rng = np.random.default_rng(seed)
    background(64, rng)
    return rng


def test_other_sizes_and_scenes_that_do_not_fit_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="32 or 64"):
        render_image(one("circle"), 48, rng)
    with pytest.raises(ValueError, match="ask for fewer"):
        render_image(one("ring", count=12), 32, rng)
    with pytest.raises(ValueError, match="too long"):
        render_image({"tag": "text", "include": [], "text": "ABCDEF", "prompt": "a test"}, 32, rng)
    with pytest.raises(ValueError, match="unknown shape"):
        coverage("blob", 32, 16, 16, 5)
