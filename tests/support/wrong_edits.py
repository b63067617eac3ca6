"""Pictures that do not do what an edit asks, or do more than that."""

from dataclasses import replace

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter

from afterflow.envs.shapes.edits import EditScene, Sign, _placed, render_scene
from afterflow.envs.shapes.world import CHARS, COLORS, SHAPES, coverage

SHADE = 0.72
"""Light that a silhouette leaves; a shadow of the world leaves .76."""


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
    yield from leftovers(record, rng)
    yield from shifted_grounds(right)
    yield from nearly_kept(record, rng)


def leftovers(record, rng):
    """Pictures in which a part of the old object, or of the old letters, is still there, by name."""
    before, after = scenes(record)
    right, source = (render_scene(scene).astype(float) for scene in (after, before))
    old = [o for o in before.objects if o not in after.objects]
    new = [o for o in after.objects if o not in before.objects]
    if before.sign is not None:
        yield "30 % of the old letters", whole(right + 0.3 * (source - right))
        letters = np.zeros((64, 64), bool)
        letters[:, columns_of_a_letter(before, after, rng)] = True
        yield "40 % of one old letter", whole(np.where(letters[..., None], right + 0.4 * (source - right), right))
    for item in old[:1]:
        mask = covered(item) > 0.5
        yield from parts_left(right, source, mask, rng)
        if not np.any([covered(o) > 0.02 for o in new], 0).sum() or record["tag"] == "move":
            yield "a silhouette of the old object", shaded(right, mask & ~near(new, 1))
    for item in new[:1]:
        shade = np.roll(covered(item) > 0.5, rng.choice([-1, 1]) * int(item.r), 1) & ~near([item], 1)
        yield "a dark patch beside the new object", shaded(right, shade)
        side = covered(item) > 0.5
        side[:, : int(item.cx)] = False
        other = render_scene(replaced(after, item, replace(item, color=other_than(COLORS, item.color, rng))))
        yield "half of the new object in another colour", whole(np.where(side[..., None], other, right))


def parts_left(right, source, mask, rng):
    """The right picture with parts of the old object, where that can be seen."""
    if (mask & (abs(right - source).max(-1) > 40)).sum() < 0.9 * mask.sum():
        return  # what stands in its place now covers it
    rows, columns = np.indices(mask.shape)
    along = rows if rng.random() < 0.5 else columns
    along = along if rng.random() < 0.5 else -along
    for name, share in (("a quarter", 0.25), ("a third", 1 / 3)):
        part = mask & (along <= np.quantile(along[mask], share))
        yield f"{name} of the old object", whole(np.where(part[..., None], source, right))
    yield "every second row of the old object", whole(np.where((mask & (rows % 2 == 0))[..., None], source, right))


def columns_of_a_letter(before, after, rng):
    """The columns of one letter that changed."""
    old, new = before.sign.text, after.sign.text
    at = int(rng.choice([i for i in range(len(new)) if old[i] != new[i]]))
    scale = 2 if 12 * len(new) + 6 <= 64 else 1
    left = (64 - scale * (6 * len(new) - 1)) // 2 + 6 * scale * at
    return slice(left, left + 5 * scale)


def shifted_grounds(right):
    """The right picture with other light, or with a pattern."""
    yield "a pattern of single pixels", whole(right + 8.0 * (np.indices((64, 64)).sum(0) % 2 * 2 - 1)[..., None])
    yield "all 4 levels lighter", whole(right + 4.0)
    yield "all 4 levels darker", whole(right - 4.0)
    yield "4 levels redder", whole(right + np.array([4.0, 0.0, -4.0]))


def nearly_kept(record, rng):
    """Pictures in which an object that was to stay is a little moved, or larger."""
    before, after = scenes(record)
    stays = [o for o in after.objects if o in before.objects]
    if stays:
        item, angle = stays[rng.integers(len(stays))], rng.uniform(0, 2 * np.pi)
        moved = replace(item, cx=item.cx + np.cos(angle), cy=item.cy + np.sin(angle))
        yield "a kept object is moved by 1 px", render_scene(replaced(after, item, moved))
        for name, factor in (("larger", 1.12), ("smaller", 0.88)):
            resized = render_scene(replaced(after, item, replace(item, r=factor * item.r)))
            yield f"a kept object is 12 % {name}", resized


def true_variants(record, rng):
    """Right pictures besides the rendered result, by name."""
    _, after = scenes(record)
    right = render_scene(after).astype(float)
    noise = rng.normal(0, 2, right.shape) + rng.uniform(-2, 2)
    yield "true edits with noise and another level", whole(right + noise)
    if record["tag"] in ("add", "count"):
        other = elsewhere(after, after.objects[-1], rng)
        yield "true edits elsewhere", whole(render_scene(other) + rng.normal(0, 1, right.shape))


def elsewhere(scene, item, rng):
    """The scene with one object at another place, of another size and rotation."""
    rest = [o for o in scene.objects if o is not item]
    for _ in range(500):
        r, turn = max(item.r * rng.uniform(0.9, 1.1), 6.0), rng.uniform(-0.2, 0.2)
        cx, cy = rng.uniform(r + 2, 62 - r, 2)
        if all(np.hypot(cx - o.cx, cy - o.cy) > (r + o.r) * 1.12 + 3 for o in rest):
            return replaced(scene, item, replace(item, cx=cx, cy=cy, r=r, rot=turn))
    return replaced(scene, item, replace(item, rot=turn))


def covered(item):
    return coverage(item.cls, 64, item.cx, item.cy, item.r, item.rot)


def near(items, steps):
    mask = np.any([covered(item) > 0.02 for item in items], 0) if items else np.zeros((64, 64), bool)
    return binary_dilation(mask, np.ones((3, 3), bool), steps)


def shaded(pixels, mask):
    """The picture with dim grey in a mask: what is around it in less light."""
    grey = np.median(pixels, (0, 1))
    return whole(np.where(mask[..., None], SHADE * grey, pixels))


def whole(pixels):
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def blurred(pixels, sigma=1.2):
    return np.clip(gaussian_filter(pixels.astype(float), (sigma, sigma, 0)), 0, 255).astype(np.uint8)


def another(scene, rng):
    """The same objects, or the same sign, elsewhere and on another ground."""
    seed = int(rng.integers(2**31))
    if scene.sign is not None:
        return render_scene(replace(scene, seed=seed))
    return render_scene(EditScene(seed, tuple(_placed([(o.cls, o.color) for o in scene.objects], rng))))
