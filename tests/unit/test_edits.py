"""The editing world: what is asked, what is true, and what only seems so."""

import json

import numpy as np
import pytest

from afterflow.data.edits import EditImages, EditPrompts
from afterflow.data.images import CaptionedImage, LeftOut
from afterflow.envs.shapes import edits
from afterflow.envs.shapes.detector import detect
from afterflow.envs.shapes.edit_verifier import validate_edit, verify_edit
from afterflow.envs.shapes.edits import EDIT_TASKS, EditScene, draw_edit, edit_suite, render_scene
from afterflow.envs.shapes.poses import object_box, shown_object
from afterflow.rewards.registry import find_reward
from afterflow.system.errors import ConfigError, InputError
from afterflow.system.input_pictures import read_input
from wrong_edits import attacks, elsewhere, hard_negative, scenes, true_variants, whole

PER_TASK = 4
ATTACKS = (
    *("the input", "all blurred", "the input blurred", "one grey", "another right scene"),
    *("a quarter of the old object", "a third of the old object", "every second row of the old object"),
    *(
        "a silhouette of the old object",
        "a dark patch beside the new object",
        "half of the new object in another colour",
    ),
    *("30 % of the old letters", "40 % of one old letter", "a pattern of single pixels"),
    *("all 4 levels lighter", "all 4 levels darker", "4 levels redder"),
    *("a kept object is moved by 1 px", "a kept object is 12 % larger", "a kept object is 12 % smaller"),
)


@pytest.fixture(scope="module")
def records():
    return [record for split in ("train", "test") for record in edit_suite(split, PER_TASK // 2, 0)]


@pytest.fixture(scope="module")
def attacked(records):
    """Attacks on all records, by kind."""
    rng, made = np.random.default_rng(1), {}
    for record in records:
        for name, picture in attacks(record, rng):
            made.setdefault(name, []).append((record, picture))
    return made


@pytest.mark.parametrize("name", ATTACKS)
def test_a_picture_with_a_part_that_is_wrong_fails(attacked, name):
    assert set(attacked) == set(ATTACKS)
    for record, picture in attacked[name]:
        scores = verify_edit(record, picture)
        assert scores.strict == 0 and scores.partial < 0.99, record["prompt"]


def test_right_pictures_pass_with_noise_and_at_other_places(records):
    rng = np.random.default_rng(3)
    for record in records:
        for name, picture in true_variants(record, rng):
            scores = verify_edit(record, picture)
            assert scores.strict == 1 and scores.partial > 0.85, (record["prompt"], name)


def test_what_is_left_costs_partial_credit_of_what_was_asked(records):
    """The more of the old object is left, the less credit, and below the limits other light costs some, too."""
    record = next(record for record in records if record["tag"] == "remove")
    before, after = scenes(record)
    right, source = (render_scene(scene).astype(float) for scene in (after, before))
    (gone,) = [o for o in before.objects if o not in after.objects]
    left, top, right_edge, bottom = (round(edge) for edge in object_box(gone))
    credits = []
    for width in (0, 3, 5):
        picture = right.copy()
        picture[top:bottom, left : left + width] = source[top:bottom, left : left + width]
        credits.append(verify_edit(record, whole(picture)).done_partly)
    assert left + 5 < right_edge and credits[0] == 1 > credits[1] > credits[2] > 0
    kept = [verify_edit(record, whole(right + level)).preserved_partly for level in (0, 1, 2)]
    assert kept[0] == pytest.approx(1.0, abs=0.005) and kept[0] > kept[1] > kept[2] > 0.9


def test_a_true_edit_passes_and_everything_else_does_not(records):
    rng = np.random.default_rng(0)
    for record in records:
        before, after = scenes(record)
        true = verify_edit(record, render_scene(after))
        assert true.strict == 1 and true.partial == pytest.approx(1.0, abs=0.005), record["prompt"]
        wrong, what = hard_negative(record, rng)
        assert verify_edit(record, wrong).strict == 0, (record["prompt"], what)
        untouched = verify_edit(record, render_scene(before))
        assert (untouched.done, untouched.preserved) == (0, 1) and untouched.partial < 0.05


def test_the_input_of_a_record_is_its_scene(records):
    for record in records:
        assert json.loads(json.dumps(record)) == record
        assert np.array_equal(read_input(record["input"]), render_scene(EditScene.from_record(record["scene"])))
        validate_edit(record)


def test_what_an_edit_does_not_touch_is_the_same_to_the_last_pixel(records):
    for record in (record for record in records if record["tag"] != "retype"):
        before, after = scenes(record)
        stays = [item for item in before.objects if item in after.objects]
        changed = (render_scene(before) != render_scene(after)).any(-1)
        assert 0 < changed.mean() < 0.5
        for item in stays:
            assert not changed[int(item.cy), int(item.cx)]


@pytest.mark.parametrize("task", EDIT_TASKS)
def test_splits_share_no_request_that_is_held_out(task):
    rng = np.random.default_rng(1)
    ends = {}
    for split in ("train", "test"):
        drawn = [draw_edit(split, task, rng) for _ in range(30)]
        ends[split] = {asked(record) for record in drawn}
    assert ends["train"] and ends["test"] and not ends["train"] & ends["test"]


def test_every_request_to_move_is_fulfilled_by_its_own_result():
    """Results of these three were at the very limit of their direction."""
    records = edits.edit_suite("test", 64, 0, ("move",))
    for record in (records[i] for i in (26, 44, 63)):
        validate_edit(record)


def test_a_layout_that_is_drawn_again_changes_no_other_request(monkeypatch):
    drawn = edits.edit_suite("test", 50, 0, ("move",))
    monkeypatch.setattr(edits, "MOVE_MARGIN", -1.0)
    first = edits.edit_suite("test", 50, 0, ("move",))
    changed = [i for i in range(50) if drawn[i] != first[i]]
    assert 0 < len(changed) < 7 and all(drawn[i]["prompt"] == first[i]["prompt"] for i in changed)


def test_the_pose_of_an_object_is_seen_in_a_picture(records):
    """What was added is found within half a pixel, whatever its place, size and rotation."""
    rng = np.random.default_rng(4)
    for record in [record for record in records if record["tag"] == "add"] * 3:
        _, after = scenes(record)
        scene = elsewhere(after, after.objects[-1], rng)
        picture = render_scene(scene)
        item = scene.objects[-1]
        x, y = (sum(object_box(item)[axis::2]) / 2 for axis in (0, 1))
        d = min(detect(picture).detections, key=lambda d: abs(d.box[0] + d.box[2] - 2 * x) + abs(d.box[1] - y))
        bare = render_scene(EditScene(scene.seed, scene.objects[:-1])).astype(np.float32)
        seen = shown_object(d, None, picture.astype(np.float32), bare)
        assert (seen.cls, seen.color) == (item.cls, item.color)
        assert np.hypot(seen.cx - item.cx, seen.cy - item.cy) < 0.5 and seen.r == pytest.approx(item.r, rel=0.05)


def asked(record):
    """What the request is about: (task, class, colour), or the new text."""
    before, after = scenes(record)
    if after.sign is not None:
        return after.sign.text
    changed = [o for o in after.objects if o not in before.objects] or [
        o for o in before.objects if o not in after.objects
    ]
    if record["tag"] == "swap":
        first = record["prompt"].split()[2:4]
        changed = [o for o in changed if [o.color, o.cls] == first]
    return record["tag"], changed[0].cls, changed[0].color


def test_partial_credit_grows_with_what_is_done():
    """An object that was to move right has more credit the further it went, and none where it was."""
    rng = np.random.default_rng(2)
    record = next(r for r in (draw_edit("train", "move", rng) for _ in range(100)) if r["prompt"].endswith("right"))
    before, after = scenes(record)
    (old,) = [o for o in before.objects if o not in after.objects]
    credits = []
    for step in (0, 3, 4):
        moved = tuple(type(o)(o.cls, o.color, o.cx + step * (o is old), o.cy, o.r, o.rot) for o in before.objects)
        credits.append(verify_edit(record, render_scene(EditScene(before.seed, moved))).partial)
    assert credits[0] == 0 < credits[1] < credits[2]


def test_the_rewards_are_the_verdicts(records):
    for name, expected in (
        ("edits_strict", 1.0),
        ("edits_partial", 1.0),
        ("edits_done", 1.0),
        ("edits_preserved", 1.0),
    ):
        pictures = np.stack([render_scene(EditScene.from_record(record["result"])) for record in records[:4]])
        assert find_reward(name).score(pictures, records[:4]).tolist() == pytest.approx([expected] * 4, abs=0.005)


def test_data_of_the_world_are_the_same_for_a_seed():
    assert EditPrompts(count=14).records(3) == EditPrompts(count=14).records(3) != EditPrompts(count=14).records(4)
    images = list(EditImages(count=7).images(0, (64, 64)))
    assert [image.record["tag"] for image in images] == list(EDIT_TASKS)
    assert all(verify_edit(image.record, image.pixels()).strict for image in images)
    with pytest.raises(ConfigError, match="pictures of 64 px, and the model draws 32; set its size"):
        next(EditImages().images(0, (32, 32)))
    with pytest.raises(ConfigError, match="no task is called 'recolour'; did you mean recolor"):
        EditPrompts(tasks=("recolour",))


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (64, 64)])
def test_cut_pictures_hold_all_that_an_edit_changes(size):
    whole, cut = (list(EditImages(count=28, cropped=c).images(5, s)) for c, s in ((False, (64, 64)), (True, size)))
    assert 14 < sum(isinstance(image, CaptionedImage) for image in cut) <= 28
    for image, part in zip(whole, cut):
        before, after = read_input(image.record["input"]), image.pixels()
        changed = np.argwhere((before != after).any(-1))
        if isinstance(part, LeftOut):
            assert (np.ptp(changed, 0) >= size).any() and part.reason == "that change more than the model draws"
            continue
        seen = read_input(part.record["input"]), part.pixels()
        assert seen[0].shape == seen[1].shape == (*size, 3) == (*part.size, 3)
        places = np.argwhere((seen[0] != seen[1]).any(-1))
        top, left = changed.min(0) - places.min(0)
        window = np.s_[top : top + size[0], left : left + size[1]]
        assert (seen[0] == before[window]).all() and (seen[1] == after[window]).all()
        assert len(places) == len(changed) and part.record["prompt"] == image.record["prompt"]


def test_cut_pictures_are_no_larger_than_the_world_and_have_no_reward():
    with pytest.raises(ConfigError, match="pictures of 64 px, and the model draws 72"):
        next(EditImages(cropped=True).images(0, (32, 72)))
    with pytest.raises(ConfigError, match="min_reward measures whole pictures"):
        EditImages(cropped=True, min_reward={"edits_strict": 1.0})


@pytest.mark.parametrize("change", [{"tag": "paint"}, {"scene": 3}, {"result": {"seed": 0}}, {"scene": None}])
def test_a_record_that_is_no_edit_is_refused(records, change):
    with pytest.raises(InputError, match=r"tag must be one of|are no edit of the editing world"):
        validate_edit(records[0] | change)


def test_a_pair_of_scenes_that_is_no_edit_is_refused(records):
    for record in records:
        with pytest.raises(InputError, match=r"no edit of the editing world|does not do what it asks"):
            validate_edit(record | {"result": record["scene"]})
        with pytest.raises(InputError, match="prompt must be a text"):
            validate_edit(record | {"prompt": 3})
    moved = next(record for record in records if record["tag"] == "move")
    with pytest.raises(InputError, match="no edit of the editing world"):
        validate_edit(moved | {"prompt": "move it somewhere"})


def test_pictures_of_another_size_are_refused(records):
    with pytest.raises(InputError, match=r"judged in 64 x 64 px, and these pictures have 32 x 32; set model\.size"):
        find_reward("edits_strict").score(np.zeros((1, 32, 32, 3), np.uint8), records[:1])
