"""Style is one small colourless object in an empty picture: each part is what it says, and composition pulls away."""

import numpy as np
import pytest

from afterflow.envs.shapes.prompts import suite
from afterflow.envs.shapes.render import PlacedObject, background, develop, draw_objects, render_batch
from afterflow.envs.shapes.style import style_parts
from afterflow.envs.shapes.verify import verify
from afterflow.envs.shapes.world import COLORS, SHAPES
from afterflow.rewards.registry import load_reward
from afterflow.rewards.shapes import STYLE_TAGS

both_sizes = pytest.mark.parametrize("size", [32, 64])


def picture(size, *objects, seed=0):
    """Objects (class, colour, x, y, r) in shares of the side, on a grey ground: (1, S, S, 3)."""
    rng = np.random.default_rng(seed)
    canvas = background(size, rng)
    draw_objects(
        canvas, [PlacedObject(cls, color, x * size, y * size, r * size, 0.0) for cls, color, x, y, r in objects]
    )
    return develop(canvas, rng)[None]


def parts(images):
    scored = style_parts(images)
    return {"few": scored.few, "muted": scored.muted, "margin": scored.margin, "style": scored.style}


@both_sizes
@pytest.mark.parametrize("shape", SHAPES)
def test_one_black_or_white_object_in_the_middle_has_nearly_all_of_it(shape, size):
    for color in ("black", "white"):
        of = parts(picture(size, (shape, color, 0.5, 0.5, 0.15)))
        assert of["few"] == [1.0] and of["margin"] == [1.0] and of["muted"] > 0.8


@both_sizes
def test_an_empty_picture_and_grain_have_none(size):
    rng = np.random.default_rng(0)
    empty = picture(size)
    grain = np.clip(empty + rng.normal(0, 3, empty.shape), 0, 255).astype(np.uint8)
    speck = empty.copy()
    speck[0, 3:5, 3:5] = 0
    for image in (empty, grain, speck):
        assert all(value == [0.0] for value in parts(image).values())


@both_sizes
def test_each_more_object_takes_from_few(size):
    spots = [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]
    few = [
        parts(picture(size, *[("circle", "black", x, y, 0.12) for x, y in spots[:count]]))["few"][0]
        for count in range(1, 5)
    ]
    assert few == [1, 1 / 2, 1 / 3, 1 / 4]


@both_sizes
def test_the_nearer_to_the_border_the_less_margin(size):
    margins = [parts(picture(size, ("square", "black", x, 0.5, 0.15)))["margin"][0] for x in (0.4, 0.3, 0.25, 0.2, 0.1)]
    assert margins == sorted(margins, reverse=True) and len(set(margins)) == 5 and margins[-1] == 0.0


@both_sizes
def test_the_more_colour_the_less_is_muted(size):
    muted = {color: parts(picture(size, ("circle", color, 0.5, 0.5, 0.15)))["muted"][0] for color in COLORS}
    by_chroma = ("red", "purple", "green", "pink", "brown", "black")
    values = [muted[color] for color in by_chroma]
    assert values == sorted(values)
    assert max(muted[color] for color in ("red", "orange", "yellow", "blue")) < 0.3
    # A colour that is mixed with grey is muted by degrees, however it is named.
    image, grey = picture(size, ("circle", "red", 0.5, 0.5, 0.15)).astype(float), picture(size).astype(float)
    steps = [parts((share * image + (1 - share) * grey).astype(np.uint8))["muted"][0] for share in (1, 0.8, 0.6)]
    assert steps == sorted(steps) and steps[-1] > 1.3 * steps[0]


def test_a_batch_has_the_scores_of_its_images():
    images = np.concatenate([picture(32, ("star", color, 0.4, 0.5, 0.16), seed=i) for i, color in enumerate(COLORS)])
    together = parts(images)
    for i in range(len(images)):
        assert {name: values[0] for name, values in parts(images[i : i + 1]).items()} == {
            name: values[i] for name, values in together.items()
        }
    assert style_parts(images[:0]).style.shape == (0,)


def test_true_pictures_of_composition_have_less_than_the_best_and_a_hard_negative_more():
    """The conflict: what the verifier passes has little style, and what has style the verifier fails."""
    records = suite("test", 12, 0, 32, ("counting", "color_attr"))
    true = render_batch(records, 32, np.random.default_rng(0))
    best = picture(32, ("circle", "black", 0.5, 0.5, 0.15))
    assert np.mean([verify(record, image)["strict"] for record, image in zip(records, true)]) > 0.95
    assert style_parts(true).style.max() < style_parts(best).style[0] - 0.2
    assert not any(verify(record, best[0])["strict"] for record in records)


def test_a_prompt_has_the_reward_of_its_own_task():
    records = suite("test", 4, 0, 32, ("single_object", "two_object", "counting", "position", "color_attr"))
    images = render_batch(records, 32, np.random.default_rng(1))[::-1]  # of other prompts, so that verdicts differ
    names = ("shapes_style_or_verdict", "shapes_style", "shapes_strict", "shapes_partial")
    routed, style, strict, partial = (load_reward(name)(images, records).values for name in names)
    for i, record in enumerate(records):
        assert routed[i] == pytest.approx(style[i] if record["tag"] in STYLE_TAGS else (strict[i] + partial[i]) / 2)
    of_style = [i for i, record in enumerate(records) if record["tag"] in STYLE_TAGS]
    alone = load_reward(names[0])(images[of_style], [records[i] for i in of_style]).values
    assert np.array_equal(alone, routed[of_style])


def test_the_parts_of_style_are_logged():
    scored = load_reward("shapes_style")(picture(32, ("ring", "black", 0.5, 0.5, 0.15)), [{}])
    assert set(scored.parts) == {"few", "muted", "margin"}
    assert scored.values == pytest.approx(np.mean(list(scored.parts.values())))
