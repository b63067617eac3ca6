"""Pictures that do not do what an edit asks, or do more than that."""

from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter

from afterflow.envs.shapes.edits import EditScene, Sign, _placed, render_scene
from afterflow.envs.shapes.world import CHARS, COLORS, SHAPES


def scenes(record):
    return (EditScene.from_record(record[name]) for name in ("scene", "result"))


def other_than(values, value, rng):
    return str(rng.choice([each for each in values if each != value]))


def hard_negative(record, rng):
    """A picture of a scene that is one fact away from the right one, and what is wrong with it."""
    before, after = scenes(record)
    if before.sign is not None:
        return sign_negative(before, after, rng)
    changed = [o for o in after.objects if o not in before.objects]
    stays = [o for o in after.objects if o in before.objects]
    kinds = ["ground"] + ["stays"] * (len(stays) > 0) * 3 + ["changed"] * 3
    kind = str(rng.choice(kinds))
    if kind == "ground":
        level = int(rng.choice([-1, 1])) * 12
        return np.clip(render_scene(after).astype(int) + level, 0, 255).astype(np.uint8), "the ground is lighter"
    if kind == "stays":
        item = stays[rng.integers(len(stays))]
        wrong, what = spoiled(item, rng)
        return render_scene(replaced(after, item, wrong)), f"an object that was to stay {what}"
    if record["tag"] == "remove":
        (gone,) = [o for o in before.objects if o not in after.objects]
        other = stays[rng.integers(len(stays))]
        return render_scene(replaced(before, other, None)), f"{other.cls} is gone and not {gone.cls}"
    item = changed[0]
    if record["tag"] == "move":
        (old,) = [o for o in before.objects if o not in after.objects]
        back = replace(item, cx=2 * old.cx - item.cx, cy=2 * old.cy - item.cy)
        if inside(back):
            return render_scene(replaced(after, item, back)), "it went the other way"
    if record["tag"] == "recolor":
        old = next(o for o in before.objects if o not in after.objects)
        colors = [color for color in COLORS if color not in (item.color, old.color)]
        wrong, what = replace(item, color=str(rng.choice(colors))), "another colour"
    else:
        wrong, what = spoiled(item, rng, moves=record["tag"] == "swap")
    return render_scene(replaced(after, item, wrong)), f"what was asked for {what}"


def sign_negative(before, after, rng):
    sign = after.sign
    at = int(rng.integers(len(sign.text)))
    text = sign.text[:at] + other_than(CHARS, sign.text[at], rng) + sign.text[at + 1 :]
    kind = int(rng.integers(3))
    if kind == 0:
        return render_scene(replace(after, sign=replace(sign, text=text))), "a letter is wrong"
    if kind == 1:
        return render_scene(replace(after, sign=Sign(sign.text, sign.ink, sign.plate))), "the colours are exchanged"
    level = int(rng.choice([-1, 1])) * 12
    return np.clip(render_scene(after).astype(int) + level, 0, 255).astype(np.uint8), "the ground is lighter"


def spoiled(item, rng, moves=True):
    """The object with one fact changed."""
    choice = int(rng.integers(4 if moves else 3))
    if choice == 0:
        return replace(item, color=other_than(COLORS, item.color, rng)), "has another colour"
    if choice == 1:
        return replace(item, cls=other_than(SHAPES, item.cls, rng)), "has another shape"
    if choice == 2:
        return None, "is gone"
    for angle in rng.uniform(0, 2 * np.pi, 40):
        moved = replace(item, cx=item.cx + 6 * np.cos(angle), cy=item.cy + 6 * np.sin(angle))
        if inside(moved):
            return moved, "is moved by 6 px"
    return None, "is gone"


def inside(item):
    return all(item.r + 1 < at < 63 - item.r for at in (item.cx, item.cy))


def replaced(scene, item, other):
    return replace(scene, objects=tuple(o for o in (other if o is item else o for o in scene.objects) if o is not None))


def attacks(record, rng):
    """Pictures that a lazy editor returns, by name."""
    before, after = scenes(record)
    right = render_scene(after)
    yield "the input", render_scene(before)
    yield "all blurred", blurred(right)
    yield "the input blurred", blurred(render_scene(before))
    yield "one grey", np.full_like(right, int(right.mean()))
    yield "another right scene", another(after, rng)


def blurred(pixels, sigma=1.2):
    return np.clip(gaussian_filter(pixels.astype(float), (sigma, sigma, 0)), 0, 255).astype(np.uint8)


def another(scene, rng):
    """The same objects, or the same sign, elsewhere and on another ground."""
    seed = int(rng.integers(2**31))
    if scene.sign is not None:
        return render_scene(replace(scene, seed=seed))
    return render_scene(EditScene(seed, tuple(_placed([(o.cls, o.color) for o in scene.objects], rng))))
