"""GenEval by transformers' models: scores, masks and boxes by hand, and a tiny random detector from end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from afterflow.envs.geneval_rules import OBJECTS, Detection
from afterflow.envs.shapes.world import COLORS, PALETTE
from afterflow.rewards import geneval_hf
from afterflow.rewards.base import RewardModels
from afterflow.rewards.clip import load_clip_vit_l
from afterflow.rewards.detector_reward import (
    MIN_DETECTION_SCORE,
    ColorNamer,
    Detector,
    detector_rewards,
    gradable,
    to_detections,
)
from afterflow.rewards.geneval_hf import box_around, geneval_classes, instances, load_mask2former, masked_objects
from afterflow.rewards.registry import find_reward, load_reward
from afterflow.system.errors import ConfigError, InputError
from tinies import clip, mask2former

RECORD = {"tag": "colors", "prompt": "a photo of a red dog", "include": [{"class": "dog", "count": 1, "color": "red"}]}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    seer, reader = mask2former(tmp_path_factory.mktemp("mask2former")), clip(tmp_path_factory.mktemp("clip"))
    return RewardModels(weights={"geneval_hf": str(seer), "clipscore": str(reader)}, batch=2)


def queries():
    """Two queries over three classes and a 4 x 4 mask: the first sees class 1 at the left, the second nothing."""
    logits = torch.tensor([[0.0, 3.0, 1.0, 0.0], [0.0, 0.0, 0.0, 9.0]])
    masks = torch.full((2, 4, 4), -8.0)
    masks[0, :, :2] = 8.0
    return logits, masks


def test_a_score_is_the_classs_probability_times_that_of_its_mask():
    logits, masks = queries()
    (label, score, mask), (other, less, same) = instances(logits, masks, (4, 4))
    chance = logits[0].softmax(-1)
    sure = torch.tensor(8.0).sigmoid()
    assert (label, other) == (1, 2)  # of the same query, whose second guess it is
    assert score == pytest.approx(float(chance[1] * sure), rel=1e-4)
    assert less == pytest.approx(float(chance[2] * sure), rel=1e-4)
    assert mask.sum() == 8 and mask[:, :2].all() and (mask == same).all()
    assert box_around(mask) == (0, 0, 2, 4) and box_around(np.zeros((4, 4), bool)) is None
    [(_, _, large), _] = instances(logits, masks, (8, 16))
    assert box_around(large) == (0, 0, 8, 8)


def test_a_colour_is_asked_of_the_object_alone(models):
    """CLIP is replaced by one that names the palette's colour nearest to the mean of what it is shown."""
    palette = torch.tensor([PALETTE[color] for color in COLORS], dtype=torch.float32)
    centre = palette.mean(0)

    class Reader:
        def embed_texts(self, texts):
            assert texts[0] == f"a photo of a {COLORS[0]} dog" and texts[2] == f"a photo of a {COLORS[0]} object"
            return (palette - centre).repeat_interleave(3, 0), None

        def embed_images(self, images, prepare):
            seen.extend(images)
            means = [image.reshape(-1, 3).astype(np.float32).mean(0) for image in images]
            return torch.tensor(np.stack(means)) - centre

    seen, names = [], {0: "cat", 1: "dog", 2: "bus"}
    image = np.zeros((4, 4, 3), np.uint8)
    image[:, :2], image[:, 2:] = PALETTE["red"], PALETTE["blue"]
    found = masked_objects(*queries(), (4, 4), names)
    [[first, second]] = to_detections([image], [found], [RECORD], ColorNamer(Reader()))
    assert (first.cls, first.color, first.box) == ("dog", "red", (0, 0, 2, 4))
    assert (second.cls, second.color) == ("bus", None)  # nobody asked
    assert [crop.shape for crop in seen] == [(4, 2, 3)]


def test_rules_thresholds_and_what_is_kept(models, monkeypatch):
    asked = []

    def detect(self, images, records):
        asked.append(len(images))
        box = (0.0, 0.0, 4.0, 4.0)
        return [[Detection("dog", 0.5, box, "red"), Detection("cat", 0.4, box)] for _ in images]

    monkeypatch.setattr(Detector, "__call__", detect)
    images = np.random.default_rng(0).integers(0, 255, (1, 8, 8, 3), dtype=np.uint8)
    score = lambda name, models=models: load_reward(name, models)(images, [RECORD]).values[0]
    assert [score(f"geneval_hf_{mode}") for mode in ("official", "strict", "flowgrpo")] == [1, 1, 1]
    assert 0.5 < score("geneval_hf") < 1  # there is a cat, too
    assert asked == [1]  # once for all of them
    assert score("geneval_hf_strict", RewardModels(weights=models.weights, options={"geneval_threshold": 0.6})) == 0
    with pytest.raises(ValueError, match="did you mean geneval_threshold"):
        RewardModels(options={"geneval_treshold": 0.6})


def test_unsure_detections_of_what_was_asked_for_earn_their_share():
    box = (0.0, 0.0, 4.0, 4.0)
    seen = [
        Detection("dog", 0.25, box),
        Detection("dog", 0.1, box),
        Detection("cat", 0.25, box),
        Detection("cat", 0.4, box),
    ]
    assert [d.score for d in gradable(RECORD, seen, 0.3, 0.9)] == [0.25, 0.4]
    counting = RECORD | {"tag": "counting"}
    assert [(d.cls, d.score) for d in gradable(counting, seen, 0.3, 0.9)] == [("cat", 0.4)]


def test_a_random_detector_runs_from_end_to_end(models):
    images = np.random.default_rng(1).integers(0, 255, (3, 40, 56, 3), dtype=np.uint8)
    find_objects = load_mask2former(models, models.weights["geneval_hf"], None)
    seen = Detector(find_objects, models)(images, [RECORD] * 3)
    assert len(seen) == 3
    for each in (d for of_image in seen for d in of_image):
        assert each.cls in OBJECTS and 0 <= each.box[0] < each.box[2] <= 56 and each.box[3] <= 40
    scored = load_reward("geneval_hf_strict", models)(images, [RECORD] * 3)
    assert not scored.why and set(scored.values) <= {0.0, 1.0}


def test_a_record_is_of_genevals_objects():
    needs = find_reward("geneval_hf").needs
    needs(RECORD)
    assert len(OBJECTS) == len(set(OBJECTS)) == 80
    with pytest.raises(ValueError, match=r"include\[0\]\.class must be one of person, .*, not 'heart'"):
        needs(RECORD | {"include": [{"class": "heart", "count": 1}]})


OTHER_LISTS = {
    "mmdet's old names": {
        **{"motorcycle": "motorbike", "airplane": "aeroplane", "couch": "sofa", "potted plant": "pottedplant"},
        **{"dining table": "diningtable", "tv": "tvmonitor", "computer mouse": "mouse", "tv remote": "remote"},
        "computer keyboard": "keyboard",
    },
    "underscores": {name: name.replace(" ", "_") for name in OBJECTS},
    "capitals and hyphens": {name: name.title().replace(" ", "-") for name in OBJECTS},
    "spellings": {"hair drier": "hair dryer", "donut": "doughnut", "tv": "television", "cell phone": "mobile phone"},
}


def labels_of(names, order=range(80)):
    return {i: names.get(OBJECTS[k], OBJECTS[k]) for i, k in enumerate(order)}


@pytest.mark.parametrize("names", OTHER_LISTS.values(), ids=list(OTHER_LISTS))
def test_every_list_of_cocos_names_gives_genevals_classes(names):
    assert geneval_classes(labels_of(names)) == dict(enumerate(OBJECTS))
    order = np.random.default_rng(0).permutation(80)
    assert geneval_classes(labels_of(names, order)) == {i: OBJECTS[k] for i, k in enumerate(order)}


@pytest.mark.parametrize(
    "labels, said",
    [
        (labels_of({"couch": "unicorn"}), r"1 are none of them \(unicorn\); 1 of them have no label \(couch\)"),
        (labels_of({"couch": "bed"}), r"1 of them have no label \(couch\)"),
        ({i: f"LABEL_{i}" for i in range(80)}, "80 are none of them"),
        ({i: name for i, name in enumerate(OBJECTS[:79])}, r"its 79 labels .*\(toothbrush\)"),
        (dict(enumerate([*OBJECTS, "grass"])), r"its 81 labels .*\(grass\)"),
        (dict(enumerate([*OBJECTS, "sofa"])), "its 81 labels"),
    ],
)
def test_labels_that_are_not_cocos_classes_are_refused(labels, said):
    with pytest.raises(InputError, match=said):
        geneval_classes(labels)


def test_a_checkpoint_with_other_labels_is_renamed_or_refused_when_it_is_loaded(models, tmp_path, monkeypatch):
    monkeypatch.setattr(geneval_hf, "MIN_DETECTION_SCORE", 0)  # a random detector is sure of nothing
    folder = mask2former(tmp_path, OTHER_LISTS["capitals and hyphens"])
    find_objects = load_mask2former(models, str(folder), None)
    images = np.random.default_rng(1).integers(0, 255, (1, 40, 56, 3), dtype=np.uint8)
    [objects] = find_objects(images)
    found = {cls for cls, *_ in objects}
    assert found and found <= set(OBJECTS)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"]["57"] = "unicorn"
    (folder / "config.json").write_text(json.dumps(config))
    refused = RewardModels(weights={"geneval_hf": str(folder)}, batch=3)
    with pytest.raises(ConfigError, match=r"reward geneval_hf_strict could not be loaded: its 80 labels .*unicorn"):
        load_reward("geneval_hf_strict", refused)


def striped(widths, size=64):
    """Objects in columns of an image, each with its box and mask: (class, score, box, mask)."""
    for k, (cls, score, width) in enumerate(widths):
        mask = np.zeros((size, size), bool)
        mask[k : size - k, k : k + width] = True
        yield cls, score, (float(k), float(k), float(k + width), float(size - k)), mask


@pytest.mark.parametrize("batch, passes", [(2, [2, 2, 2]), (4, [4, 2]), (64, [6])])
def test_colours_of_a_batch_are_named_in_full_passes(batch, passes, tmp_path, monkeypatch):
    models = RewardModels(weights={"clipscore": str(clip(tmp_path))}, batch=batch)
    objects = [("dog", 0.9, 9), ("cat", 0.8, 9), ("dog", 0.31, 20), ("dog", 0.17, 5), ("dog", 0.1, 7)]
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    namer, sizes = ColorNamer(load_clip_vit_l(models)), []
    embed = type(namer.clip.model).get_image_features
    counting = lambda self, pixel_values: sizes.append(len(pixel_values)) or embed(self, pixel_values=pixel_values)
    monkeypatch.setattr(type(namer.clip.model), "get_image_features", counting)
    found = to_detections(images, [striped(objects), striped(objects)], [RECORD] * 2, namer, least=0.1)
    assert sizes == passes
    alone = to_detections(images[1:], [striped(objects)], [RECORD], lambda crops: [namer([c])[0] for c in crops])
    assert [d.color for d in found[1][:4]] == [d.color for d in alone[0][:4]]
    assert [d.color is None for d in found[0]] == [False, True, False, False, True]
    assert [(d.cls, d.score) for d in found[0]] == [(cls, score) for cls, score, _ in objects]


def test_a_detector_asks_for_no_colour_of_what_no_reward_looks_at(models, monkeypatch):
    asked = []
    monkeypatch.setattr(ColorNamer, "__call__", lambda self, crops: asked.append(len(crops)) or ["red"] * len(crops))
    scores = (0.95, 0.55, 0.53, 0.25, 0.19, 0.17, 0.12)
    fake = lambda models, path, revision: (
        lambda images: [striped([("dog", score, 9) for score in scores]) for _ in images]
    )
    [reward, *_] = detector_rewards("fake", fake, ("x", None))
    images = np.zeros((3, 64, 64, 3), np.uint8)
    for threshold, count in ((0.3, 5), (0.4, 4), (0.9, 2)):
        given = RewardModels(weights=models.weights, options={"geneval_threshold": threshold}, batch=8)
        reward.load(given)(images, [RECORD] * 3)
        assert asked.pop() == 3 * count and not asked


@pytest.mark.parametrize("option", ["geneval_threshold", "geneval_counting_threshold"])
@pytest.mark.parametrize(
    "name, value, least",
    [
        ("geneval_hf_official", 0.05, "0.1"),
        ("geneval_strict", 0.0999, "0.1"),
        ("geneval_hf_flowgrpo", 0.0, "0.1"),
        ("geneval_hf", 0.16, "0.167"),
        ("geneval", -1.0, "0.167"),
        ("geneval_hf_strict", 1.0, "0.1"),
    ],
)
def test_a_threshold_below_what_detectors_report_is_refused(option, name, value, least):
    with pytest.raises(ConfigError, match=f"{option} = {value:g}: .* take at least {least} and less than 1"):
        load_reward(name, RewardModels(options={option: value}))


def test_the_least_thresholds_are_taken(models):
    for name, value in (("geneval_hf_official", 0.1), ("geneval_hf", 0.167)):
        load_reward(name, RewardModels(weights=models.weights, options={"geneval_threshold": value}))


def test_the_process_of_genevals_detector_reports_the_same_scores():
    script = Path(__file__).parents[2] / "sidecars/geneval_mmdet.py"
    assert f"MIN_SCORE = {MIN_DETECTION_SCORE}\n" in script.read_text()
