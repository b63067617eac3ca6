"""What a reward is held to: one finite number in its range for each image, or a reason why not."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from afterflow.algorithms.ddpo import DDPO
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.models.adapters import LoRA
from afterflow.models.sd3 import SD3
from afterflow.rewards import named_code
from afterflow.rewards import registry as rewards
from afterflow.rewards.base import Canary, Reward, Scored, reward
from afterflow.rewards.grouped import score_groups
from afterflow.rewards.registry import REWARDS, check_rewards, find_reward, load_reward
from afterflow.system.errors import TrainingStopped
from afterflow.train.reward_hacking import paired_change, reward_hacking_signs

RECORDS = [{"prompt": name} for name in "abcd"]
IMAGES = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
brightness = lambda images, records: images.mean((1, 2, 3))


def test_every_reward_of_ours_knows_its_canary_and_a_false_one_is_noticed():
    for name in (ours := [name for name in REWARDS if find_reward(name).load is None]):
        assert find_reward(name).canary is not None
    check_rewards(ours)
    known = find_reward("shapes_strict")
    other = replace(known, canary=replace(known.canary, picture=lambda: np.zeros((32, 32, 3), np.uint8)))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="gives its canary 0 instead of 1"):
        patch.setitem(REWARDS, "shapes_strict", other)
        check_rewards(["shapes_strict"])


def test_a_score_out_of_range_or_not_finite_is_none():
    found = Reward("r", lambda images, records: np.array([0.0, 2.0, np.nan, -np.inf]), 0, 1)(IMAGES, RECORDS)
    assert np.isnan(found.values).tolist() == [False, True, True, True]
    assert found.why == {1: "2 is outside of [0, 1]", 2: "it is not a finite number", 3: "it is not a finite number"}


def test_an_exception_costs_the_images_that_raised_it_and_no_others():
    @reward("picky")
    def picky(images, records):
        if (images == 2).all((1, 2, 3)).any():
            raise RuntimeError("not this one")
        return Scored(brightness(images, records), {"half": brightness(images, records) / 2})

    found = picky(IMAGES, RECORDS)
    assert found.values[[0, 1, 3]].tolist() == [0, 1, 3] and np.isnan(found.values[2])
    assert found.why == {2: "RuntimeError: not this one"}
    assert found.parts["half"][[0, 1, 3]].tolist() == [0, 0.5, 1.5] and np.isnan(found.parts["half"][2])


def test_an_answer_says_which_prompt_has_no_score_and_why(monkeypatch):
    said = lambda images, records: Scored(np.zeros(len(images)), why={5: "too dark"})
    monkeypatch.setitem(REWARDS, "said", said)
    answer = score_groups("said", IMAGES.repeat(2, 0).reshape(4, 2, 8, 8, 3), RECORDS)
    assert answer.failures == ["'c': too dark"]
    assert answer.values.isnan().nonzero().tolist() == [[2, 1]]


def test_a_users_own_reward_is_found_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "def bright(images, records):\n    return images.mean((1, 2, 3))\n\nnone = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(rewards, "RESOLVED", {})
    monkeypatch.setattr(named_code, "NAMED", {f"my_rewards:{name}": False for name in ("bright", "none", "nothing")})
    assert find_reward("my_rewards:bright").score is None
    assert load_reward("my_rewards:bright")(IMAGES, RECORDS).values.tolist() == [0, 1, 2, 3]
    unknown = "did you mean|there are|the nearest of"
    for wrong, said in [("bright", unknown), ("none", "is no function"), ("nothing", "no attribute")]:
        with pytest.raises(ValueError, match=said):
            load_reward(f"my_rewards:{wrong}" if wrong != "bright" else "bright")
    named_code.named_in_process(["my_reward:bright"])
    with pytest.raises(ValueError, match="No module named 'my_reward'"):
        load_reward("my_reward:bright")
    sys.modules.pop("my_rewards")


def test_a_reward_of_another_package_is_found_by_its_entry_point(monkeypatch):
    class Point:
        name = "theirs"
        load = staticmethod(lambda: reward("theirs", 0, 9)(brightness))

    monkeypatch.setattr(rewards, "entry_points", lambda group: [Point] if group == "afterflow.rewards" else [])
    monkeypatch.setattr(rewards, "RESOLVED", {})
    assert find_reward("theirs").score is None  # reading a run imports no package
    assert load_reward("theirs").high == find_reward("theirs").high == 9
    with pytest.raises(ValueError, match="did you mean theirs"):
        find_reward("their")


@pytest.fixture
def run(pipeline, own_folder, monkeypatch):
    monkeypatch.setitem(REWARDS, "sometimes", failing(0))
    return Run(
        FlowGRPO({"sometimes": 1.0}, steps=3, group=4, beta=0.0),
        ShapesPrompts(count=10),
        SD3(pipeline, max_sequence_length=0),
        LoRA(rank=4, alpha=8),
    ).with_options(
        iterations=2,
        batch=2,
        chunk=8,
        sample_every=0,
        max_missing=0.2,
        held_out=ShapesPrompts("test", count=5),
        eval_every=1,
        eval_images=1,
    )


def failing(share):
    """A reward without a score for the first of its images, or for all of them."""

    def score(images, records):
        values = images.mean((1, 2, 3)) + np.arange(len(images))
        why = {i: "the server was asleep" for i in range(max(1, int(share * len(images))))}
        return Scored(values, {"plain": values}, why)

    return score


def test_images_without_a_score_are_counted_and_not_trained_on(run, capsys, caplog):
    folder = execute(run, "rewards").folder
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["invalid/sometimes"] for line in lines] == [1 / 8, 1 / 8]
    assert lines[0]["nfe/update"] == 2 * 7 / 8  # two trained steps of seven images
    assert np.isfinite(lines[0]["eval/sometimes"]) and np.isfinite(lines[0]["part/sometimes/plain"])
    told = capsys.readouterr().out + caplog.text
    assert "step 0: 1 of 8 images have no sometimes;" in told and "the server was asleep" in told
    assert "1 held-out images have no sometimes" in told


def test_too_many_of_them_stop_the_run_and_lose_nothing(run, monkeypatch):
    monkeypatch.setitem(REWARDS, "sometimes", failing(0.5))
    with pytest.raises(TrainingStopped, match=r"step 0: 4 of 8 images have no sometimes.*the server was asleep"):
        execute(run, "rewards")
    history = run.with_options(
        algorithm=DDPO({"sometimes": 1.0}, steps=3, group=4, history=9, min_count=2), max_missing=0.6
    )
    folder = execute(replace(history, name="history"), "rewards").folder
    [kept] = sorted(folder.glob("checkpoints/step_*"))[-1:]
    memory = json.loads((kept / "state.json").read_text())["memory"]["sometimes"]
    assert sum(map(len, memory.values())) == 2 * 4 and all(np.isfinite(row).all() for row in memory.values())


def test_a_reward_that_does_not_work_here_is_refused_before_training(run, monkeypatch):
    def broken(images, records):
        raise OSError("no such model")

    picture = lambda: np.zeros((8, 8, 3), np.uint8)
    monkeypatch.setitem(REWARDS, "sometimes", Reward("sometimes", broken, canary=Canary(picture, {}, 0, 1)))
    with pytest.raises(ValueError, match="sometimes does not work here: OSError: no such model"):
        execute(run, "rewards")
    assert not run.folder.exists()
    with pytest.raises(ValueError, match=r"max_missing = 1\.0: it is a share"):
        run.with_options(max_missing=1.0)


@pytest.mark.parametrize("batch, chunk", [(4, 8), (3, 4), (2, 64)])
def test_images_scored_while_others_are_drawn_have_the_scores_they_would_have(run, batch, chunk, monkeypatch):
    """4 images of a prompt; two prompts, one, or all of them are a part."""
    first = ShapesPrompts(count=10).records(0)[0]["prompt"]

    def score(images, records):
        why = {i: "not this prompt" for i, record in enumerate(records) if record["prompt"] == first}
        return Scored(brightness(images, records), {"half": brightness(images, records) / 2}, why)

    monkeypatch.setitem(REWARDS, "sometimes", score)
    plain = run.with_options(batch=batch, chunk=chunk, max_missing=0.9, held_out=None, eval_every=0)
    found = []
    for overlap in (False, True):
        folder = execute(plain.with_options(overlap=overlap, name=f"overlap_{overlap}"), "rewards").folder
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found.append([{name: line[name] for name in line if not name.startswith("seconds")} for line in lines])
    assert "part/sometimes/half" in found[1][0]
    for alone, beside in zip(*found):
        assert alone == pytest.approx(beside, rel=1e-3, abs=1e-6)  # the decoder rounds otherwise in smaller batches


def test_an_exception_beside_the_rollout_ends_the_run(run, monkeypatch):
    monkeypatch.setitem(REWARDS, "sometimes", lambda images, records: np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="one number for each"):
        execute(run.with_options(overlap=True, held_out=None, eval_every=0), "rewards")


def test_what_falls_while_the_trained_reward_rises_is_named():
    rng = np.random.default_rng(0)
    before = {"trained": rng.normal(size=50), "hidden": rng.normal(size=50), "other": rng.normal(size=50)}
    now = {name: values + rng.normal(scale=0.3, size=50) for name, values in before.items()}
    assert reward_hacking_signs(before, now, ["trained"], ["hidden", "other"]) == []
    worse = now | {"trained": now["trained"] + 1, "hidden": now["hidden"] - 0.5}
    [said] = reward_hacking_signs(before, worse, ["trained"], ["hidden", "other"])
    assert said.startswith("hidden fell by 0.") and " while trained rose by 0.9" in said
    assert reward_hacking_signs(before, worse | {"trained": before["trained"]}, ["trained"], ["hidden"]) == []
    assert paired_change([1.0, np.nan, 2.0], [1.0, 5.0, 2.0]) == (0, 0) and paired_change([1.0, 2.0], [2.0, 3.0]) == (
        1,
        np.inf,
    )


def test_a_run_that_cheats_is_told_and_keeps_its_best_weights(run, monkeypatch, caplog):
    held_out = ShapesPrompts("test", count=5).records(0)[0]["prompt"]
    looks = {"count": 0}

    def hidden(images, records):
        looks["count"] += any(record["prompt"] == held_out for record in records)
        # Before the first iteration the pictures that are stored are looked at.
        return np.full(len(images), [0.5, 0.5, 0.9, 0.1][looks["count"] - 1])

    rising = lambda images, records: np.arange(len(images)) % 7 / 100 + looks["count"]
    monkeypatch.setitem(REWARDS, "hidden", hidden)
    monkeypatch.setitem(REWARDS, "sometimes", rising)
    folder = execute(run.with_options(eval_rewards=("hidden",), iterations=3), "rewards").folder
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["alarm"] for line in lines] == [0, 0, 1]
    assert "step 2: ALARM: hidden fell by 0.4 while sometimes rose by" in caplog.text
    assert json.loads((folder / "best.json").read_text()) == {
        "step": 1,
        "reward": "hidden",
        "value": pytest.approx(0.9),
    }
    assert (folder / "best/lora/pytorch_lora_weights.safetensors").is_file()
    with pytest.raises(ValueError, match="did you mean hidden"):
        run.with_options(eval_rewards=("hidden",), best_by="hiden")


def test_a_reward_that_fails_on_a_whole_part_beside_the_rollout_is_counted(run, monkeypatch):
    second = ShapesPrompts(count=10).records(0)

    def score(images, records):
        if all(record == records[0] for record in records) and records[0]["prompt"] == second[0]["prompt"]:
            raise OSError("asleep")
        return Scored(brightness(images, records), {"half": brightness(images, records) / 2})

    monkeypatch.setitem(REWARDS, "sometimes", score)
    plain = run.with_options(
        batch=10, chunk=4, max_missing=0.9, held_out=None, eval_every=0, iterations=1, overlap=True, retained_rows=0
    )
    [line] = [json.loads(text) for text in (execute(plain, "rewards") / "metrics.jsonl").read_text().splitlines()]
    assert line["invalid/sometimes"] == pytest.approx(0.1) and np.isfinite(line["part/sometimes/half"])
