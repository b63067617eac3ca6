from copy import deepcopy

import numpy as np
import pytest
import torch

from afterflow.envs.shapes.prompts import suite
from afterflow.envs.shapes.render import render_batch
from afterflow.objectives.preferences import consistency, win_rates
from afterflow.rewards.base import Scored, read_only
from afterflow.rewards.clip import crop_square, pad_square
from afterflow.rewards.grouped import all_pairs, judge_groups, score_groups
from afterflow.rewards.registry import REWARDS
from afterflow.rewards.shapes_judge import ShapesJudge

RECORDS = suite("train", 2, 0, tags=("counting", "colors"))  # of two kinds, so that each fails the others' prompts


def group():
    """uint8 (4, 4, 32, 32, 3): of each prompt's four pictures the first two are true."""
    rng = np.random.default_rng(0)
    true = [render_batch([record] * 2, 32, rng) for record in RECORDS]
    return np.stack([np.concatenate([true[p], true[(p + 2) % 4]]) for p in range(4)])


def judged(judge, images=None, seed=0):
    images = group() if images is None else images
    draws = [torch.Generator().manual_seed(seed + p) for p in range(len(images))]
    return judge_groups(judge, images, RECORDS, all_pairs(*images.shape[:2]), draws)[0]


def test_the_verifiers_judge_prefers_true_pictures():
    found = judged(ShapesJudge("strict"))
    assert win_rates(found).gt(0.5).tolist() == [[True, True, False, False]] * 4
    assert found[:, 0, 1].eq(0.5).all() and found[:, 0, 2].eq(1).all() and found[:, 2, 0].eq(0).all()
    assert found.diagonal(dim1=1, dim2=2).isnan().all() and consistency(found).eq(1).all()


def test_bias_favours_the_first_and_makes_contradictions():
    found = judged(ShapesJudge("strict", bias=2.0))
    assert found.nan_to_num(1).eq(1).all() and consistency(found).eq(0).all()
    assert win_rates(found).eq(0.5).all()


def test_noise_is_seeded_and_a_margin_makes_ties_and_softness_shades():
    noisy = ShapesJudge(noise=1.0)
    equal = lambda a, b: torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))
    assert equal(judged(noisy), judged(noisy)) and not equal(judged(noisy), judged(noisy, seed=1))
    assert judged(ShapesJudge("strict", margin=1.5)).nan_to_num(0.5).eq(0.5).all()
    soft = judged(ShapesJudge("strict", softness=0.5))
    assert soft[0, 0, 2].item() == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)


@pytest.mark.parametrize(
    "answer, advice",
    [
        (lambda first: np.zeros(3), r"answered with shape \(3,\) where \(48,\) pairs"),
        (lambda first: np.full(len(first), 1.2), r"outside of \[0, 1\]: 1.2"),
        (lambda first: np.full(len(first), np.nan), r"outside of \[0, 1\]"),
    ],
)
def test_a_judge_that_answers_nonsense_is_refused(answer, advice):
    with pytest.raises(ValueError, match=advice):
        judged(lambda pairs: answer(pairs.first))


@pytest.mark.parametrize("options", [dict(score="quality"), dict(noise=-1.0), dict(margin=-0.1), dict(softness=-1.0)])
def test_a_judge_that_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match=f"judge.{next(iter(options))}"):
        ShapesJudge(**options)


def test_a_margin_and_softness_exclude_each_other():
    with pytest.raises(ValueError, match="leave softness at 0"):
        ShapesJudge(margin=0.1, softness=0.1)


def test_a_clip_is_scored_by_the_mean_of_its_frames(monkeypatch):
    brightness = lambda images, records: images.mean((1, 2, 3))
    monkeypatch.setitem(REWARDS, "brightness", brightness)
    clips = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 8, 12, 3), dtype=np.uint8)
    assert np.allclose(
        score_groups("brightness", clips, RECORDS[:2]).values.numpy(), clips.mean((2, 3, 4, 5)), atol=1e-3
    )


def test_a_reward_that_does_not_answer_once_for_each_image_is_refused(monkeypatch):
    monkeypatch.setitem(REWARDS, "twice", lambda images, records: np.zeros((len(images), 2)))
    with pytest.raises(ValueError, match=r"reward twice answered with shape \(16, 2\) for 16 images"):
        score_groups("twice", group(), RECORDS)


def overwrite(images, records):
    images[...] = 0
    return images.mean((1, 2, 3))


def divide_in_place(images, records):
    images //= 2
    return images.mean((1, 2, 3))


def sort_a_view(images, records):
    images.reshape(len(images), -1)[0].sort()
    return images.mean((1, 2, 3))


@pytest.mark.parametrize("writer", [overwrite, divide_in_place, sort_a_view])
def test_a_reward_that_writes_into_the_images_fails_and_changes_none_for_others(writer, monkeypatch):
    monkeypatch.setitem(REWARDS, "writer", writer)
    monkeypatch.setitem(REWARDS, "brightness", lambda images, records: images.mean((1, 2, 3)))
    images = group()
    kept, before = images.copy(), score_groups("brightness", images, RECORDS).values
    scores = score_groups("writer", images, RECORDS)
    assert scores.values.isnan().all() and all("read-only" in failure for failure in scores.failures)
    assert (images == kept).all() and images.flags.writeable
    assert torch.equal(score_groups("brightness", images, RECORDS).values, before)


def test_a_reward_or_a_judge_that_writes_into_records_changes_its_own_alone(monkeypatch):
    def rename(images, records):
        for record in records:
            record.pop("tag")
            record["include"].clear()
            record["prompt"] = "other"
            record |= {"tag": "x", "include": []}
        return np.zeros(len(images))

    def judge(pairs):
        rename(pairs.images, pairs.records)
        return np.full(len(pairs.first), 0.5)

    records = deepcopy(RECORDS)
    monkeypatch.setitem(REWARDS, "rename", rename)
    assert not score_groups("rename", group(), records).failures
    judge_groups(judge, group(), records, all_pairs(4, 4), [torch.Generator() for _ in range(4)])
    assert records == RECORDS


def test_a_judge_cannot_write_into_the_images():
    def judge(pairs):
        pairs.images[...] = 0
        return np.full(len(pairs.first), 0.5)

    images = group()
    with pytest.raises(ValueError, match="read-only"):
        judged(judge, images)
    assert (images == group()).all()


WRONG = {
    "a part that is too short": lambda n: Scored(np.zeros(n), {"half": np.zeros(n - 1)}),
    "a part of two numbers": lambda n: Scored(np.zeros(n), {"half": np.zeros((n, 2))}),
    "a part that is one number": lambda n: Scored(np.zeros(n), {"half": 0.5}),
    "a part of words": lambda n: Scored(np.zeros(n), {"half": ["few"] * n}),
    "words": lambda n: ["few"] * n,
    "objects": lambda n: [{}] * n,
    "nothing": lambda n: None,
    "a tensor with a gradient": lambda n: torch.zeros(n, requires_grad=True),
    "a reason too many": lambda n: Scored(np.zeros(n), why={n: "dark"}),
    "a reason before the first": lambda n: Scored(np.zeros(n), why={-1: "dark"}),
    "a reason by name": lambda n: Scored(np.zeros(n), why={"first": "dark"}),
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=list(WRONG))
def test_an_answer_of_another_form_is_one_sentence_that_names_who_gave_it(answer, monkeypatch):
    monkeypatch.setitem(REWARDS, "wrong", lambda images, records: answer(len(images)))
    with pytest.raises(ValueError, match=r"^reward wrong"):
        score_groups("wrong", group(), RECORDS)
    with pytest.raises(ValueError, match=r"^the judge <function"):
        judged(lambda pairs: answer(len(pairs.first)))


@pytest.mark.filterwarnings("error")
def test_preparing_images_that_cannot_be_written_into_warns_of_nothing():
    images = read_only(np.zeros((2, 20, 40, 3), np.uint8))
    for prepare in (crop_square, pad_square):
        assert prepare(images, 28).shape == (2, 3, 28, 28)
