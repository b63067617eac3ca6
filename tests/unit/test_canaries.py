"""Networks that see nothing are told apart from those that see, before training and after a suite."""

from dataclasses import replace

import numpy as np
import pytest

from afterflow.cli.main import main
from afterflow.envs.geneval_rules import Detection
from afterflow.evaluation import image_store
from afterflow.evaluation.image_set import ImageSet, PictureSource
from afterflow.evaluation.scores import blind_rewards, score_images
from afterflow.rewards.base import OrderCanary, Reward, RewardModels, Scored, network_reward
from afterflow.rewards.canaries import CAPTIONS, captioned_cases, photo
from afterflow.rewards.detector_reward import Detector
from afterflow.rewards.geneval_hf import geneval_hf
from afterflow.rewards.registry import REWARDS, canary_complaint, check_judge_sees, check_rewards, find_reward
from afterflow.rewards.vlm.judge import VLMJudge
from fake_server import said, serving, words
from tinies import clip, mask2former

NETWORKS = [name for name in REWARDS if find_reward(name).load is not None]
NAMES = {photo(name).tobytes(): name for name in CAPTIONS}


def is_shown(image, record):
    """Whether a photograph is the one that a record asks for; noise and frames are not."""
    shown = NAMES.get(image.tobytes())
    texts = [str(record.get(key, "")) for key in ("prompt", "image", "points")]
    return shown is not None and any(shown in text for text in texts)


def sees(images, records):
    return np.array([float(is_shown(image, record)) for image, record in zip(images, records)])


def network(name, score):
    """A network reward in the place of one of ours, with its canary."""
    return replace(find_reward(name), load=lambda models: score, scale=1.0, extra=None, libraries=(), low=-1, high=9)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_ours_has_pictures_whose_order_is_known(name, monkeypatch):
    """A score that sees passes; a constant, and the opposite, are blind."""
    reward = find_reward(name)
    assert isinstance(reward.canary, OrderCanary)
    cases = reward.canary.cases()
    for case in cases:
        assert case.better.shape == case.worse.shape and case.better.dtype == np.uint8
        assert (case.better != case.worse).mean() > 0.5
        assert case.better.ndim == 3 + reward.clips
        if reward.needs is not None:
            reward.needs(dict(case.record))
    better = {case.better.tobytes() + repr(case.record).encode() for case in cases}
    right = lambda images, records: np.array(
        [i.tobytes() + repr(r).encode() in better for i, r in zip(images, records)]
    )
    for score, passes in (
        (lambda images, records: right(images, records) + 0.0, True),
        (lambda images, records: 1.0 - right(images, records), False),
        (lambda images, records: np.full(len(images), 0.5), False),
        (lambda images, records: 1e-6 * right(images, records), False),
    ):
        monkeypatch.setitem(REWARDS, name, network(name, score))
        models = RewardModels(batch=np.random.randint(1 << 30))  # loaded anew
        if passes:
            check_rewards([name], models)
        else:
            with pytest.raises(ValueError, match=rf"reward {name} is blind: .*ignore-canary {name} would go on"):
                check_rewards([name], models)


@pytest.mark.parametrize(
    "score", [lambda i, r: i.mean((1, 2, 3)), lambda i, r: np.array([len(x["prompt"]) for x in r])]
)
def test_a_network_that_reads_the_picture_or_the_prompt_alone_is_blind(score, monkeypatch):
    reward = replace(network("clipscore", score), high=np.inf)
    monkeypatch.setitem(REWARDS, "clipscore", reward)
    with pytest.raises(ValueError, match="reward clipscore is blind"):
        check_rewards(["clipscore"], RewardModels(batch=np.random.randint(1 << 30)))


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    seer, reader = mask2former(tmp_path_factory.mktemp("mask2former")), clip(tmp_path_factory.mktemp("clip"))
    return {"geneval_hf": str(seer), "clipscore": str(reader), "pickscore": str(reader), "hpsv2": str(reader)}


@pytest.mark.parametrize("name", ["clipscore", "pickscore", "hpsv2", "geneval_hf", "geneval_hf_strict"])
def test_random_weights_are_refused_unless_the_user_goes_on(name, random_weights, caplog):
    weights = {key: random_weights[key] for key in find_reward(name).weights_read}
    with pytest.raises(ValueError, match=f"reward {name} is blind: for 'a photo of a "):
        check_rewards([name], RewardModels(weights=weights))
    check_rewards([name], RewardModels(weights=weights, ignore_canary=(name,)))
    assert f"reward {name} is blind" in caplog.text and "goes on all the same, because ignore_canary" in caplog.text
    with pytest.raises(ValueError, match=r"ignore_canary.*did you mean"):
        check_rewards([name], RewardModels(weights=weights, ignore_canary=(name + "x",)))


def test_a_canary_without_a_score_cannot_be_ignored(monkeypatch):
    broken = lambda images, records: Scored(np.full(len(images), np.nan), why=dict.fromkeys(range(len(images)), "down"))
    monkeypatch.setitem(REWARDS, "clipscore", network("clipscore", broken))
    models = RewardModels(batch=np.random.randint(1 << 30), ignore_canary=("clipscore",))
    with pytest.raises(ValueError, match="reward clipscore does not work here: down"):
        check_rewards(["clipscore"], models)


def test_a_users_network_without_a_canary_is_said(monkeypatch, caplog):
    theirs = network_reward("theirs")(lambda models: lambda images, records: np.zeros(len(images)))
    monkeypatch.setitem(REWARDS, "theirs", theirs)
    assert canary_complaint("theirs", RewardModels()) is None
    assert "reward theirs is a network without a canary" in caplog.text
    monkeypatch.setitem(REWARDS, "rule", Reward("rule", lambda images, records: np.zeros(len(images))))
    caplog.clear()
    assert canary_complaint("rule", RewardModels()) is None and not caplog.text


# The judge


def photographs(body):
    """The caption of a question and the names of its photographs."""
    texts, shown = words(body)
    return texts[0], [NAMES[image.tobytes()] for image in shown]


def knows(body, n):
    caption, (first, _) = photographs(body)
    return said("", {"1": -0.01, "2": -5.0} if first in caption else {"1": -5.0, "2": -0.01})


def test_a_judge_is_tried_on_photographs_in_both_orders(caplog):
    with serving(knows) as (url, seen):
        check_judge_sees(VLMJudge(url), RewardModels())
        assert len(seen) == 2 * len(captioned_cases())
    blind = {
        "the first": lambda body, n: said("", {"1": -0.01, "2": -5.0}),
        "a tie": lambda body, n: said("", {"1": np.log(0.5), "2": np.log(0.5)}),
        "one picture": lambda body, n: said("", {"12"[photographs(body)[1][0] != "cat"]: -0.01}),
    }
    for answer in blind.values():
        with serving(answer) as (url, _):
            with pytest.raises(ValueError, match=r"the judge is blind: for 'a photo of .*ignore-canary judge"):
                check_judge_sees(VLMJudge(url), RewardModels())
            check_judge_sees(VLMJudge(url), RewardModels(ignore_canary=("judge",)))
    assert "the judge is blind" in caplog.text
    mute = "the judge does not work here: it gave no log-probabilities"
    with serving(lambda body, n: said("?")) as (url, _), pytest.raises(ValueError, match=mute):
        check_judge_sees(VLMJudge(url, attempts=1), RewardModels(ignore_canary=("judge",)))
    with serving(lambda body, n: said("?") if n == 3 else knows(body, n)) as (url, _):
        check_judge_sees(VLMJudge(url), RewardModels())  # one question of twelve may go wrong
    check_judge_sees(None, RewardModels())


# After a suite


RECORD = dict(geneval_hf.canary.cases()[0].record)


@pytest.mark.parametrize("found, blind", [([], True), ([0.2], True), ([0.2, 0.6], False)])
def test_a_suite_in_which_nothing_is_detected_says_so(found, blind, random_weights, monkeypatch, tmp_path):
    """Detections below the threshold do not count, and one picture with a detection is enough."""
    box = (0.0, 0.0, 4.0, 4.0)

    def detect(self, images, records):
        return [[Detection("dog", score, box) for score in found] if i == 0 else [] for i in range(len(images))]

    monkeypatch.setattr(Detector, "__call__", detect)
    weights = {key: random_weights[key] for key in ("geneval_hf", "clipscore")}
    models = RewardModels(weights=weights, batch=np.random.randint(1 << 30))
    for i in range(2):
        image_store.add_images(tmp_path, i, RECORD | {"prompt": str(i)}, np.full((2, 8, 8, 3), 9 * i, np.uint8))
    images = ImageSet(PictureSource(str(tmp_path)), [RECORD | {"prompt": str(i)} for i in range(2)], tmp_path)
    score_images(images, ["geneval_hf"], models, print)
    sentences = blind_rewards([images], ["geneval_hf", "jpeg_compressibility"], models)
    assert sentences == (
        ["geneval_hf is blind here: it has no detections in any of 4 pictures, so its figures say nothing"]
        if blind
        else []
    )


def test_the_command_prints_the_table_and_fails_where_nothing_was_read(capsys, tmp_path):
    pytest.importorskip("rapidocr")
    for i in range(2):
        record = {"prompt": f'a sign that says "open {i}"', "tag": "text"}
        image_store.add_images(tmp_path, i, record, np.full((1, 64, 64, 3), 99, np.uint8))
    assert main(["eval", str(tmp_path), "--suite", "ocr", "--draws", "9"]) == 2
    out, err = capsys.readouterr()
    sentence = "ocr is blind here: it has no lines in any of 2 pictures, so its figures say nothing"
    assert sentence in " ".join(out.split()) and sentence in err
